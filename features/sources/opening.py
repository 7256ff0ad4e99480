"""Files of a table, opened on a disk or in S3, and what it means when one cannot be read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from features.sources.base import SourceError
from features.storage import filesystem_of

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".zst": "zstd",
    ".lz4": "lz4",
    ".tgz": "gzip",
}
"""Endings of compressed files, and what pyarrow calls the compression."""
STREAM_BYTES = 2**22
"""How much is asked for at once, where a request costs a round trip."""
DISK_BYTES = 2**16
"""How much is asked for at once on a disk."""


def is_remote(file: str) -> bool:
    """Whether a file lies behind a network, where each request costs a round trip."""
    return file.startswith("s3://")


def compression_of(file: str) -> str | None:
    """How a file is compressed, by its name; None if it is not."""
    for ending, name in COMPRESSIONS.items():
        if file.endswith(ending):
            return name
    return None


def bare_name(name: str) -> str:
    """A file's name without the ending of a compression."""
    for ending in COMPRESSIONS:
        if name.endswith(ending):
            return name.removesuffix(ending) + (".tar" if ending == ".tgz" else "")
    return name


def open_file(file: str) -> pa.NativeFile:
    """A file to seek and read in."""
    filesystem, path = filesystem_of(file)
    return filesystem.open_input_file(path)


def open_stream(file: str) -> pa.NativeFile:
    """A file to read from its beginning, decompressed."""
    filesystem, path = filesystem_of(file)
    return filesystem.open_input_stream(
        path, compression=compression_of(file), buffer_size=STREAM_BYTES
    )


@contextmanager
def open_buffered(file: str) -> Iterator[BinaryIO]:
    """The same with a buffer: cheap to read in small pieces; it seeks unless it is compressed."""
    with open_stream(file) if compression_of(file) else open_file(file) as raw:
        size = STREAM_BYTES if is_remote(file) or compression_of(file) else DISK_BYTES
        buffered = io.BufferedReader(cast("io.RawIOBase", raw), size)
        try:
            yield cast("BinaryIO", buffered)
        finally:
            buffered.detach()


@contextmanager
def faults_named(file: str, *, format: str) -> Iterator[None]:
    """Raise what libraries say of a file's content as SourceError, with the file's name.

    A fault of the medium stays an OSError: on a disk it has a number, in S3 pyarrow says
    `AWS Error`. All other OSErrors of pyarrow are about content that cannot be decoded.
    """
    try:
        yield
    except (MemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, UnicodeError, EOFError) as error:
        raise _unreadable(file, format=format, error=error) from error
    except OSError as error:
        if error.errno is not None or "AWS Error" in str(error):
            raise
        raise _unreadable(file, format=format, error=error) from error


def _unreadable(file: str, *, format: str, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 400 else f"{reason[:397]}..."
    return SourceError(f"{file}: cannot be read as {format}: {reason}")
