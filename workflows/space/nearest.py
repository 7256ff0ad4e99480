"""The nearest vectors and payloads of an index, part by part, merged: by all of them, or by cells.

Similarity is the cosine: the inner product of unit vectors. What cells propose is compared again
by the exact vectors, so that both ways give the same similarity to the same sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.fingerprint import DIGEST_BYTES
from features.shard import each_vectors, read_some_vectors
from features.store import Store
from workflows.space.cells import Cells
from workflows.space.parts import Part

AT_ONCE = 4
"""Parts that are searched at a time."""
DEPTH, DEEPER = 4, 8
"""How many times as many vectors as payloads are wanted are looked at first, since a payload may
stand in several samples; and then, while too many are repeated."""
MOST_BY_CELLS = 4096
"""Vectors of a part that its cells propose at most."""
OVERSAMPLING = 4
"""How many times as many as are wanted the cells of a part propose: their codes are rounded."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """A payload near to a query."""

    similarity: float
    part: int
    """Which of those that were searched."""
    place: int
    """Which vector of the part: of several samples that hold the payload the first."""
    key: bytes
    """Of the payload."""
    samples: int
    """How many of those that were looked at hold it."""


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
            cells = Cells.read(store.storage, part.cells_path)
            return _by_cells(store, part, cells=cells, queries=queries, k=k)
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


def search_payloads(
    store: Store, parts: Sequence[Part], *, query: np.ndarray, k: int, by_cells: bool
) -> list[Near]:
    """The `k` nearest payloads of all parts to a query, float32 `[S]` of length 1, each once.

    Those that many samples hold are merged part by part, with the similarities that are there
    anyhow, so that each part is read once however often they repeat. There are fewer than `k` if
    no more payloads differ; by cells, if those that are looked into hold no more.
    """

    def one(number: int) -> list[Near]:
        part = parts[number]
        return _distinct_in(store, part, number=number, query=query, k=k, by_cells=by_cells)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [near for some in pool.map(one, range(len(parts))) for near in some]
    found.sort(key=lambda near: -near.similarity)  # stable: of equal ones the earlier first
    merged: dict[bytes, Near] = {}
    for near in found:
        first = merged.setdefault(near.key, near)
        if first is not near:
            merged[near.key] = replace(first, samples=first.samples + near.samples)
    return list(merged.values())[:k]


def _distinct_in(
    store: Store, part: Part, *, number: int, query: np.ndarray, k: int, by_cells: bool
) -> list[Near]:
    """The nearest payloads of one part, the nearest first."""
    keys = _keys(store, part)
    if by_cells:
        cells = Cells.read(store.storage, part.cells_path)
    else:
        whole = _similarities(store, part, queries=query[None])
    most = MOST_BY_CELLS if by_cells else len(keys)
    depth = min(DEPTH * k, most)
    while True:
        if by_cells:
            near, places = _by_cells(store, part, cells=cells, queries=query[None], k=depth)
            near, places = near[np.isfinite(near)], places[np.isfinite(near)]
        else:
            places = _largest(whole, k=depth)[0]
            near = whole[0, places]
        firsts = np.sort(np.unique(keys[places], return_index=True)[1])[:k]
        if len(firsts) == k or len(places) < depth or depth == most:
            break
        depth = min(DEEPER * depth, most)
    looked_at = keys[places] if by_cells else keys
    return [
        Near(
            similarity=float(near[at]),
            part=number,
            place=int(places[at]),
            key=keys[places[at]].tobytes(),
            samples=int((looked_at == keys[places[at]]).sum()),
        )
        for at in firsts.tolist()
    ]


def _keys(store: Store, part: Part) -> np.ndarray:
    """The keys of a part's payloads, `[N]`, each as so many bytes."""

    def read(file: pa.NativeFile) -> pa.Table:
        with pq.ParquetFile(file, pre_buffer=True) as parquet:
            return parquet.read(columns=["payload_key"])

    chunks = store.read_file(part.path, read, mapped=True)["payload_key"].chunks
    kind = np.dtype(("V", DIGEST_BYTES))
    parts = [
        np.frombuffer(chunk.buffers()[1], kind, len(chunk), chunk.offset * DIGEST_BYTES)
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, kind), *parts])


def _exactly(
    store: Store, part: Part, *, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and places of a part's nearest vectors, `[Q, at most k]` each."""
    similarities = _similarities(store, part, queries=queries)
    places = _largest(similarities, k=k)
    return np.take_along_axis(similarities, places, axis=1), places


def _similarities(store: Store, part: Part, *, queries: np.ndarray) -> np.ndarray:
    """Of all vectors of a part to each query, float32 `[Q, N]`."""

    def read(file: pa.NativeFile) -> np.ndarray:
        with pq.ParquetFile(file) as parquet:
            near = [_products(vectors, queries=queries) for vectors in each_vectors(file, parquet)]
        return np.concatenate([np.empty((0, len(queries)), np.float32), *near]).T

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
    store: Store, part: Part, *, cells: Cells, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    proposed = cells.search(queries, k=k * OVERSAMPLING)
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
