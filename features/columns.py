"""Payloads in a table: which columns hold them, what stands for each, and what becomes of one.

A payload is one cell (a text, bytes, a URI, a list of numbers), a cut of a recording with its
start and end, or several cells side by side (the fields of a record, the channels of a series).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features import payloads, s3
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders.base import Kind
from features.fingerprint import DIGEST_BYTES
from features.number_lists import is_list, number_arrays
from features.persistence import persist
from features.sources import SourceError
from features.storage import stat_uri

NUMBER_KINDS: tuple[Kind, ...] = ("series", "vector")
"""Kinds whose inline payloads are lists of numbers."""
ASKING = s3.CONNECTIONS
"""Payloads whose files are asked for at once while keys are made: as many as S3's client has
connections."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a recording."""

    whole: str | bytes
    start: float = 0.0
    """Seconds from the beginning."""
    end: float | None = None
    """Seconds from the beginning; None for the end of the recording."""


@dataclass(frozen=True, kw_only=True)
class PayloadColumns:
    """Where a modality's payloads stand in a table, and of which kind they are."""

    kind: Kind
    columns: tuple[str, ...]
    """One column, or those whose cells together are one payload."""
    uri: bool = False
    """Whether text cells are URIs of files, and not the text itself."""
    start: str | None = None
    """Column of the second at which a cut begins."""
    end: str | None = None
    """Column of the second at which a cut ends."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, *(name for name in (self.start, self.end) if name))

    @property
    def text_names(self) -> tuple[str, ...]:
        """Columns that a format without types must not guess at: `007` stays so."""
        return () if self.kind == "table" else self.columns

    def payloads(self, table: pa.Table) -> list[Any]:
        """The payload of each row: a cell, a `Cut`, or a tuple of cells; None if it is missing.

        A list of numbers comes as a float64 array, nulls in it as NaN. A row of several columns
        is missing if all its cells are. SourceError for a column of a type that cannot be used.
        """
        cells = [self._cells(table[name], name=name) for name in self.columns]
        starts, ends = (_seconds(table, name=name) for name in (self.start, self.end))
        return self.combine(cells, starts=starts, ends=ends)

    def combine(
        self,
        cells: Sequence[Sequence[Any]],
        *,
        starts: Sequence[float | None],
        ends: Sequence[float | None],
    ) -> list[Any]:
        """The payload of each row, given each column's cells."""
        if self.start is not None or self.end is not None:
            return [
                None if whole is None else Cut(whole=whole, start=start or 0.0, end=end)
                for whole, start, end in zip(cells[0], starts, ends, strict=True)
            ]
        if len(cells) == 1 and self.kind != "table":
            return list(cells[0])
        rows = zip(*cells, strict=True)
        return [None if all(cell is None for cell in row) else row for row in rows]

    def _cells(self, column: pa.ChunkedArray, *, name: str) -> list[Any]:
        values = plain_array(column)
        found = values.type
        if values.null_count == len(values):  # of whatever type, as CSV and pandas make them
            return [None] * len(values)
        if self.kind == "table":
            if pa.types.is_nested(found):
                raise SourceError(
                    f"column {name!r} holds {found}; a table's cells are numbers, text, booleans "
                    "or dates"
                )
            return [None if _is_nan(value) else value for value in values.to_pylist()]
        if self.kind in NUMBER_KINDS and is_list(found):
            return number_arrays(values)
        text = pa.types.is_string(found) or pa.types.is_large_string(found)
        binary = pa.types.is_binary(found) or pa.types.is_large_binary(found)
        if not (text or binary):
            wanted = "paths, URIs or bytes"
            if self.kind == "text":
                wanted = "paths and URIs" if self.uri else "text"
            elif self.kind in NUMBER_KINDS:
                wanted = "lists of numbers, or paths and URIs"
            raise SourceError(f"column {name!r} holds {found}; {self.kind} payloads are {wanted}")
        return list(values.to_pylist())


