"""Any Hugging Face text model: which one, and how its states become embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal, Self

import pydantic

from features.encoders.base import Kind, TrainableEncoder
from features.encoders.huggingface import HuggingFaceSpec, load_model
from features.encoders.sentence_folders import (
    LENGTH,
    MODULES,
    PROMPTS,
    Modules,
    read_json,
    read_length,
    read_modules,
    read_prompt,
)
from features.encoders.text_model import Choices, TextModel, is_text_tower, read_positions
from features.fingerprint import Execution, fingerprint

LONGEST_BY_DEFAULT = 512
"""Tokens of a text at most, where neither the user nor the model's folder says."""


class HuggingFaceTextSpec(HuggingFaceSpec):
    """Any Hugging Face text model: the states of its last layer, pooled over the tokens.

    Encoders, the encoder of an encoder and decoder, decoders alone, and the text side of CLIP,
    SigLIP, CLAP and their like. With nothing but `model`, a folder of sentence-transformers gives
    what its `SentenceTransformer(…).encode` gives.
    """

    kind: ClassVar[Kind] = "text"
    version: ClassVar[int] = 2
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
    pooling: Literal["auto", "mean", "cls", "last", "pooler"] = "auto"
    """How the states of a text's tokens become one vector: their mean (`mean`), the first (`cls`)
    or the last of them (`last`, for decoders), the model's own pooled output (`pooler`; for CLIP
    and its like the embedding that texts share with images or sounds), or as the model's files
    say (`auto`): pooling, linear layers and scaling that `modules.json` of sentence-transformers
    lists; `pooler` for CLIP and its like; otherwise `mean`."""
    output: Literal["pooled", "sequence"] = "pooled"
    """One vector for a text, or one for each of its tokens, without padding."""
    special_tokens: bool = True
    """Whether a sequence has the states of tokens that the tokenizer adds, such as [CLS]."""
    max_length: Annotated[int | None, pydantic.Field(ge=2)] = None
    """Tokens of a text at most, special ones included; the rest is not read, and how many texts
    were cut is counted. None: what `sentence_bert_config.json` says, which may ask for lower case,
    too; without it the model's longest, but at most 512."""
    prefix: str | None = None
    """Put before each text, as some models want it: `"query: "`. None: the default prompt that
    `config_sentence_transformers.json` names, if it does."""
    suffix: str = ""
    """Put after each text, also after one that is cut."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 1024
    """Rows per forward pass at most; it is `batch_tokens` that bounds most batches."""
    batch_tokens: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Tokens per forward pass at most, padding included. None: 4,096 on a CPU, 65,536 on a GPU."""

    @pydantic.model_validator(mode="after")
    def _output_and_its_options(self) -> Self:
        if self.output == "sequence" and self.pooling != "auto":
            raise ValueError("`pooling` is for `output: pooled`; a sequence has none, leave it out")
        if self.output == "pooled" and not self.special_tokens:
            raise ValueError("`special_tokens: false` is for `output: sequence`")
        return self

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    def weights(self) -> Mapping[str, str]:
        """As for all models; refuses a `max_length` beyond the model's, before any work."""
        found = super().weights()
        self.choices()
        return found

    def fingerprint(self) -> str:
        """As for all encoders, with what the model's files decide in the place of `auto`."""
        return fingerprint(
            {
                "encoder": self.type,
                "version": self.version,
                "options": self.identity() | asdict(self.choices()),
                "weights": dict(self.weights()),
            }
        )

    def choices(self) -> Choices:
        """What the spec and the model's files say together; ValueError where they cannot agree."""
        folder = self.folder()
        modules = self._modules(folder)
        config = read_json(folder, "config.json")
        pooling: str = self.pooling
        if self.sequence:
            pooling = "none"
        elif modules is not None:
            pooling = modules.pooling
        elif pooling == "auto":
            pooling = "pooler" if is_text_tower(config) else "mean"
        longest = _longest(folder)
        if self.max_length is None:
            length, lowercase = read_length(folder)
            length = min(length or LONGEST_BY_DEFAULT, longest or length or LONGEST_BY_DEFAULT)
        elif longest is not None and self.max_length > longest:
            raise ValueError(
                f"`max_length` {self.max_length} is more than {self.model!r} can read; its longest "
                f"text has {longest} tokens"
            )
        else:
            length, lowercase = self.max_length, False
        return Choices(
            pooling=pooling,
            dense=modules.dense if modules else (),
            normalize=self.normalize or (modules is not None and modules.normalize),
            max_length=length,
            prefix=read_prompt(folder) if self.prefix is None else self.prefix,
            suffix=self.suffix,
            lowercase=lowercase,
            special_tokens=self.special_tokens,
        )

    def load(self) -> TextModel:
        choices = self.choices()
        # A model's own pooled output has to be trained if it is what is asked for.
        update = {"pooling": choices.pooling, "normalize": choices.normalize}
        return TextModel(
            load_model(self.model_copy(update=update)),
            choices=choices,
            remote=self.trust_remote_code,
            batch_tokens=self.batch_tokens,
        )

    @property
    def trainable(self) -> bool:
        return True

    def load_trainable(self) -> TrainableEncoder:
        return self.in_float32.load()

    def _modules(self, folder: str) -> Modules | None:
        return read_modules(folder) if self.pooling == "auto" and not self.sequence else None

    def _asked_for(self) -> Mapping[str, str]:
        return {
            name: field
            for name, field, wanted in (
                (MODULES, "pooling", self.pooling == "auto" and not self.sequence),
                (LENGTH, "max_length", self.max_length is None),
                (PROMPTS, "prefix", self.prefix is None),
            )
            if wanted
        }

    def _patterns(self) -> list[str]:
        layers = ["?_*/config.json", "?_*/model.safetensors"]
        return [*super()._patterns(), MODULES, LENGTH, PROMPTS, *layers]

    def _files(self, folder: str) -> list[str]:
        modules = self._modules(folder)
        layers = [f"{layer.folder}/model.safetensors" for layer in modules.dense] if modules else []
        for name in layers:
            if not os.path.exists(os.path.join(folder, name)):
                raise ValueError(f"`model`: {self.model!r} has no {name}")
        return [*super()._files(folder), *layers]


def _longest(folder: str) -> int | None:
    """How many tokens the files in a model's folder say that it can read."""
    found = [read_positions(read_json(folder, "config.json"))]
    if os.path.exists(os.path.join(folder, "tokenizer_config.json")):
        length = read_json(folder, "tokenizer_config.json").get("model_max_length")
        found.append(length if isinstance(length, int) else None)
    return min((limit for limit in found if limit is not None), default=None)
