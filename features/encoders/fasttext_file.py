"""fastText's own model file (`.bin`): words, and n-grams of letters for words that it lacks.

Format and hashing as in github.com/facebookresearch/fastText, `src/fasttext.cc` (signModel,
saveModel), `src/dictionary.cc` (save, hash, computeSubwords) and `src/densematrix.cc` (save).
Bojanowski et al., "Enriching Word Vectors with Subword Information" (TACL 2017).
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np

MAGIC = struct.pack("<i", 793712314)
VERSIONS = (11, 12)
END_OF_SENTENCE = "</s>"
"""The one word that has no n-grams."""
_SUPERVISED = 3
_ARGUMENTS = struct.Struct("<12id")
"""dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn, lrUpdateRate, t."""
_SIZES = struct.Struct("<3i2q")
"""Words and labels, words, labels; tokens that were read, n-grams that are kept (-1: all)."""


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """Which n-grams of letters a word has, and in which of `buckets` rows each falls."""

    shortest: int
    longest: int
    buckets: int

    def rows(self, word: str) -> list[int]:
        """Rows among those of the n-grams, in fastText's order."""
        if word == END_OF_SENTENCE or self.buckets == 0:
            return []
        return list(self._hashes(f"<{word}>"))

    def _hashes(self, word: str) -> Iterator[int]:
        letters = [letter.encode("utf-8", "replace") for letter in word]
        for start in range(len(letters)):
            value = 2166136261  # FNV-1a, of which an n-gram extends the one before it
            for length, letter in enumerate(letters[start : start + self.longest], start=1):
                for byte in letter:
                    # The original takes bytes as signed; their sign is part of what is hashed.
                    value ^= byte | 0xFFFFFF00 if byte > 127 else byte
                    value = value * 16777619 & 0xFFFFFFFF
                at_an_end = start == 0 or start + length == len(letters)
                if length >= self.shortest and not (length == 1 and at_an_end):
                    yield value % self.buckets


class FastTextTable:
    """The words of a model; see `word_files.WordTable`. The vectors stay in the mapped file."""

    def __init__(
        self, places: Mapping[str, int], matrix_ND: np.ndarray, *, words: int, ngrams: Ngrams
    ) -> None:
        self.places = places
        self.dim = int(matrix_ND.shape[1])
        self._matrix_ND, self._words, self._ngrams = matrix_ND, words, ngrams
        self._names = {place: word for word, place in places.items()}
        self._rows = functools.lru_cache(maxsize=1 << 16)(self._rows_of)

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        """The mean of a word's own vector and those of its n-grams."""
        rows = np.empty((len(places), self.dim), dtype=np.float32)
        for row, place in enumerate(places):
            rows[row] = self._mean([place, *self._rows(self._names[place])])
        return rows

    def spelled(self, word: str) -> np.ndarray | None:
        """The mean of the vectors of its n-grams; None if it has none."""
        rows = self._rows(word)
        return self._mean(rows) if rows else None

    def _rows_of(self, word: str) -> tuple[int, ...]:
        return tuple(self._words + row for row in self._ngrams.rows(word))

    def _mean(self, rows: Sequence[int]) -> np.ndarray:
        mean: np.ndarray = self._matrix_ND[list(rows)].mean(axis=0, dtype=np.float32)
        return mean


def read_model(file: IO[bytes], *, path: str, most: int | None) -> FastTextTable:
    """The words of a model file, or the first `most`; see `word_files.read_words`.

    Raises ValueError for a quantised model, an unknown version and a file that is cut short.
    """
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read(data, path=path, most=most)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{path} is cut short, in its words") from error


def _read(data: mmap.mmap, *, path: str, most: int | None) -> FastTextTable:
    (version,) = struct.unpack_from("<i", data, 4)
    if version not in VERSIONS:
        raise ValueError(f"{path} is of version {version} of fastText's format, not 11 or 12")
    at = 8
    arguments = _ARGUMENTS.unpack_from(data, at)
    at += _ARGUMENTS.size
    dim, model, (buckets, shortest, longest) = arguments[0], arguments[7], arguments[8:11]
    if version == 11 and model == _SUPERVISED:
        longest = 0  # as fastText itself reads models of that time
    entries, words, _, _, kept = _SIZES.unpack_from(data, at)
    at += _SIZES.size
    places: dict[str, int] = {}
    for place in range(entries):
        end = data.find(b"\0", at)
        if end < 0:
            raise IndexError
        if place < words and (most is None or place < most):
            places.setdefault(data[at:end].decode("utf-8", "replace"), place)
        at = end + 1 + 8 + 1  # how often it was read, and whether it is a label
    if kept >= 0:
        at += 8 * kept
    if data[at] or kept >= 0:
        raise ValueError(
            f"{path} is a quantised fastText model (.ftz), which keeps no vectors of words; use "
            "the .bin that it was made from"
        )
    rows, width = struct.unpack_from("<2q", data, at + 1)
    at += 1 + 16
    if width != dim or rows < words:
        raise ValueError(
            f"{path} is damaged: {rows} vectors of {width} numbers for {words} words of {dim}"
        )
    if at + 4 * rows * width > len(data):
        raise ValueError(f"{path} is cut short, in its vectors")
    matrix_ND = np.frombuffer(data, "<f4", rows * width, at).reshape(rows, width)
    ngrams = Ngrams(
        shortest=shortest, longest=longest, buckets=min(buckets, rows - words) if longest else 0
    )
    return FastTextTable(places, matrix_ND, words=words, ngrams=ngrams)
