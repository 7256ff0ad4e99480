"""The user's table: which files it is made of, a streaming scan, and rows read again by position.

Reading is by file and in order. A scan holds one chunk of rows in memory, whatever the
table's size; `RowReader` reads a run of rows and keeps its place, so that runs asked for in
ascending order cost one pass over a file in all.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.fingerprint import nearest_hint

CHUNK_ROWS = 8192
CSV_BLOCK_BYTES = 2**26
"""How much of a CSV file is parsed at once; no record may be longer."""
SUFFIXES = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "jsonl": (".jsonl", ".ndjson"),
}
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")


class SourceError(ValueError):
    """The table cannot be read as the configuration says; the message is for its author."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table's files in their order, all of one format."""

    files: tuple[str, ...]
    format: str
    folder: str
    """Folder that relative paths in the table's cells start from."""

    def columns(self, *, wanted: Collection[str] = ()) -> list[str]:
        """Names of the columns: those of the first file that is not empty.

        Lines of JSON name their fields one by one; they are read on until all in `wanted` are
        found, or to the end.
        """
        found: dict[str, None] = {}
        for file in self.files:
            for _, table in _read(file, format=self.format, columns=None):
                found |= dict.fromkeys(table.column_names)
                if self.format != "jsonl" or not set(wanted) - set(found):
                    return list(found)
        return list(found)

    def scan(self, *, columns: Sequence[str], text: Collection[str] = ()) -> Iterator[Chunk]:
        """All rows in order, in chunks of some thousand rows.

        Columns in `text` are not guessed at in a format without types (CSV): `007` stays so.
        """
        for number, file in enumerate(self.files):
            for first, table in _read(file, format=self.format, columns=columns, text=text):
                yield Chunk(file=number, first_row=first, table=table)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive rows of one file."""

    file: int
    first_row: int
    table: pa.Table


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Rows `start` to `stop` (exclusive) of a file of the source, counted from 0."""

    file: int
    start: int
    stop: int


class RowReader:
    """Reads runs of rows of some columns; runs in ascending order cost one pass over a file.

    A run that begins before the last one ended opens the file again: at its row group in
    Parquet, at its beginning in the other formats.
    """

    def __init__(
        self, source: Source, *, columns: Sequence[str], text: Collection[str] | None = None
    ) -> None:
        """`text` as for `Source.scan`; all columns if it is not given."""
        self.source = source
        self.columns = list(columns)
        self.text = list(columns if text is None else text)
        self._file = -1
        self._chunks: Iterator[tuple[int, pa.Table]] = iter(())
        self._table: pa.Table | None = None
        self._first = 0

    def read(self, ranges: Sequence[RowRange]) -> pa.Table:
        """The rows of all ranges, in their order. SourceError if a file has become shorter."""
        parts = [part for wanted in ranges for part in self._parts(wanted)]
        return pa.concat_tables(parts, promote_options="permissive")

    def _parts(self, wanted: RowRange) -> Iterator[pa.Table]:
        if wanted.file != self._file or wanted.start < self._first:
            self._file, self._table = wanted.file, None
            self._chunks = _read(
                self.source.files[wanted.file],
                format=self.source.format,
                columns=self.columns,
                text=self.text,
                skip=wanted.start,
            )
        position = wanted.start
        while position < wanted.stop:
            end = self._first + self._table.num_rows if self._table is not None else -1
            if self._table is None or position >= end:
                following = next(self._chunks, None)
                if following is None:
                    raise SourceError(
                        f"{self.source.files[wanted.file]} has fewer than {wanted.stop} rows, "
                        "which it had when the job was planned; leave the table alone while it "
                        "is read, and run again"
                    )
                self._first, self._table = following
                continue
            count = min(wanted.stop, end) - position
            yield self._table.slice(position - self._first, count)
            position += count


def open_source(path: str, *, folder: str, format: str | None = None) -> Source:
    """Find the files of a table; SourceError, with what to do, if there are none.

    `path` is a file, a folder or a glob, relative to `folder`. Files are ordered by name.
    """
    full = os.path.join(folder, path)
    if os.path.isfile(full):
        files = [full]
        base = os.path.dirname(full)
    elif os.path.isdir(full):
        known = SUFFIXES[format] if format else sum(SUFFIXES.values(), ())
        files = sorted(
            entry.path
            for entry in os.scandir(full)
            if entry.is_file() and _bare(entry.name).endswith(known)
        )
        base = full
        if not files:
            raise SourceError(f"{full} has no files that end in {', '.join(known)}")
    else:
        files = sorted(glob.glob(full, recursive=True))
        base = _folder_of_glob(full)
        if not files:
            raise SourceError(_not_found(full))
    formats = {format or _format_of(file) for file in files}
    if len(formats) > 1:
        raise SourceError(f"{full}: files of several formats: {', '.join(sorted(formats))}")
    return Source(files=tuple(files), format=formats.pop(), folder=base)


