"""Lines of JSON (https://jsonlines.org), UTF-8, plain or compressed; blank lines are passed over.

A field that a record does not have is null there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from features.sources.base import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    LONGEST_RECORD,
    Format,
    SourceError,
    Window,
)
from features.sources.opening import open_buffered

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """The fields of the first records, and on until all in `wanted` are found or the file ends."""
    found: dict[str, None] = {}
    with open_buffered(file) as opened:
        for row, line in enumerate(_lines(opened, file=file)):
            found |= dict.fromkeys(_record(line, file=file, row=row))
            if row >= CHUNK_ROWS and not set(wanted) - set(found):
                break
    return list(found)


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """Lines before the window are counted and not parsed."""
    rows: list[dict[str, Any]] = []
    size = first = 0
    with open_buffered(file) as opened:
        for row, line in enumerate(_lines(opened, file=file)):
            if rows and (len(rows) == CHUNK_ROWS or size >= CHUNK_BYTES or row >= window.stop):
                yield first, table_of(rows, columns=columns, file=file, first=first)
                rows, size = [], 0
            if row >= window.start:
                first = first if rows else row
                rows.append(_record(line, file=file, row=row))
                size += len(line)
        if rows:
            yield first, table_of(rows, columns=columns, file=file, first=first)


def table_of(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], file: str, first: int
) -> pa.Table:
    """Records as a table; SourceError, with the row, for a column whose values differ in type."""
    arrays = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError) as error:
            last = first + len(rows) - 1
            raise SourceError(
                f"{file}: column {name!r} holds values of several types, or some that no type "
                f"holds, in records {first + 1} to {last + 1}: {error}"
            ) from error
    return pa.table(arrays)


def _lines(opened: BinaryIO, *, file: str) -> Iterator[bytes]:
    for number, line in enumerate(iter(partial(opened.readline, LONGEST_RECORD + 1), b"")):
        if len(line) > LONGEST_RECORD:
            raise SourceError(
                f"{file}: line {number + 1} is longer than {LONGEST_RECORD >> 20} MiB; keep large "
                "payloads as files, or in Parquet"
            )
        if number == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.isspace():
            yield line


def _record(line: bytes, *, file: str, row: int) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise SourceError(f"{file}: record {row + 1} is not UTF-8: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise SourceError(f"{file}: record {row + 1} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise SourceError(f"{file}: record {row + 1} is not a JSON object")
    return record


FORMAT = Format(suffixes=(".jsonl", ".ndjson"), read=read, names=names, sparse=True)
