"""What stands for a payload: its key, equal only if the payload is, made without decoding it."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from features import payloads, s3
from features.columns import Cut, PayloadColumns
from features.decoders.base import BadPayload
from features.fingerprint import DIGEST_BYTES
from features.persistence import persist
from features.sources import SourceError
from features.storage import stat_uri

ASKING = s3.CONNECTIONS
"""Payloads whose files are asked for at once while keys are made: as many as S3's client has
connections."""


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
            uri = columns.kind != "text" or columns.uri
            return uri and not payloads.is_inline(value)
        case tuple() if columns.kind != "table":
            return any(depends_on_files(cell, columns=columns) for cell in value)
    return False


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
    if payloads.is_inline(uri):
        try:
            return _hash(b"inline", payloads.inline_bytes(uri))
        except BadPayload:
            return _hash(b"absent", uri.encode())
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
