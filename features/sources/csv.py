"""CSV as RFC 4180 has it, in UTF-8 with a header, plain or compressed.

An unquoted empty field is null; all else is itself. CSV has no types: columns that are not
asked for as text are whole numbers, numbers, booleans or text, whichever all of a file's values
are read as.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from features.sources.agreement import widest
from features.sources.base import (
    LONGEST_RECORD,
    Format,
    SourceError,
    Window,
    refuse_lacking,
    slices,
)
from features.sources.opening import open_buffered, open_stream

BLOCKS = (2**22, LONGEST_RECORD)
"""Bytes parsed at once: few at first, and as many as a record may have where one is longer."""
BYTE_ORDER_MARK = "\ufeff"
GUESSES = (pa.int64(), pa.float64(), pa.bool_())


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """The columns by the header; none if there are no rows."""
    with open_buffered(file) as opened:
        header = _header(opened, file=file)
        return header if any(not line.isspace() for line in opened) else []


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """Every record is parsed, since a line may be inside quotes; the wanted columns are kept."""
    types: dict[str, pa.DataType] = {
        name: pa.string() if name in text else pa.null() for name in columns
    }
    with open_buffered(file) as opened:
        refuse_lacking(file, columns=columns, found=_header(opened, file=file))
    done = 0
    for block in BLOCKS:
        first = 0
        try:
            with _open(file, columns=columns, block=block) as reader:
                for batch in reader:
                    end = first + batch.num_rows
                    if end > done:
                        table = pa.Table.from_batches([batch.slice(max(0, done - first))])
                        start = max(first, done)
                        # What is passed over has a say in the types, too.
                        table = _typed(table, types=types, file=file, first=start)
                    if end > max(done, window.start):
                        yield from slices(table, first=start, window=window)
                    first = end
                    done = max(done, end)
                return
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
    raise SourceError(
        f"{file}: a record after row {done} is longer than {LONGEST_RECORD >> 20} MiB; "
        "a quote that is not closed makes one of all that follows"
    )


def _header(opened: BinaryIO, *, file: str) -> list[str]:
    """The names of the columns; the file is left at the first record."""
    lines = (line.decode() for line in iter(opened.readline, b"") if not line.isspace())
    try:
        header = next(csv.reader(lines), [])
    except csv.Error as error:
        raise SourceError(f"{file}: the header cannot be read as csv: {error}") from error
    return [name.removeprefix(BYTE_ORDER_MARK) if i == 0 else name for i, name in enumerate(header)]


def _open(file: str, *, columns: Sequence[str], block: int) -> pyarrow.csv.CSVStreamingReader:
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types={name: pa.string() for name in columns},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return pyarrow.csv.open_csv(
        open_stream(file),
        read_options=pyarrow.csv.ReadOptions(block_size=block),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _typed(table: pa.Table, *, types: dict[str, pa.DataType], file: str, first: int) -> pa.Table:
    """The columns as the types so far or wider ones, which are kept in `types`."""
    found = {}
    for name in table.column_names:
        column, known = table[name], types[name]
        if not pa.types.is_string(known):
            column = _guessed(column)
            wide = widest(known, column.type)
            if wide is None:
                raise SourceError(
                    f"{file}: column {name!r} holds {column.type} in or after row {first} (counted "
                    f"from 0), and {known} before; make its values alike, or keep the table as "
                    "Parquet, which has types"
                )
            types[name] = wide
            column = column.cast(wide)
        found[name] = column
    return pa.table(found)


def _guessed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as the narrowest type that holds all of it."""
    if column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column))])
    trimmed = pc.utf8_trim_whitespace(column)
    for guess in GUESSES:
        try:
            return trimmed.cast(guess)
        except pa.ArrowInvalid:
            continue
    return column


FORMAT = Format(suffixes=(".csv",), read=read, names=names)
