"""A folder of model2vec: one vector a token, distilled from a sentence model; no forward pass.

Format: `tokenizer.json` (of the tokenizers library), `model.safetensors` with `embeddings` and, of
a quantised vocabulary, `weights` and `mapping`, and `config.json`, as model2vec's `save_pretrained`
writes them (github.com/MinishLab/model2vec).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic

from features.encoders.bags import sum_words
from features.encoders.base import Encoder, Kind, import_extra
from features.encoders.huggingface import ModelFolderSpec
from features.encoders.sentence_folders import read_json
from features.fingerprint import Execution, fingerprint

CONFIG, TOKENIZER, TENSORS = "config.json", "tokenizer.json", "model.safetensors"
LONGEST_BY_DEFAULT = 512
"""Tokens of a text at most, where config.json does not say."""


class Model2VecSpec(ModelFolderSpec):
    """The mean of the vectors of a text's tokens, as model2vec's `StaticModel.encode` gives it.

    Computed in float32, whatever the type of the vectors; a text without a known token has no
    embedding. The package itself is not needed.
    """

    kind: ClassVar[Kind] = "text"

    type: Literal["model2vec"] = "model2vec"
    max_length: Annotated[int | None, pydantic.Field(ge=1)] = None
    """Tokens of a text at most; the rest is not read, and how many texts were cut is counted. None:
    what config.json says, or 512. As model2vec does, a text is first cut to so many times the
    median length of a token in letters."""
    normalize: bool | None = None
    """Whether an embedding is scaled to length 1. None: as config.json says."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 4096
    """Rows that are put together at once. It does not enter the fingerprint."""

    def weights(self) -> Mapping[str, str]:
        """Content hash of vectors and tokenizer; of config.json counts what is taken of it."""
        found = super().weights()
        return {name: digest for name, digest in found.items() if name != CONFIG}

    def fingerprint(self) -> str:
        """As for all encoders, with what config.json says in the place of None."""
        max_length, normalize = self.choices()
        return fingerprint(
            {
                "encoder": self.type,
                "version": self.version,
                "options": self.identity() | {"max_length": max_length, "normalize": normalize},
                "weights": dict(self.weights()),
            }
        )

    def choices(self) -> tuple[int | None, bool]:
        """Most tokens of a text (None: all), and whether to scale, by spec and config together."""
        config = read_json(self.folder(), CONFIG)
        max_length = config.get("max_length", LONGEST_BY_DEFAULT)
        normalize = config.get("normalize", False)
        return (
            max_length if self.max_length is None else self.max_length,
            bool(normalize) if self.normalize is None else self.normalize,
        )

    def load(self) -> Encoder:
        self.weights()
        max_length, normalize = self.choices()
        return _Model2Vec(self.folder(), max_length=max_length, normalize=normalize)

    def _patterns(self) -> list[str]:
        return [CONFIG, TOKENIZER, TENSORS]

    def _files(self, folder: str) -> list[str]:
        for name in (CONFIG, TOKENIZER, TENSORS):
            if not os.path.exists(os.path.join(folder, name)):
                raise ValueError(
                    f"`model`: {self.model!r} has no {name}; a folder of model2vec holds "
                    f"{CONFIG}, {TOKENIZER} and {TENSORS}"
                )
        return [CONFIG, TENSORS, TOKENIZER]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMean:
    """A text's embedding, and how it was read."""

    embedding_D: np.ndarray
    """float32."""
    tokens: int
    truncated: bool

    @property
    def nbytes(self) -> int:
        return int(self.embedding_D.nbytes) + 64


