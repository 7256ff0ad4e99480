"""What all formats share: the error, the rows that are wanted next, and how large a chunk is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from features.fingerprint import nearest_hint

CHUNK_ROWS = 8192
"""Most rows of a chunk."""
CHUNK_BYTES = 2**25
"""About how many bytes a chunk may hold; a single row may be larger."""
LONGEST_RECORD = 2**26
"""Most bytes of a record in CSV or JSONL."""


class SourceError(ValueError):
    """The table cannot be read as the configuration says; the message is for its author."""


@dataclass(kw_only=True)
class Window:
    """The rows of a file that are wanted next: `start` to `stop` (exclusive).

    A reader looks here before each chunk; it may skip what is before `start` and end a chunk at
    `stop`. It does not go back.
    """

    start: int = 0
    stop: int = sys.maxsize


class Read(Protocol):
    """Reads a file forwards: chunks of the columns, and the row at which each begins."""

    def __call__(
        self,
        file: str,
        *,
        folder: str,
        columns: Sequence[str],
        text: Collection[str],
        window: Window,
    ) -> Iterator[tuple[int, pa.Table]]: ...


class Names(Protocol):
    """The columns of a file; none if it has no rows."""

    def __call__(self, file: str, *, folder: str, wanted: Collection[str]) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """How files of one kind are known and read."""

    suffixes: tuple[str, ...]
    read: Read
    names: Names
    sparse: bool = False
    """Whether each row names its own fields, so that a column may begin anywhere, or nowhere."""
    text_is_bytes: bool = False
    """Whether text that is not UTF-8 is given as bytes, for its sample alone to be bad."""


def rows_by_bytes(*, rows: int, size: int) -> int:
    """How many rows make a chunk, where so many rows have so many bytes."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(1, size)))


def slices(
    table: pa.Table, *, first: int, window: Window, size: Callable[[pa.Table], int] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """A table that begins at row `first`, in chunks from where the window begins."""
    nbytes = table.nbytes if size is None else size(table)
    step = rows_by_bytes(rows=table.num_rows, size=nbytes)
    at = max(0, window.start - first)
    while at < table.num_rows:
        yield first + at, table.slice(at, step)
        at = max(at + step, window.start - first)


def refuse_lacking(file: str, *, columns: Sequence[str], found: Sequence[str]) -> None:
    """Raise SourceError for a wanted column that a file does not have, or has twice."""
    for name in columns:
        if name not in found:
            hint = nearest_hint(name, found)
            raise SourceError(
                f"{file} has no column {name!r}; {hint}its columns: {', '.join(found)}"
            )
        if found.count(name) > 1:
            raise SourceError(f"{file} has {found.count(name)} columns {name!r}; name them apart")
