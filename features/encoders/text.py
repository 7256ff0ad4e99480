"""Text encoders: hashed character n-grams, and any Hugging Face text model."""

from __future__ import annotations

import json
import os
import threading
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind, import_extra
from features.encoders.huggingface import (
    HuggingFaceSpec,
    LoadedModel,
    load_model,
    quiet_loading,
)

_Length = Annotated[int, pydantic.Field(ge=1)]


class HashingSpec(EncoderSpec):
    """Counts of character n-grams, hashed into a fixed width: no weights, and any script.

    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009), by
    scikit-learn's HashingVectorizer. The text is first brought to Unicode's NFKC form and
    case-folded, so that full-width and half-width digits and letters are the same.
    """

    kind: ClassVar[Kind] = "text"

    type: Literal["hashing"] = "hashing"
    dim: Annotated[int, pydantic.Field(ge=2, le=65536)] = 512
    """Width of an embedding."""
    ngrams: tuple[_Length, _Length] = (1, 3)
    """Shortest and longest n-gram, in characters."""
    within_words: bool = True
    """Whether n-grams stay within words (with a blank at either end), or cross them."""
    signed: bool = True
    """Whether half of the n-grams count negatively, so that collisions cancel on average."""
    normalize: bool = True
    """Whether an embedding is scaled to length 1, so that a text's length does not matter."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.ngrams[0] > self.ngrams[1]:
            raise ValueError(f"`ngrams` is [shortest, longest], not {list(self.ngrams)}")
        return self

    def load(self) -> Encoder:
        return _Hashing(self)


class _Hashing:
    def __init__(self, spec: HashingSpec) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.dim = spec.dim
        self._shortest = 1 if spec.within_words else spec.ngrams[0]  # a word is padded, if short
        self._vectorizer = HashingVectorizer(
            analyzer="char_wb" if spec.within_words else "char",
            ngram_range=spec.ngrams,
            n_features=spec.dim,
            alternate_sign=spec.signed,
            norm="l2" if spec.normalize else None,
            lowercase=False,
            dtype=np.float64,
        )

    def prepare(self, payload: str) -> str:
        text = unicodedata.normalize("NFKC", payload).casefold()
        if len(" ".join(text.split())) < self._shortest:
            raise ValueError(f"the text is shorter than an n-gram of {self._shortest} characters")
        return text

    def size(self, prepared: str) -> int:
        return len(prepared)

    def encode(self, batch: list[str]) -> np.ndarray:
        rows: np.ndarray = self._vectorizer.transform(batch).toarray().astype(np.float32)
        return rows


class HuggingFaceTextSpec(HuggingFaceSpec):
    """Any Hugging Face text model: the states of its last layer, pooled over the tokens."""

    kind: ClassVar[Kind] = "text"
    companions: ClassVar[tuple[str, ...]] = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "bpe.codes",
        "*.model",
        "*.tiktoken",
    )
    needs: ClassVar[tuple[str, ...]] = ("tokenizer*.json", "vocab.*", "*.model")

    type: Literal["huggingface_text"] = "huggingface_text"
    pooling: Literal["mean", "cls"] = "mean"
    """Mean over the tokens of the text, or the state of its first token."""
    max_length: Annotated[int, pydantic.Field(ge=2)] = 256
    """Tokens of a text at most, special ones included; the rest is not read."""

    def weights(self) -> Mapping[str, str]:
        """As for all models; refuses a `max_length` beyond the model's, before any work."""
        found = super().weights()
        limits = read_limits(self.folder())
        if limits:
            self.refuse_beyond(min(limits))
        return found

    def refuse_beyond(self, longest: int) -> None:
        """Raise ValueError if `max_length` is more than the model's longest text has tokens."""
        if self.max_length > longest:
            raise ValueError(
                f"`max_length` {self.max_length} is more than {self.model!r} can read; its longest "
                f"text has {longest} tokens"
            )

    def load(self) -> Encoder:
        return _HuggingFaceText(self)


def read_limits(folder: str) -> list[int]:
    """How many tokens the files in a model's folder say that it can read."""
    limits = []
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                limit = json.load(file).get(key)
            if isinstance(limit, int):
                limits.append(limit)
    return limits


class _HuggingFaceText:
    def __init__(self, spec: HuggingFaceTextSpec) -> None:
        transformers = import_extra("transformers", extra="text")
        self._spec = spec
        self._loaded: LoadedModel = load_model(spec)
        config = self._loaded.model.config
        if hasattr(self._loaded.model, "get_image_features"):
            raise ValueError(
                f"{spec.model!r} ({config.model_type}) is a model of text and images at once; "
                "`huggingface_text` takes models of text alone"
            )
        if config.is_encoder_decoder:
            self._loaded = self._loaded.with_model(self._loaded.model.get_encoder())
        with quiet_loading():
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._loaded.folder,
                trust_remote_code=spec.trust_remote_code,
                local_files_only=True,
            )
        self._tokenizer.padding_side = "right"
        self._tokenizer.truncation_side = "right"
        positions = getattr(config, "max_position_embeddings", None) or self._longest
        spec.refuse_beyond(min(self._longest, positions))
        self.dim: int = config.hidden_size
        self._lock = threading.Lock()

    @property
    def _longest(self) -> int:
        return int(self._tokenizer.model_max_length)

    def prepare(self, payload: str) -> Mapping[str, list[int]]:
        with self._lock:  # a fast tokenizer must not be used by two threads at once
            tokens: dict[str, list[int]] = dict(
                self._tokenizer(payload, truncation=True, max_length=self._spec.max_length)
            )
        if not tokens["input_ids"]:
            raise ValueError("the tokenizer finds no token in the text")
        return tokens

    def size(self, prepared: Mapping[str, list[int]]) -> int:
        return len(prepared["input_ids"])

    def encode(self, batch: list[Mapping[str, list[int]]]) -> np.ndarray:
        import torch

        ids_BT = self._padded(batch, "input_ids", self._tokenizer.pad_token_id or 0)
        mask_BT = self._padded(batch, "attention_mask", 0)
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "token_type_ids" in batch[0]:
            inputs["token_type_ids"] = self._padded(batch, "token_type_ids", 0)
        with torch.inference_mode():
            hidden_BTD = self._loaded.model(**inputs).last_hidden_state.float()
            if self._spec.pooling == "cls":
                pooled_BD = hidden_BTD[:, 0]
            else:
                weight_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
                pooled_BD = (hidden_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
            return self._loaded.finish(pooled_BD)

    def _padded(self, batch: list[Mapping[str, list[int]]], name: str, padding: int) -> Any:
        import torch

        longest = max(len(row[name]) for row in batch)
        rows = [list(row[name]) + [padding] * (longest - len(row[name])) for row in batch]
        return torch.tensor(rows, device=self._loaded.device)
