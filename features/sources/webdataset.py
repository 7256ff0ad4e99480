"""WebDataset: tar archives whose files of one base name are a row, as img2dataset writes them.

https://github.com/webdataset/webdataset: a file's name up to the first dot after the last slash
is the row's key, all after it names the column; files of a row stand together. Columns are
`__key__`, one a file's ending (`jpg`, `txt`, `seg.png`), and `json.NAME` for a field of the row's
`json` (`json.url`, `json.caption`). Endings that are text are text, all else is bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from features.sources.base import CHUNK_BYTES, CHUNK_ROWS, Format, SourceError, Window
from features.sources.jsonl import table_of
from features.sources.opening import compression_of, open_buffered
from features.sources.tar import Member, Tar

KEY = "__key__"
RECORD = "json"
FIELD = f"{RECORD}."
# fmt: off
TEXT = frozenset((
    "caption", "class", "cls", "cls2", "count", "csv", "htm", "html", "id", "index", "inx", "json",
    "jsn", "jsonl", "lang", "label", "md", "srt", "text", "transcript", "transcription", "tsv",
    "txt", "url", "vtt", "xml", "yaml", "yml",
))
# fmt: on
"""Last parts of endings whose files are text."""
ROWS_FOR_NAMES = 1000


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """What the first rows have, and on until all in `wanted` is found or the archive ends."""
    found: dict[str, None] = {}
    rows = 0
    with _open(file) as tar:
        for row, column, member in _parts(tar):
            if row > rows and row >= ROWS_FOR_NAMES and not set(wanted) - set(found):
                break
            rows = row
            found[KEY] = None
            if not column.startswith(FIELD):
                found[column] = None
            if column == RECORD:
                found |= dict.fromkeys(FIELD + name for name in _record(member, file=file))
    return list(found)


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """Only the wanted files of rows in the window are read; the others are passed over."""
    fields = [name for name in columns if name.startswith(FIELD)]
    kept = {name for name in columns if name not in fields}
    rows: list[dict[str, Any]] = []
    size = first = 0
    current, wanted = -1, False
    with _open(file) as tar:
        for row, column, member in _parts(tar):
            if row != current:
                full = len(rows) == CHUNK_ROWS or size >= CHUNK_BYTES
                if rows and (full or row >= window.stop):
                    yield first, _table(rows, columns=columns, file=file, first=first)
                    rows, size = [], 0
                current = row
                wanted = row >= window.start
                if wanted:
                    first = first if rows else row
                    rows.append({KEY: member.name.removesuffix(f".{column}")})
            if not wanted:
                continue
            if column in rows[-1]:
                raise SourceError(
                    f"{file}: {member.name!r} at byte {member.offset} is there twice in its row; "
                    "files of different rows need different names before the first dot"
                )
            if column == RECORD and fields:
                data, record = _read_record(member, file=file)
                rows[-1] |= {FIELD + name: value for name, value in record.items()}
                rows[-1][column] = data if column in kept else None
                size += len(data)
            elif column in kept:
                rows[-1][column] = member.read()
                size += member.size
            else:
                rows[-1][column] = None
        if rows:
            yield first, _table(rows, columns=columns, file=file, first=first)


@contextmanager
def _open(file: str) -> Iterator[Tar]:
    seekable = compression_of(file) is None
    with open_buffered(file) as opened:
        size = None
        if seekable:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(0)
        yield Tar(opened, file=file, seekable=seekable, size=size)


def _parts(tar: Tar) -> Iterator[tuple[int, str, Member]]:
    """Each file with the number of its row and the name of its column."""
    row, key = -1, None
    for member in tar.members():
        folder, slash, name = member.name.rpartition("/")
        stem, dot, ending = name.partition(".")
        if not dot or not stem or _is_about_the_archive(member.name):
            continue
        if key != (found := folder + slash + stem):
            row, key = row + 1, found
        member.name = f"{found}.{ending.lower()}"
        yield row, ending.lower(), member


def _is_about_the_archive(name: str) -> bool:
    """Whether a file is no part of a row: a folder's or file's name like `__meta__`."""
    return any(part.startswith("__") and part.endswith("__") for part in name.split("/"))


def _record(member: Member, *, file: str) -> dict[str, Any]:
    return _read_record(member, file=file)[1]


def _read_record(member: Member, *, file: str) -> tuple[bytes, dict[str, Any]]:
    data = member.read()
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{file}: {member.name!r} at byte {member.offset} is not JSON: {error}"
        ) from error
    return data, record if isinstance(record, dict) else {}


def _table(
    rows: Sequence[dict[str, Any]], *, columns: Sequence[str], file: str, first: int
) -> pa.Table:
    fields = [name for name in columns if name.startswith(FIELD)]
    parsed = table_of(rows, columns=fields, file=file, first=first)
    arrays = {}
    for name in columns:
        if name in fields:
            arrays[name] = parsed[name]
        elif name == KEY:
            arrays[name] = _text([row[KEY].encode(errors="surrogateescape") for row in rows])
        else:
            values = [row.get(name) for row in rows]
            is_text = name.rpartition(".")[2] in TEXT
            arrays[name] = _text(values) if is_text else pa.array(values, pa.binary())
    return pa.table(arrays)


def _text(values: Sequence[bytes | None]) -> pa.Array:
    """Text, or bytes as they are if some of it is not UTF-8."""
    array = pa.array(values, pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        return array


FORMAT = Format(suffixes=(".tar",), read=read, names=names, sparse=True, text_is_bytes=True)
