"""Texts → token ids: many at once, by the tokenizer's own threads, cut to a length."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """One text as the model reads it."""

    ids: list[int]
    """Token ids, special tokens included."""
    truncated: bool
    """Whether the text has more tokens than these."""
    type_ids: list[int] | None = None
    """Segment ids, where they are not zero throughout."""
    special: list[int] | None = None
    """1 for a token that the tokenizer has added, 0 for one of the text; if asked for."""


class TextTokenizer:
    """A transformers tokenizer with a prefix, a suffix and a length; safe in several threads.

    A text that is too long is cut; prefix, suffix and special tokens stay. Raises ValueError if
    these leave no room for a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        prefix: str = "",
        suffix: str = "",
        lowercase: bool = False,
        mark_special: bool = False,
    ) -> None:
        self._max_length, self._prefix, self._suffix = max_length, prefix, suffix
        self._mark_special = mark_special
        self._with_type_ids = any(
            tokenizer(f"{prefix}a{suffix}", return_token_type_ids=True)["token_type_ids"]
        )
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        if tokenizer.is_fast:  # from here on, what would change its settings is not called
            self._backend = _backend(tokenizer, max_length=max_length, lowercase=lowercase)
        elif suffix or lowercase:
            raise ValueError(
                f"{type(tokenizer).__name__} has no fast version, without which there is no "
                f"{'`suffix`' if suffix else 'lower-casing'}"
            )
        self._nothing = self._read([prefix + suffix])[0].ids
        if len(self._nothing) >= max_length:
            raise ValueError(
                f"a `max_length` of {max_length} leaves no room for a text beside `prefix`, "
                "`suffix` and special tokens"
            )

    def __call__(self, texts: Sequence[str]) -> list[Tokens | ValueError]:
        """The tokens of each text; in the place of a text that has none stands a ValueError."""
        found = self._read([f"{self._prefix}{text}{self._suffix}" for text in texts])
        if self._suffix:
            for place, tokens in enumerate(found):
                if tokens.truncated:
                    found[place] = self._read_to_the_suffix(texts[place])
        return [
            ValueError("the tokenizer finds no token in the text")
            if tokens.ids == self._nothing
            else tokens
            for tokens in found
        ]

    def _read(self, texts: list[str]) -> list[Tokens]:
        if not self._tokenizer.is_fast:
            return [self._read_slowly(text) for text in texts]
        # The tokenizer is never changed once it is made, so threads may share it.
        return [
            Tokens(
                ids=encoding.ids,
                # To ask for the rest makes objects of it; a shorter text has none.
                truncated=len(encoding) == self._max_length and bool(encoding.overflowing),
                type_ids=encoding.type_ids if self._with_type_ids else None,
                special=encoding.special_tokens_mask if self._mark_special else None,
            )
            for encoding in self._backend.encode_batch_fast(texts)
        ]

    def _read_slowly(self, text: str) -> Tokens:
        with self._lock:
            whole = self._tokenizer(text)["input_ids"]
            tokens = self._tokenizer(
                text,
                truncation=True,
                max_length=self._max_length,
                return_token_type_ids=self._with_type_ids,
                return_special_tokens_mask=self._mark_special,
            )
        return Tokens(
            ids=list(tokens["input_ids"]),
            truncated=len(whole) > self._max_length,
            type_ids=list(tokens["token_type_ids"]) if self._with_type_ids else None,
            special=list(tokens["special_tokens_mask"]) if self._mark_special else None,
        )

    @functools.cached_property
    def _uncut(self) -> Any:
        """A second tokenizer, which reads texts whole."""
        from tokenizers import Tokenizer

        whole = Tokenizer.from_str(self._backend.to_str())
        whole.no_truncation()
        return whole

    def _read_to_the_suffix(self, text: str) -> Tokens:
        """The tokens of a text that is cut before a token such that the suffix still fits."""
        begin = len(self._prefix)
        whole = self._uncut.encode(f"{self._prefix}{text}{self._suffix}")
        ends = [
            end - begin
            for (start, end), special in zip(whole.offsets, whole.special_tokens_mask)
            if not special and begin <= start < end <= begin + len(text)
        ]
        keep = max(0, len(ends) - (len(whole) - self._max_length))
        while True:  # a cut may divide the last tokens otherwise, so try
            cut = text[: ends[keep - 1]] if keep else ""
            tokens = self._read([f"{self._prefix}{cut}{self._suffix}"])[0]
            if not tokens.truncated:
                return replace(tokens, truncated=True)
            keep -= 1


def _backend(tokenizer: Any, *, max_length: int, lowercase: bool) -> Any:
    """The fast part of a tokenizer, set to cut and not to pad."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    if lowercase:
        rest = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    backend.no_padding()
    backend.enable_truncation(max_length, direction="right")
    return backend


def padded(rows: Sequence[Sequence[int]], *, value: int, width: int, left: bool) -> np.ndarray:
    """int64 `[B, width]` of rows of unlike lengths, filled up with a value on one side."""
    array = np.full((len(rows), width), value, dtype=np.int64)
    for place, row in enumerate(rows):
        if left:
            array[place, width - len(row) :] = row
        else:
            array[place, : len(row)] = row
    return array
