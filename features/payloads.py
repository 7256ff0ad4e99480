"""Payloads: bytes fetched from where they are, and decoded into arrays, or a reason why not.

A payload that is at fault raises `BadPayload`, and its sample goes on without it. A fault of
the medium (network, disk) is tried again and then raised as OSError, since it would blame the
sample for what may pass.
"""

from __future__ import annotations

import base64
import binascii
import errno
import importlib
import os
import re
import stat
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from features import s3
from features.columns import Cut, PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders.base import Kind
from features.storage import read_uri, stat_uri

RETRY_SECONDS = (0.2, 1.0, 3.0)
"""Waits before each new attempt to read a file."""

OF_THE_FILE = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EISDIR: "it is a folder, not a file",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ENAMETOOLONG: "the name is too long for a file",
    errno.ELOOP: "its links lead in a circle",
}
"""Errors that will be the same the next time; all others are the medium's."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
INLINE = "data:"
"""How a URI begins that is its own file: RFC 2397."""
SHOWN = 200
"""Characters of a URI that a reason repeats."""


def open_payload(
    value: Any,
    *,
    columns: PayloadColumns,
    folder: str,
    limits: Limits = DEFAULT_LIMITS,
    pillow: bool = False,
) -> Any:
    """A payload, fetched if it stands behind a URI, and decoded into what an encoder prepares.

    An image becomes one of Pillow's if `pillow`. Raises BadPayload for a payload that cannot be
    used; OSError for a fault of the medium.
    """
    start, end = 0.0, None
    if isinstance(value, Cut):
        start, end, value = value.start, value.end, value.whole

    def fetched(cell: Any) -> Any:
        inline = columns.kind == "table" or (columns.kind == "text" and not columns.uri)
        if inline or not isinstance(cell, str):
            return cell
        return fetch(cell, base=folder, limits=limits)

    if isinstance(value, tuple):
        value = tuple(fetched(cell) for cell in value)
        return decode_row(value, kind=columns.kind, names=columns.columns, limits=limits)
    return decode(
        fetched(value), kind=columns.kind, start=start, end=end, limits=limits, pillow=pillow
    )


def fetch(uri: str, *, base: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes behind a path (relative to `base`, or absolute), a file:// or an s3:// URI, or in
    a `data:` URI.

    Raises BadPayload if there is no such file or object, or if it is a folder, empty or too
    large, which an object is found to be before it is fetched; OSError if the medium fails four
    times in a row, or the server as often as `s3.ATTEMPTS` says, or if it refuses the
    credentials; ValueError for a scheme that is not supported.
    """
    if is_inline(uri):
        return inline_bytes(uri, limits=limits)
    place = locate(uri, base=base)
    if place.startswith(s3.SCHEME):
        return _read_object(place, limits=limits)
    for wait in (*RETRY_SECONDS, None):
        try:
            return _read(place, uri=uri, limits=limits)
        except OSError as error:
            if error.errno in OF_THE_FILE:
                reason = f"{OF_THE_FILE[error.errno]}: {shown(uri)}"
                raise BadPayload(reason, stage="fetch") from error
            if wait is None:
                raise
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def is_inline(uri: str) -> bool:
    """Whether a URI is its own file, as `data:image/png;base64,iVBORw0KGgo=` is."""
    return uri[: len(INLINE)].lower() == INLINE