def _folder_of_glob(path: str) -> str:
    """The deepest folder that all that a glob matches lies in."""
    folder = os.path.dirname(path)
    while any(character in folder for character in "*?["):
        folder = os.path.dirname(folder)
    return folder


def _not_found(path: str) -> str:
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        return f"{path} does not exist: there is no folder {folder}"
    return f"{path} does not exist; {nearest_hint(name, os.listdir(folder))}".rstrip("; ")


def _format_of(file: str) -> str:
    for name, suffixes in SUFFIXES.items():
        if _bare(file).endswith(suffixes):
            return name
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise SourceError(f"{file}: the name does not tell the format; it may end in {known}, or set "
                      "`dataset.format`")  # fmt: skip


def _bare(name: str) -> str:
    """A file's name without the ending of a compression."""
    stem, ending = os.path.splitext(name)
    return stem if ending in COMPRESSIONS else name


def _read(
    file: str,
    *,
    format: str,
    columns: Sequence[str] | None,
    text: Collection[str] = (),
    skip: int = 0,
) -> Iterator[tuple[int, pa.Table]]:
    """Chunks of a file and the row each begins at, from the one with row `skip`, or sooner."""
    readers = {
        "parquet": lambda: _read_parquet(file, columns=columns, skip=skip),
        "csv": lambda: _read_csv(file, columns=columns, text=text),
        "jsonl": lambda: _read_jsonl(file, columns=columns),
    }
    try:
        for first, table in readers[format]():
            lacking = [name for name in columns or () if name not in table.column_names]
            if lacking:
                raise SourceError(f"{file} has no column {', '.join(map(repr, lacking))}")
            yield first, table
    except (pa.ArrowException, UnicodeError) as error:
        raise SourceError(f"{file}: cannot be read as {format}: {error}") from error


def _read_parquet(
    file: str, *, columns: Sequence[str] | None, skip: int
) -> Iterator[tuple[int, pa.Table]]:
    with pq.ParquetFile(file) as parquet:
        group, first = 0, 0
        while group < parquet.num_row_groups:
            rows = parquet.metadata.row_group(group).num_rows
            if first + rows > skip:
                break
            group, first = group + 1, first + rows
        for batch in parquet.iter_batches(
            batch_size=CHUNK_ROWS,
            row_groups=list(range(group, parquet.num_row_groups)),
            columns=None if columns is None else list(columns),
        ):
            yield first, pa.Table.from_batches([batch])
            first += batch.num_rows


def _read_csv(
    file: str, *, columns: Sequence[str] | None, text: Collection[str]
) -> Iterator[tuple[int, pa.Table]]:
    """RFC 4180 in UTF-8 with a header; an unquoted empty field is null, all else is itself."""
    convert = pyarrow.csv.ConvertOptions(
        include_columns=None if columns is None else list(columns),
        column_types={name: pa.string() for name in text},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    read = pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES)
    first = 0
    with (
        pa.input_stream(file, compression="detect") as stream,
        pyarrow.csv.open_csv(
            stream, read_options=read, convert_options=convert, parse_options=parse
        ) as reader,
    ):
        for batch in reader:
            yield first, pa.Table.from_batches([batch])
            first += batch.num_rows


def _read_jsonl(file: str, *, columns: Sequence[str] | None) -> Iterator[tuple[int, pa.Table]]:
    """One JSON object a line (https://jsonlines.org), UTF-8; a field that is not there is null."""
    with pa.input_stream(file, compression="detect") as stream:
        lines = (line for line in io.TextIOWrapper(stream, "utf-8", newline="\n") if line.strip())
        first = 0
        while chunk := list(islice(lines, CHUNK_ROWS)):
            rows = [_record(line, file=file, number=n) for n, line in enumerate(chunk, first + 1)]
            names = columns if columns is not None else dict.fromkeys(k for r in rows for k in r)
            yield (
                first,
                pa.table({name: [row.get(name) for row in rows] for name in names}),
            )
            first += len(rows)


def _record(line: str, *, file: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}: record {number} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise SourceError(f"{file}: record {number} is not a JSON object")
    return record
