"""Files of word vectors: the formats of word2vec, GloVe and fastText, read without their libraries.

word2vec (word2vec.c of code.google.com/archive/p/word2vec): a line `WORDS DIM`, then for each word
its bytes, a blank and DIM little-endian float32 (binary, `.bin`; some writers add a line feed), or
DIM numbers between blanks (text, `.vec`). GloVe's text has no first line. fastText's own `.bin` is
in `fasttext_file`. All may be compressed by gzip. The content tells them apart, not the name.
"""

from __future__ import annotations

import gzip
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Protocol, cast

import numpy as np

from features.encoders import fasttext_file

HEAD_BYTES = 1 << 20
"""What is read of a file to tell its format."""
LONGEST_WORD = 1 << 16
"""Bytes of a word at most; where there are more, the file is of another format."""
_GZIP = b"\x1f\x8b"


class WordTable(Protocol):
    """Words and their vectors."""

    dim: int
    places: Mapping[str, int]
    """Place of each word; of two that are spelled alike, the first."""

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        """float32 `[N, D]`, of the words at some places."""

    def spelled(self, word: str) -> np.ndarray | None:
        """float32 `[D]` of a word that has no place, by its spelling; None if there is no way."""


def read_format(path: str) -> str:
    """`fasttext`, `binary` or `text`; ValueError, naming the file, if it is none of them."""
    with _reading(path) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(fasttext_file.MAGIC):
        return "fasttext"
    line, end, rest = head.partition(b"\n")
    if not end or not line.strip():
        raise ValueError(f"{path} holds no word vectors; {_FORMATS}")
    header = _header(line)
    if header is None:
        _text_row(line, dim=len(line.split()) - 1, where=f"{path}, line 1")
        return "text"
    if 0 in header:
        raise ValueError(f"{path} says that it holds {header[0]} words of {header[1]} numbers")
    try:
        _text_row(rest.partition(b"\n")[0], dim=header[1], where=path)
    except ValueError:
        return "binary"
    return "text"


def read_words(path: str, *, most: int | None = None) -> WordTable:
    """The words of a file, or the first `most` of them.

    Text is read into memory, 4 bytes a number; of the binary formats the words alone, and the
    vectors stay in the file, mapped. A compressed one is first unpacked into a temporary file.
    Raises ValueError, naming the file, if it is cut short or damaged.
    """
    if (found := read_format(path)) == "text":
        with _reading(path) as file:
            return _read_text(file, path=path, most=most)
    with _seekable(path) as file:
        if found == "fasttext":
            return fasttext_file.read_model(file, path=path, most=most)
        return _read_binary(file, path=path, most=most)


class _InMemory:
    """Vectors as one array."""

    def __init__(self, places: Mapping[str, int], matrix_ND: np.ndarray) -> None:
        self.places, self._matrix_ND = places, matrix_ND
        self.dim = int(matrix_ND.shape[1])

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        rows: np.ndarray = self._matrix_ND[np.asarray(places, dtype=np.int64)]
        return rows

    def spelled(self, word: str) -> None:
        return None


class _InFile:
    """Vectors between the words of a file that is mapped."""

    def __init__(
        self, places: Mapping[str, int], data: mmap.mmap, *, offsets: np.ndarray, dim: int
    ) -> None:
        self.places, self.dim = places, dim
        self._data, self._offsets = data, offsets

    def vectors(self, places: Sequence[int]) -> np.ndarray:
        rows = np.empty((len(places), self.dim), dtype=np.float32)
        for row, place in enumerate(places):
            rows[row] = np.frombuffer(self._data, "<f4", self.dim, int(self._offsets[place]))
        return rows

    def spelled(self, word: str) -> None:
        return None


def _read_text(file: IO[bytes], *, path: str, most: int | None) -> WordTable:
    first = file.readline()
    header = _header(first)
    dim = header[1] if header else len(first.split()) - 1
    told = header[0] if header else None
    wanted = min(n for n in (told, most, 1 << 62) if n is not None)
    matrix = np.empty((min(wanted, told or 1 << 16), dim), dtype=np.float32)
    places: dict[str, int] = {}
    rows = 0

    def add(line: bytes, *, number: int) -> None:
        nonlocal rows
        if rows == len(matrix):  # in place, so that there are never two of them
            matrix.resize((rows + rows // 2 + 1, dim), refcheck=False)
        word, values = _text_row(line, dim=dim, where=f"{path}, line {number}")
        matrix[rows] = values
        places.setdefault(_decoded(word), rows)
        rows += 1

    if header is None:
        add(first, number=1)
    for number, line in enumerate(file, start=2):
        if rows == wanted:
            break
        if line.strip():
            add(line, number=number)
    if rows < wanted and told is not None:
        raise ValueError(f"{path} is cut short: it says {told} words, and {rows} are there")
    matrix.resize((rows, dim), refcheck=False)
    return _InMemory(places, matrix)


def _read_binary(file: IO[bytes], *, path: str, most: int | None) -> WordTable:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = data.find(b"\n") + 1
    header = _header(data[:at])
    assert header is not None, "read_format has found one"
    told, dim = header
    count = told if most is None else min(told, most)
    if at + count * (4 * dim + 1) > len(data):
        raise ValueError(
            f"{path} is cut short: {told} words of {dim} numbers do not fit its {len(data)} bytes"
        )
    offsets = np.empty(count, dtype=np.int64)
    places: dict[str, int] = {}
    for place in range(count):
        blank = data.find(b" ", at, at + LONGEST_WORD)
        if blank < 0 or blank + 1 + 4 * dim > len(data):
            raise ValueError(f"{path} is cut short or damaged at word {place} of {told}")
        places.setdefault(_decoded(data[at:blank].lstrip(b"\n")), place)
        offsets[place] = blank + 1
        at = blank + 1 + 4 * dim
    return _InFile(places, data, offsets=offsets, dim=dim)


def _header(line: bytes) -> tuple[int, int] | None:
    """Words and numbers a word, where a first line says so."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _text_row(line: bytes, *, dim: int, where: str) -> tuple[bytes, list[float]]:
    """A word, which may hold blanks, and the numbers after it."""
    parts = line.rsplit(None, dim) if dim > 0 else []
    try:
        if len(parts) != dim + 1:
            raise ValueError
        return parts[0], [float(part) for part in parts[1:]]
    except ValueError:
        raise ValueError(
            f"{where} is not a word and {max(dim, 1)} numbers: {line[:60]!r}; {_FORMATS}"
        ) from None


_FORMATS = (
    "a file of word vectors is word2vec's (binary or text), GloVe's text, or fastText's .vec or "
    ".bin, and may be compressed by gzip"
)


def _decoded(word: bytes) -> str:
    """Some files cut words within a letter; such a word is never looked up."""
    return word.decode("utf-8", "replace")


@contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    """A file to read from beginning to end, unpacked. ValueError if the packing is damaged."""
    with open(path, "rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield cast(IO[bytes], unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is cut short or damaged: {error}") from error


@contextmanager
def _seekable(path: str) -> Iterator[IO[bytes]]:
    """A file to map, unpacked into a temporary one if need be; mapped, it outlives the block."""
    with open(path, "rb") as file, _reading(path) as content:
        if file.read(2) != _GZIP:
            yield content
            return
        with tempfile.TemporaryFile(prefix=f"{os.path.basename(path)}.") as unpacked:
            shutil.copyfileobj(content, unpacked, 1 << 20)
            unpacked.flush()
            yield unpacked