def inline_bytes(uri: str, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The bytes in a `data:[TYPE];base64,…` URI (RFC 2397, in base64 alone); BadPayload if there
    are none, or too many. The type is of no account: a file says itself what it is.
    """
    head, comma, text = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadPayload(
            f"a data URI has the form data:TYPE;base64,CONTENT: {shown(uri)}", stage="fetch"
        )
    if len(text) // 4 * 3 > limits.bytes:
        raise BadPayload(f"a data URI of more than {limits.bytes:,} bytes", stage="fetch")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPayload(f"what a data URI holds is not base64: {error}", stage="fetch") from error
    if not data:
        raise BadPayload(f"the data URI holds nothing: {shown(uri)}", stage="fetch")
    return data


def shown(uri: str) -> str:
    """A URI as a reason repeats it: its beginning, if it is long."""
    return repr(uri if len(uri) <= SHOWN else f"{uri[:SHOWN]}...")


def locate(uri: str, *, base: str) -> str:
    """The s3:// URI of a payload, or its path: no URI, but what a file is opened by as it stands.

    `base` may itself be an s3:// or a file:// URI. The path is absolute if `base` or `uri` is.
    BadPayload or ValueError as `fetch` raises them.
    """
    if _SCHEME.match(uri) is None and _SCHEME.match(base) is not None:
        if not uri.strip():
            raise BadPayload(f"this is not the path of a file: {shown(uri)}", stage="fetch")
        if base.startswith(s3.SCHEME):
            uri = f"{base.rstrip('/')}/{uri}"
        else:
            base = local_path(base, base="")
    if not uri.startswith(s3.SCHEME):
        return local_path(uri, base=base)
    bucket, _, key = uri.removeprefix(s3.SCHEME).partition("/")
    if not s3.is_bucket(bucket) or not key or "\0" in key:
        raise BadPayload(f"this is not of the form s3://BUCKET/KEY: {shown(uri)}", stage="fetch")
    return uri


def local_path(uri: str, *, base: str) -> str:
    """Where a URI's file lies; BadPayload or ValueError as `fetch` raises them."""
    scheme = _SCHEME.match(uri)
    if scheme is None:
        path = uri
    elif scheme[1].lower() == "file":
        parts = urllib.parse.urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{shown(uri)} names the host {shown(parts.netloc)}; a file:// URI of this "
                "machine has three slashes, as in file:///data/a.png"
            )
        path = urllib.parse.unquote(parts.path)
    else:
        raise ValueError(
            f"{shown(uri)}: payloads on {scheme[1][:SHOWN]}:// are not supported; give paths "
            "relative to the table's folder, absolute paths, file://, s3:// or data: URIs"
        )
    if not path.strip() or "\0" in path:
        raise BadPayload(f"this is not the path of a file: {shown(uri)}", stage="fetch")
    return os.path.join(base, path)


def _read_object(uri: str, *, limits: Limits) -> bytes:
    try:
        size = stat_uri(uri).size
        if size > limits.bytes:
            raise BadPayload(f"the object is too large: {shown(uri)}", stage="fetch")
        data = read_uri(uri) if size else b""
    except FileNotFoundError as error:
        raise BadPayload(f"there is no such object: {shown(uri)}", stage="fetch") from error
    if not data:
        raise BadPayload(f"the object is empty: {shown(uri)}", stage="fetch")
    return data


def _read(path: str, *, uri: str, limits: Limits) -> bytes:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise BadPayload(f"it is not a regular file: {shown(uri)}", stage="fetch")
    if status.st_size > limits.bytes:
        raise BadPayload(f"the file is too large: {shown(uri)}", stage="fetch")
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < status.st_size:
        raise OSError(errno.EIO, f"it ended after {len(data)} of {status.st_size} bytes", path)
    if not data:
        raise BadPayload(f"the file is empty: {shown(uri)}", stage="fetch")
    return data


def decode(
    payload: Any,
    *,
    kind: Kind,
    start: float = 0.0,
    end: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
    pillow: bool = False,
) -> Any:
    """What an encoder's `prepare` takes for the kind; see `features.encoders.Encoder`.

    `payload` is a text, the bytes of a file, or a list of numbers; of a sound or video, the part
    from second `start` to `end` is taken. Raises BadPayload for what cannot be decoded whole.
    """
    if kind not in ("text", "series", "vector") and isinstance(payload, str):
        raise TypeError(f"{kind} is decoded from bytes, not from text; fetch() its URI first")
    if isinstance(payload, bytes) and not payload:
        raise BadPayload(f"empty {kind}", stage="decode")
    if isinstance(payload, bytes) and len(payload) > limits.bytes:
        raise BadPayload(f"{kind} of more than {limits.bytes:,} bytes", stage="decode")
    options = {"start": start, "end": end} if kind in ("audio", "video") else {}
    decoder = _decoder(kind)
    if pillow and kind == "image":
        return decoder.decode_pillow(payload, limits=limits)
    return decoder.decode(payload, limits=limits, **options)


def decode_row(
    cells: tuple[Any, ...], *, kind: Kind, names: Sequence[str], limits: Limits = DEFAULT_LIMITS
) -> Any:
    """A payload of several cells: the fields of a record, or the channels of a series."""
    return _decoder(kind).decode_row(cells, names=names, limits=limits)


def _decoder(kind: Kind) -> Any:
    """The module of a kind; none is loaded before its first payload comes."""
    return importlib.import_module(f"features.decoders.{kind}")