class _Model2Vec:
    def __init__(self, folder: str, *, max_length: int | None, normalize: bool) -> None:
        tokenizers = import_extra("tokenizers", extra="text")
        self._normalize = normalize
        tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, TOKENIZER))
        tokenizer.no_padding()
        # From here on the tokenizer is not changed, so threads may share it.
        tokenizer.no_truncation()
        if max_length is not None:
            tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._unknown = _unknown_token(tokenizer)
        self._most_letters: int | None = None
        if max_length is not None:
            median = int(np.median([len(token) for token in vocabulary]))
            self._most_letters = max_length * median
        self._vectors = _read_vectors(folder, tokens=1 + max(vocabulary.values(), default=-1))
        self.dim = int(self._vectors.vectors_ND.shape[1])

    def prepare(self, payload: str) -> TokenMean:
        (found,) = self.prepare_all([payload])
        if isinstance(found, ValueError):
            raise found
        return found

    def prepare_all(self, payloads: Sequence[str]) -> list[TokenMean | ValueError]:
        """By as many threads as the tokenizer likes."""
        encodings = self._tokenizer.encode_batch_fast(
            [text[: self._most_letters] for text in payloads], add_special_tokens=False
        )
        ids = [[token for token in one.ids if token != self._unknown] for one in encodings]
        sums_BD = sum_words(
            ids,
            self._vectors.vectors_ND,
            place_W=self._vectors.place_W,
            weight_W=self._vectors.weight_W,
        )
        found: list[TokenMean | ValueError] = []
        for text, encoding, tokens, sum_D in zip(payloads, encodings, ids, sums_BD, strict=True):
            if not tokens:
                found.append(ValueError("the tokenizer knows no token of the text"))
                continue
            mean_D = sum_D / np.float32(len(tokens))
            length = float(np.linalg.norm(mean_D))
            if length == 0:
                found.append(ValueError("the vectors of its tokens add up to zero"))
                continue
            too_long = self._most_letters is not None and len(text) > self._most_letters
            found.append(
                TokenMean(
                    embedding_D=mean_D / np.float32(length) if self._normalize else mean_D,
                    tokens=len(tokens),
                    truncated=too_long or bool(encoding.overflowing),
                )
            )
        return found

    def size(self, prepared: TokenMean) -> int:
        return 1

    def counts(self, prepared: TokenMean) -> dict[str, int]:
        """Known tokens that are read, and whether the text has more."""
        return {"tokens": prepared.tokens, "truncated": int(prepared.truncated)}

    def encode(self, batch: list[TokenMean]) -> np.ndarray:
        return np.stack([item.embedding_D for item in batch])


def _unknown_token(tokenizer: Any) -> int | None:
    """Id of what stands for text that the tokenizer does not know; it has a vector of no use."""
    model = json.loads(tokenizer.to_str())["model"]
    if (token := model.get("unk_token")) is not None:
        found: int | None = tokenizer.token_to_id(token)
        return found
    return model.get("unk_id")


@dataclass(frozen=True, kw_only=True)
class _Vectors:
    """What model.safetensors holds."""

    vectors_ND: np.ndarray
    """float32."""
    place_W: np.ndarray | None
    """int64: which of the vectors is a token's; None if token and vector have the same number."""
    weight_W: np.ndarray | None
    """float32: what a token's vector is multiplied by; None for 1."""


def _read_vectors(folder: str, *, tokens: int) -> _Vectors:
    from safetensors import SafetensorError, safe_open

    path = os.path.join(folder, TENSORS)
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:  # the latter for bfloat16, which numpy lacks
        raise ValueError(f"{path} cannot be read: {error}") from error
    vectors = found.get("embeddings", np.empty(0))
    place, weight = found.get("mapping"), found.get("weights")
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"{path} holds {', '.join(sorted(found))}; model2vec has `embeddings`")
    for name, words in (("mapping", place), ("weights", weight)):
        if words is not None and words.shape != (tokens,):
            raise ValueError(f"{path}: `{name}` is of shape {words.shape} for {tokens} tokens")
    places = np.array([tokens - 1]) if place is None else place
    if (
        places.max() >= len(vectors)
        or places.min() < 0
        or (place is None and tokens != len(vectors))
    ):
        raise ValueError(f"{path} holds {len(vectors)} vectors, which do not fit {tokens} tokens")
    return _Vectors(
        vectors_ND=vectors.astype(np.float32),
        place_W=None if place is None else place.astype(np.int64),
        weight_W=None if weight is None else weight.astype(np.float32),
    )