def read_as_text(payloads: Iterable[PayloadColumns], *, also: Iterable[str]) -> list[str]:
    """Columns that a format without types must not guess at, those of payloads and others.

    The fields of records are none, though they be among the others: a job that embeds them reads
    them as numbers where they are, and all must come out alike.
    """
    read = list(payloads)
    fields = {name for one in read if one.kind == "table" for name in one.columns}
    names = dict.fromkeys([*also, *(name for one in read for name in one.text_names)])
    return [name for name in names if name not in fields]


def payload_key(value: Any, *, columns: PayloadColumns, folder: str, by: str = "stat") -> bytes:
    """What stands for a payload: 16 bytes, equal only if the payload is.

    An inline payload (text, bytes, numbers, a record) stands for itself. One behind a URI is
    known by the URI as the table gives it, its size and its time of change (`by="stat"`), by its
    bytes (`by="content"`), or by the URI alone (`by="uri"`); a file that is not there has a key
    too, another than when it is.
    """
    match value:
        case bytes():
            return _hash(b"inline", value)
        case str():
            if columns.kind == "text" and not columns.uri:
                return _hash(b"inline", value.encode())
            return _uri_key(value, folder=folder, by=by)
        case np.ndarray():
            numbers = np.ascontiguousarray(value, "<f8")
            digest = _array_digest(value.shape)
            digest.update(numbers.nbytes.to_bytes(8, "little"))
            digest.update(numbers.data)
            return digest.digest()
        case Cut():
            whole = payload_key(value.whole, columns=columns, folder=folder, by=by)
            end = math.inf if value.end is None else value.end
            return _hash(b"cut", whole, value.start.hex().encode(), end.hex().encode())
        case tuple() if columns.kind == "table":
            return _hash(b"record", _names_bytes(columns.columns), *map(_cell_bytes, value))
        case tuple():
            keys = [
                b"" if cell is None else payload_key(cell, columns=columns, folder=folder, by=by)
                for cell in value
            ]
            return _hash(b"row", *keys)
    return _hash(b"list", repr(value).encode())


def depends_on_files(value: Any, *, columns: PayloadColumns) -> bool:
    """Whether a payload stands in a file, which may change while the table does not."""
    match value:
        case Cut():
            return depends_on_files(value.whole, columns=columns)
        case str():
            return columns.kind != "text" or columns.uri
        case tuple() if columns.kind != "table":
            return any(depends_on_files(cell, columns=columns) for cell in value)
    return False


def open_payload(
    value: Any, *, columns: PayloadColumns, folder: str, limits: Limits = DEFAULT_LIMITS
) -> Any:
    """A payload, fetched if it stands behind a URI, and decoded into what an encoder prepares.

    Raises BadPayload for one that cannot be used; OSError for a fault of the medium.
    """
    start, end = 0.0, None
    if isinstance(value, Cut):
        start, end, value = value.start, value.end, value.whole

    def fetched(cell: Any) -> Any:
        inline = columns.kind == "table" or (columns.kind == "text" and not columns.uri)
        if inline or not isinstance(cell, str):
            return cell
        return payloads.fetch(cell, base=folder, limits=limits)

    if isinstance(value, tuple):
        value = tuple(fetched(cell) for cell in value)
        return payloads.decode_row(value, kind=columns.kind, names=columns.columns, limits=limits)
    return payloads.decode(fetched(value), kind=columns.kind, start=start, end=end, limits=limits)


def plain_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array without a dictionary encoding."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def as_text(column: pa.ChunkedArray | pa.Array, *, name: str) -> pa.Array:
    """A column of text or numbers as text; SourceError for any other."""
    array = plain_array(column)
    try:
        if pa.types.is_floating(array.type):  # Arrow writes 12345678901.0 as 1.2345678901e+10
            exact = array.cast(pa.float64())
            whole = pc.and_(pc.equal(pc.floor(exact), exact), pc.less(pc.abs(exact), 2.0**63))
            numbers = pc.if_else(whole, exact, pa.scalar(None, pa.float64())).cast(pa.int64())
            return pc.coalesce(numbers.cast(pa.string()), array.cast(pa.string()))
        return array.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SourceError(f"column {name!r} holds {array.type}, not text or numbers") from error


