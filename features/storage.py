"""One folder of immutable files: list, read, write once, replace a pointer.

All paths are relative, with `/` between parts, and mean the same on disk and in a bucket:
there are no folders to make, and nothing is visible before it is whole. A `Storage` holds
only its root, so it travels to workers as it is.
"""

from __future__ import annotations

import errno
import os
import stat
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.fs

from features import s3
from features.persistence import persist

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True)
class Stat:
    """What tells one state of a file from another without reading it."""

    size: int
    """In bytes."""
    tag: str
    """Time of change in nanoseconds on a disk, the etag in S3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file in a storage, as a walk over it finds it."""

    path: str
    """Relative to the root, with `/` between parts."""
    size: int
    """In bytes."""
    modified: float
    """When it was written: seconds since 1970, by the storage's clock."""


class Storage(Protocol):
    """A place for files that are written whole, once. Errors of the medium are OSError."""

    root: str

    def list(self, folder: str) -> set[str]:
        """Names of the files directly in a folder, or in the root (`""`); empty if there is none.

        One listing.
        """

    def walk(self, folder: str = "") -> Iterator[Entry]:
        """All files below a folder, in no order, one by one; what a killed writer left, too."""

    def exists(self, path: str) -> bool:
        """Whether a whole file is there."""

    def read(self, path: str) -> bytes:
        """A file's bytes; FileNotFoundError if it is not there."""

    def open(self, path: str) -> pa.NativeFile:
        """A file to seek and read in, for Parquet."""

    def write_once(self, path: str, data: bytes | pa.Buffer) -> bool:
        """Write a whole file if it is not there; False if it was, and then nothing is touched."""

    def replace(self, path: str, data: bytes) -> None:
        """Write a whole file, over an older one if there is one: for pointers only."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; those that are not there are passed over."""

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The pyarrow filesystem and the root within it, for libraries that write themselves."""


class LocalStorage:
    """A folder on a disk that all workers share; made when the first file is written.

    A file is written beside its place under a temporary name, flushed to the disk and
    hard-linked to its name, which fails if that is taken: of several writers one wins, and
    a reader sees nothing or the whole. Faults that may pass, as a disk across a network has
    them, are tried again (see `features.persistence`).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def list(self, folder: str) -> set[str]:
        return {
            entry.name
            for entry in self._entries(folder)
            if entry.is_file() and not entry.name.endswith(TEMPORARY_SUFFIX)
        }

    def walk(self, folder: str = "") -> Iterator[Entry]:
        """One folder's names are held at a time, and those of the folders above it."""
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from self.walk(path)
                continue
            try:
                status = persist(entry.stat)
            except FileNotFoundError:
                continue  # deleted meanwhile
            yield Entry(path=path, size=status.st_size, modified=status.st_mtime)

    def exists(self, path: str) -> bool:
        return _is_there(self._at(path))

    def read(self, path: str) -> bytes:
        return persist(lambda: _read_whole(self._at(path)))

    def open(self, path: str) -> pa.NativeFile:
        return persist(lambda: pa.OSFile(self._at(path), "rb"))

    def write_once(self, path: str, data: bytes | pa.Buffer) -> bool:
        target = self._at(path)
        if _is_there(target):
            return False
        temporary = persist(lambda: self._write_temporary(target, data))
        try:
            won = persist(lambda: _link(temporary, target))
        finally:
            _discard(temporary)
        if won:
            persist(lambda: _flush_folder(os.path.dirname(target)))
        return won

    def replace(self, path: str, data: bytes) -> None:
        target = self._at(path)

        def write() -> None:
            temporary = self._write_temporary(target, data)
            try:
                os.replace(temporary, target)
            except OSError:
                _discard(temporary)
                raise

        persist(write)
        persist(lambda: _flush_folder(os.path.dirname(target)))

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                persist(partial(os.unlink, self._at(path)))

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        return pyarrow.fs.LocalFileSystem(), self.root

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _entries(self, folder: str) -> Sequence[os.DirEntry[str]]:
        def scan() -> Sequence[os.DirEntry[str]]:
            with os.scandir(self._at(folder)) as entries:
                return tuple(entries)

        try:
            return persist(scan)
        except FileNotFoundError:
            return ()

    @staticmethod
    def _write_temporary(target: str, data: bytes | pa.Buffer) -> str:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        folder, name = os.path.split(target)
        # A leading dot: readers of whole folders pass over what a killed writer has left.
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                written, whole = os.fstat(file.fileno()).st_size, len(memoryview(data))
            if written != whole:
                raise OSError(errno.EIO, f"only {written} of {whole} bytes were written")
        except BaseException as error:
            _discard(temporary)
            if isinstance(error, OSError) and error.errno is not None:
                # The error of a full disk names no file by itself.
                raise OSError(error.errno, error.strerror, target) from error
            raise
        return temporary


