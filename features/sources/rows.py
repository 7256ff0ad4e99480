"""Rows of a table read again by position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.sources.agreement import together
from features.sources.base import SourceError, Window
from features.sources.formats import FORMATS
from features.sources.source import Source, read_file


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Rows `start` to `stop` (exclusive) of a file of the source, counted from 0."""

    file: int
    start: int
    stop: int


def rows_in_source(ranges: Sequence[RowRange], rows: Sequence[int]) -> list[RowRange]:
    """Where some rows of a shard, counted within it and ascending, stand in the source."""
    starts = np.cumsum([0, *(part.stop - part.start for part in ranges)])
    found: list[RowRange] = []
    for row in rows:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        file, at = ranges[place].file, ranges[place].start + row - int(starts[place])
        if found and (found[-1].file, found[-1].stop) == (file, at):
            found[-1] = RowRange(file=file, start=found[-1].start, stop=at + 1)
        else:
            found.append(RowRange(file=file, start=at, stop=at + 1))
    return found


class RowReader:
    """Reads runs of rows of some columns; runs in ascending order cost one pass over a file.

    What lies between runs is passed over as cheaply as the format allows: by row group in
    Parquet, by file in an archive, by line in JSONL. A run that begins before the last one
    ended opens the file again. `text` is as in `Source.scan`; all columns if it is not given.
    """

    def __init__(
        self, source: Source, *, columns: Sequence[str], text: Collection[str] | None = None
    ) -> None:
        self.source = source
        self.columns = list(columns)
        self.text = self.columns if text is None else text
        self._file = -1
        self._chunks: Iterator[tuple[int, pa.Table]] = iter(())
        self._window = Window()
        self._table: pa.Table | None = None
        self._first = 0

    def read(self, ranges: Sequence[RowRange]) -> pa.Table:
        """The rows of all ranges, in their order. SourceError if a file has become shorter."""
        parts = [(wanted.file, part) for wanted in ranges for part in self._parts(wanted)]
        return together(
            [part for _, part in parts],
            files=[self.source.path_of(file) for file, _ in parts],
            text_is_bytes=FORMATS[self.source.format].text_is_bytes,
        )

    def _parts(self, wanted: RowRange) -> Iterator[pa.Table]:
        if wanted.file != self._file or wanted.start < self._first:
            self._file, self._table, self._first = wanted.file, None, 0
            self._window = Window()
            self._chunks = read_file(
                self.source,
                number=wanted.file,
                columns=self.columns,
                text=self.text,
                window=self._window,
            )
        position = wanted.start
        while position < wanted.stop:
            end = self._first + self._table.num_rows if self._table is not None else -1
            if self._table is None or position >= end:
                self._window.start, self._window.stop = position, wanted.stop
                try:
                    following = next(self._chunks, None)
                except BaseException:
                    self._file = -1  # to be opened again, if it is read again
                    raise
                if following is None:
                    self._file = -1
                    raise SourceError(
                        f"{self.source.path_of(wanted.file)} has fewer than {wanted.stop} rows, "
                        "which it had when the job was planned; leave the table alone while it "
                        "is read, and run again"
                    )
                self._first, self._table = following
                continue
            count = min(wanted.stop, end) - position
            yield self._table.slice(position - self._first, count)
            position += count