def _seconds(table: pa.Table, *, name: str | None) -> list[float | None]:
    if name is None:
        return [None] * table.num_rows
    try:
        values = plain_array(table[name]).cast(pa.float64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(f"column {name!r} holds {table[name].type}, not seconds") from error
    return [None if _is_nan(value) else value for value in values]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _cell_bytes(cell: Any) -> bytes:
    """A record's cell with its type; a whole float is the integer it equals, as pandas has it."""
    match cell:
        case None:
            return b"-"
        case bool():
            return b"b1" if cell else b"b0"
        case int():
            return f"n{cell}".encode()
        case float():
            return f"n{int(cell)}".encode() if cell.is_integer() else f"f{cell.hex()}".encode()
        case str():
            return b"s" + cell.encode()
        case bytes():
            return b"x" + cell
        case datetime.date() | datetime.time():
            return b"d" + cell.isoformat().encode()
    return b"r" + repr(cell).encode()


def _uri_key(uri: str, *, folder: str, by: str) -> bytes:
    if by == "uri":
        return _hash(b"uri", uri.encode())
    try:
        place = payloads.locate(uri, base=folder)
    except BadPayload:
        return _hash(b"absent", uri.encode())
    except ValueError as error:
        raise SourceError(str(error)) from error
    if place.startswith(s3.SCHEME):
        return _object_key(place, uri=uri, by=by)
    try:
        status = persist(lambda: os.stat(place))
        if by == "content" and stat.S_ISREG(status.st_mode):
            with open(place, "rb") as file:
                digest = hashlib.file_digest(
                    file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)
                )
            return _hash(b"content", digest.digest())
    except OSError as error:
        if error.errno in payloads.OF_THE_FILE:
            return _hash(b"absent", uri.encode())
        raise
    return _hash(b"file", uri.encode(), f"{status.st_size} {status.st_mtime_ns}".encode())


def _object_key(place: str, *, uri: str, by: str) -> bytes:
    """The key of an object in S3; OSError for a fault of the server, or of the credentials.

    An object of other size or etag is another payload, though its name is the same.
    """
    try:
        if by == "content":
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for part in s3.parts(place):
                digest.update(part)
            return _hash(b"content", digest.digest())
        found = stat_uri(place)
    except FileNotFoundError:
        return _hash(b"absent", uri.encode())
    return _hash(b"object", uri.encode(), f"{found.size} {found.tag}".encode())


def payload_keys(
    values: Sequence[Any], *, columns: PayloadColumns, folder: str, by: str = "stat"
) -> list[bytes | None]:
    """The key of each payload, None for one that is missing; see `payload_key`.

    Payloads in files are asked for by `ASKING` threads at once, each of which waits for a disk
    or a server; inline ones are hashed by this one.
    """

    def key(value: Any) -> bytes | None:
        if value is None:
            return None
        return payload_key(value, columns=columns, folder=folder, by=by)

    waiting = by != "uri" and sum(depends_on_files(v, columns=columns) for v in values)
    if not waiting or waiting < 2:
        return [key(value) for value in values]
    # One run of payloads a thread: a task for each costs more than a question to a local disk.
    step = -(-len(values) // min(ASKING, waiting))
    runs = [values[start : start + step] for start in range(0, len(values), step)]
    with ThreadPoolExecutor(max_workers=len(runs)) as pool:
        found = pool.map(lambda run: [key(value) for value in run], runs)
        return [one for run in found for one in run]


@functools.lru_cache(maxsize=64)
def _names_bytes(names: tuple[str, ...]) -> bytes:
    """The columns of a record, which are a part of it: an encoder asks for its fields by name."""
    return json.dumps(names).encode()


@functools.lru_cache(maxsize=1024)
def _begun_array(shape: tuple[int, ...]) -> Any:
    return _begun(b"array", json.dumps(shape).encode())


def _array_digest(shape: tuple[int, ...]) -> Any:
    """The hash of an array of this shape, before its numbers."""
    return _begun_array(shape).copy()


def _hash(*parts: bytes) -> bytes:
    digest: bytes = _begun(*parts).digest()
    return digest


def _begun(*parts: bytes) -> Any:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest
