"""A disk that fails as it is told to: it stands in for `os`, `open` and pyarrow's file."""

from __future__ import annotations

import builtins
import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

import features.payload_keys
import features.payloads
import features.storage

MODULES = (features.storage, features.payloads, features.payload_keys)
"""All that touches the store, and payloads behind URIs."""
HANG_SECONDS = 0.02


class Died(BaseException):
    """What stands for `kill -9`: after it, nothing that the process does reaches the disk."""


@dataclass(frozen=True, kw_only=True)
class DiskFault:
    """What goes wrong with a call."""

    number: int = 0
    """The error's; 0 for none."""
    stays: bool = False
    """Whether all later calls at the place fail too."""
    hangs: bool = False
    short: bool = False
    """Half of the data is read or written, and all is said to be."""
    done: bool = False
    """The call is carried out, and then fails."""
    dies: bool = False


class FaultyDisk:
    """Counts the calls by place, and fails at one of them."""

    def __init__(self, store: str) -> None:
        self.calls: Counter[str] = Counter()
        self.fired = 0
        self._store = store
        self._place, self._at, self._fault = "", 0, DiskFault()
        self._dead = False
        self._lock = threading.Lock()

    def fail(self, place: str, *, at: int, fault: DiskFault) -> None:
        """Let the call number `at` (from 1) at a place fail."""
        self._place, self._at, self._fault = place, at, fault

    @contextmanager
    def mounted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in MODULES:
                patch.setattr(module, "os", _Os(self))
                patch.setattr(module, "open", self.open, raising=False)
            patch.setattr(features.storage, "pa", _Arrow(self))
            yield

    def call(self, place: str, act: Any, *arguments: Any, path: Any = None, **options: Any) -> Any:
        if not str(path if path is not None else arguments[0]).startswith(self._store):
            place = f"payload {place}"
        fault = self._due(place)
        if fault is None:
            return act(*arguments, **options)
        if fault.dies:
            raise Died
        if fault.hangs:
            time_sleep(HANG_SECONDS)
        if fault.done:
            act(*arguments, **options)
        if fault.short:
            if place == "write":
                act(bytes(arguments[0])[: len(arguments[0]) // 2])
                return len(arguments[0])
            data = act(*arguments, **options)
            return data[: len(data) // 2]
        raise OSError(fault.number, os.strerror(fault.number), path or arguments[0])

    def open(self, path: Any, mode: str = "r", **options: Any) -> _File:
        place = "create" if "x" in mode or "w" in mode else "open"
        return _File(self, path, self.call(place, builtins.open, path, mode, **options))

    def _due(self, place: str) -> DiskFault | None:
        with self._lock:
            self.calls[place] += 1
            number = self.calls[place]
            if self._dead:
                return self._fault
            here = place == self._place and (
                number == self._at or (self._fault.stays and number > self._at)
            )
            if not here:
                return None
            self.fired += 1
            self._dead = self._fault.dies
            return self._fault


time_sleep = time.sleep
"""Tests shorten `time.sleep`."""


class _Os:
    """`os`, but for what touches a disk."""

    def __init__(self, disk: FaultyDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def scandir(self, path: str) -> Any:
        return self._disk.call("list", os.scandir, path)

    def stat(self, path: str) -> Any:
        return self._disk.call("stat", os.stat, path)

    def link(self, source: str, target: str) -> Any:
        return self._disk.call("link", os.link, source, target)

    def replace(self, source: str, target: str) -> Any:
        return self._disk.call("rename", os.replace, source, target)

    def unlink(self, path: str) -> Any:
        return self._disk.call("delete", os.unlink, path)

    def makedirs(self, path: str, **options: Any) -> Any:
        return self._disk.call("mkdir", os.makedirs, path, **options)

    def open(self, path: str, flags: int) -> Any:
        return self._disk.call("open", os.open, path, flags)

    def fsync(self, descriptor: int) -> Any:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return self._disk.call("flush", os.fsync, descriptor, path=path)


class _Arrow:
    """`pyarrow`, but for the file that it opens itself."""

    def __init__(self, disk: FaultyDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(pa, name)

    def OSFile(self, path: str, mode: str) -> Any:
        file = self._disk.open(path, mode, buffering=0)
        return pa.PythonFile(file, mode="r")


class _File:
    """An open file."""

    def __init__(self, disk: FaultyDisk, path: Any, file: Any) -> None:
        self._disk, self._path, self._file = disk, path, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> Any:
        return self._disk.call("read", self._file.read, size, path=self._path)

    def write(self, data: Any) -> Any:
        return self._disk.call("write", self._file.write, memoryview(data), path=self._path)


PASSES = DiskFault(number=errno.EIO)
FAULTS = {
    "passes": PASSES,
    "answer lost": DiskFault(number=errno.EIO, done=True),
    "hangs": DiskFault(number=errno.ETIMEDOUT, hangs=True),
    "cut short": DiskFault(short=True),
    "stays": DiskFault(number=errno.EIO, stays=True),
    "disk full": DiskFault(number=errno.ENOSPC, stays=True),
    "read-only": DiskFault(number=errno.EROFS, stays=True),
    "forbidden": DiskFault(number=errno.EACCES, stays=True),
    "killed": DiskFault(dies=True),
}
EVERYWHERE = ("passes", "hangs", "stays", "killed")
WRITING = ("disk full", "read-only")
PLACES = {
    "list": (*EVERYWHERE, "forbidden"),
    "stat": (*EVERYWHERE, "forbidden"),
    "open": (*EVERYWHERE, "forbidden"),
    "read": (*EVERYWHERE, "cut short"),
    "mkdir": (*EVERYWHERE, *WRITING, "forbidden", "answer lost"),
    "create": (*EVERYWHERE, *WRITING, "forbidden"),
    "write": (*EVERYWHERE, *WRITING, "cut short"),
    "flush": (*EVERYWHERE, *WRITING),
    "link": (*EVERYWHERE, *WRITING, "forbidden", "answer lost"),
    "rename": (*EVERYWHERE, *WRITING, "forbidden", "answer lost"),
    "delete": (*EVERYWHERE, "read-only", "forbidden", "answer lost"),
    "payload stat": (*EVERYWHERE, "forbidden"),
    "payload open": (*EVERYWHERE, "forbidden"),
    "payload read": (*EVERYWHERE, "cut short"),
}
"""What can go wrong at each place."""
