"""Cells over the vectors of a part, by FAISS, for snapshots that are too large to compare whole.

An inverted file (Jégou et al. 2011, https://doi.org/10.1109/TPAMI.2010.57): k-means makes cells of
the vectors, and a query looks into those whose centres are nearest. The vectors are held in 16
bits. A file on a disk is mapped, and only the cells that are looked into are read of it.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from features.encoders.base import import_extra
from features.storage import Storage, local_file

LEAST = 39
"""Vectors a cell that k-means wants to be taught by (FAISS warns below it)."""
MOST_CELLS = 512
PROBES = 24
"""Cells that are looked into."""


class Cells:
    """The cells of a part."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def of(cls, vectors: np.ndarray) -> Self:
        """Cells of float32 `[N, S]`: as many as 39 vectors a cell allow, at most MOST_CELLS."""
        faiss = _faiss()
        count = max(1, min(MOST_CELLS, len(vectors) // LEAST))
        width = vectors.shape[1]
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width),
            width,
            count,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
        )
        if len(vectors):
            index.train(vectors[:: max(1, len(vectors) // (64 * count))])
            index.add(vectors)
        return cls(index)

    @classmethod
    def read(cls, storage: Storage, path: str) -> Self:
        """Those in a file of the store, of which nothing is read yet if it is on a disk."""
        faiss = _faiss()
        local = local_file(storage, path)
        if local is not None:
            return cls(faiss.read_index(local, faiss.IO_FLAG_MMAP))
        return cls(faiss.deserialize_index(np.frombuffer(storage.read(path), np.uint8)))

    def to_bytes(self) -> bytes:
        """As a file."""
        found: np.ndarray = _faiss().serialize_index(self._index)
        return found.tobytes()

    def search(self, queries: np.ndarray, *, k: int) -> np.ndarray:
        """Places of about the nearest vectors, int64 `[Q, k]`; -1 where there are no more."""
        self._index.nprobe = min(PROBES, self._index.nlist)
        if not self._index.ntotal:
            return np.full((len(queries), 0), -1, np.int64)
        _, places = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        found: np.ndarray = places
        return found


def require() -> None:
    """ImportError, with what to install, if there is no FAISS."""
    _faiss()


def _faiss() -> Any:
    return import_extra("faiss", extra="index")
