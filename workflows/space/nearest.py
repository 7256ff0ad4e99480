"""The nearest vectors of an index, part by part, merged: by all of them, or by cells.

Similarity is the cosine: the inner product of unit vectors. What cells propose is compared again
by the exact vectors, so that both ways give the same similarity to the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.shard import each_vectors, read_some_vectors
from features.store import Store
from workflows.space.cells import Cells
from workflows.space.parts import Part

AT_ONCE = 4
"""Parts that are searched at a time."""
OVERSAMPLING = 4
"""How many times as many as are wanted the cells of a part propose: their codes are rounded."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The nearest of some queries, the nearest first."""

    similarities: np.ndarray
    """float32 `[Q, K]`; -inf where there are fewer."""
    parts: np.ndarray
    """int64 `[Q, K]`: which part of those that were searched."""
    places: np.ndarray
    """int64 `[Q, K]`: which vector of the part."""


def search(
    store: Store, parts: Sequence[Part], *, queries: np.ndarray, k: int, by_cells: bool
) -> Hits:
    """The `k` nearest vectors of all parts to each query, float32 `[Q, S]` of length 1.

    Of equally near ones the earlier in the snapshot is first.
    """

    def one(number: int) -> tuple[np.ndarray, np.ndarray]:
        part = parts[number]
        if by_cells:
            return _by_cells(store, part, queries=queries, k=k)
        return _exactly(store, part, queries=queries, k=k)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(one, range(len(parts))))
    similarities = np.concatenate([near for near, _ in found], axis=1)
    places = np.concatenate([where for _, where in found], axis=1)
    of = np.concatenate([np.full(where.shape, n) for n, (_, where) in enumerate(found)], axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return Hits(
        similarities=np.take_along_axis(similarities, order, axis=1),
        parts=np.take_along_axis(of, order, axis=1),
        places=np.take_along_axis(places, order, axis=1),
    )


def _exactly(
    store: Store, part: Part, *, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and places of a part's nearest vectors, `[Q, at most k]` each."""

    def read(file: pa.NativeFile) -> tuple[np.ndarray, np.ndarray]:
        with pq.ParquetFile(file) as parquet:
            near = [_products(vectors, queries=queries) for vectors in each_vectors(file, parquet)]
        similarities = np.concatenate([np.empty((0, len(queries)), np.float32), *near]).T
        places = _largest(similarities, k=k)
        return np.take_along_axis(similarities, places, axis=1), places

    return store.read_file(part.path, read, mapped=True)


def _products(vectors: np.ndarray, *, queries: np.ndarray) -> np.ndarray:
    """Inner products `[N, Q]`.

    Of one query not by BLAS, whose threads would wait for each other at each of the many small
    products: the parts are what is done at once.
    """
    if len(queries) == 1:
        found: np.ndarray = np.einsum("ns,s->n", vectors, queries[0])
        return found[:, None]
    return vectors @ queries.T


def _by_cells(
    store: Store, part: Part, *, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    proposed = Cells.read(store.storage, part.cells_path).search(queries, k=k * OVERSAMPLING)
    if not proposed.size:
        return proposed.astype(np.float32), proposed

    def read(file: pa.NativeFile) -> np.ndarray:
        with pq.ParquetFile(file) as parquet:
            return read_some_vectors(file, parquet, rows=np.maximum(proposed, 0).ravel())

    vectors = store.read_file(part.path, read, mapped=True).reshape(*proposed.shape, -1)
    similarities = np.einsum("qks,qs->qk", vectors, queries).astype(np.float32)
    similarities[proposed < 0] = -np.inf
    # In the order of the rows, so that equal ones come as from an exact search.
    order = np.argsort(proposed, axis=1, kind="stable")
    similarities = np.take_along_axis(similarities, order, axis=1)
    proposed = np.take_along_axis(proposed, order, axis=1)
    best = _largest(similarities, k=k)
    return (
        np.take_along_axis(similarities, best, axis=1),
        np.take_along_axis(proposed, best, axis=1),
    )


def _largest(values: np.ndarray, *, k: int) -> np.ndarray:
    """Places of the `k` largest of each row, in their order; of equal ones the first."""
    count = values.shape[1]
    if count <= 4 * k:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    # Those at the edge that are equal to the k-th must not be drawn by chance.
    edge = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
    found = np.empty((len(values), k), np.int64)
    for row, (near, least) in enumerate(zip(values, edge, strict=True)):
        among = np.flatnonzero(near >= least)
        found[row] = among[np.argsort(-near[among], kind="stable")[:k]]
    return found