def filesystem_of(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a path, file:// or s3:// URI, and the path within it.

    The filesystem is made once a process. ValueError for another scheme.
    """
    if uri.startswith(s3.SCHEME):
        return s3.filesystem(), "/".join(s3.split_uri(uri))
    return pyarrow.fs.LocalFileSystem(), local_path(uri)


def stat_uri(uri: str) -> Stat:
    """Size and tag of the file behind a path or URI; FileNotFoundError if there is none."""
    if uri.startswith(s3.SCHEME):
        return Stat(*s3.stat(uri))
    status = persist(lambda: os.stat(local_path(uri)))
    return Stat(size=status.st_size, tag=str(status.st_mtime_ns))


def read_uri(uri: str) -> bytes:
    """The bytes behind a path or URI; FileNotFoundError if there is no such file."""
    if uri.startswith(s3.SCHEME):
        return s3.read(uri)
    return persist(lambda: _read_whole(local_path(uri)))


def local_path(uri: str) -> str:
    """The path of a file on a disk, given as such or as a file:// URI (RFC 8089)."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme != "file":
        raise ValueError(
            f"{uri!r}: {scheme}:// is not supported; give a path, file:///PATH or "
            "s3://BUCKET/PREFIX"
        )
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ValueError(f"{uri!r} names the host {host!r}; write file:///path")
    return urllib.parse.unquote(f"/{path}")


def open_storage(root: str) -> Storage:
    """The storage at a root: a folder's path, file:// or s3://BUCKET/PREFIX.

    Nothing is asked of a server. ValueError for another scheme, and for a root that is a file;
    ImportError if what it needs is not installed.
    """
    if root.startswith(s3.SCHEME):
        from features.s3_storage import S3Storage

        s3.client()  # an environment that cannot be right is known at once
        return S3Storage(root)
    folder = local_path(root)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"{folder} is not a folder")
    return LocalStorage(folder)


def local_file(storage: Storage, path: str) -> str | None:
    """Where a file of a storage lies on this machine, to be mapped; None if it does not."""
    return os.path.join(storage.root, path) if isinstance(storage, LocalStorage) else None


def _is_there(path: str) -> bool:
    """Whether there is a file; an error of the medium is none, and is raised."""
    try:
        return stat.S_ISREG(persist(lambda: os.stat(path)).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _read_whole(path: str) -> bytes:
    """A file's bytes; OSError if fewer come than it has."""
    with open(path, "rb") as file:
        data = file.read()
        size = os.fstat(file.fileno()).st_size
    if len(data) < size:
        raise OSError(errno.EIO, f"it ended after {len(data)} of {size} bytes", path)
    return data


def _link(temporary: str, target: str) -> bool:
    """Give a file its name; False if another has it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # It is our own if the answer to an earlier attempt was lost, as NFS may lose it.
        return os.stat(temporary).st_nlink > 1
    return True


def _discard(temporary: str) -> None:
    """Delete a temporary file, if that can be done: one that stays is garbage after a day."""
    with suppress(OSError):
        os.unlink(temporary)


def _flush_folder(folder: str) -> None:
    """Make a new name in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
