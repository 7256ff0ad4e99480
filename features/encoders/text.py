"""Text encoder without weights: hashed character n-grams."""

from __future__ import annotations

import unicodedata
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind

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
