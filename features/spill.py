"""Many numbers by their equals, in bounded memory: buckets on a local disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

BUCKETS = 256
HELD_BYTES = 2**26
"""Bytes that are held before they go to the disk."""


class Spill:
    """Records with a hash in the field `hash`, uint64; equal hashes come back together.

    Up to HELD_BYTES they are held in memory; beyond, they are appended to 256 files by the
    hash's highest bits, each of which fits in memory up to about a thousand million records.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._held: list[np.ndarray] = []
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._held = []

    def add(self, records: np.ndarray) -> None:
        """Take in some records, `[N]` of the dtype."""
        self._held.append(records)
        self._bytes += records.nbytes
        if self._bytes > HELD_BYTES:
            self._flush()

    def groups(self) -> Iterator[np.ndarray]:
        """All records, sorted by hash within each part; no hash is in two parts."""
        if self._folder is None:
            yield _sorted(np.concatenate([np.empty(0, self._dtype), *self._held]))
            return
        self._flush()
        for bucket in range(BUCKETS):
            path = Path(self._folder.name, str(bucket))
            if path.exists():
                yield _sorted(np.fromfile(path, self._dtype))

    def _flush(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sensorium-")
        records = _sorted(np.concatenate([np.empty(0, self._dtype), *self._held]))
        firsts = np.arange(1, BUCKETS, dtype=np.uint64) << np.uint64(56)
        ends = np.searchsorted(records["hash"], firsts)
        for bucket, part in enumerate(np.split(records, ends)):
            if len(part):
                with Path(self._folder.name, str(bucket)).open("ab") as file:
                    part.tofile(file)
        self._held, self._bytes = [], 0


def _sorted(records: np.ndarray) -> np.ndarray:
    return records[np.argsort(records["hash"], kind="stable")]


def first_of_runs(records: np.ndarray) -> np.ndarray:
    """Where each run of equal hashes begins in sorted records, int64 `[R]`."""
    hashes = records["hash"]
    if not len(hashes):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
