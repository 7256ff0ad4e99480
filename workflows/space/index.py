"""The index of one modality over a snapshot: made where it is not there, searched, and measured.

A part is made once for a model and the embedding shards in it, and an added or changed shard makes
its own part anew and no other. Up to EXACT_ROWS vectors are all compared with the query: 1,000,000
of 256 numbers take 0.4 s of a processor's time from mapped Parquet (`benchmarks/search_index.py`),
which is little beside the seconds in which a model and its encoder are loaded; nothing is missed,
and there is nothing to make but the vectors. Above that FAISS makes cells, which cost more to make
than the vectors do, and a query looks at a few hundredths of these; what it misses is measured,
once for an index, against the exact search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import pyarrow.parquet as pq

from features.fingerprint import fingerprint
from features.shard import each_vectors
from features.snapshot import Snapshot
from features.storage import Storage
from features.store import Store
from workflows.space.cells import PROBES, Cells
from workflows.space.nearest import OVERSAMPLING, Hits, search
from workflows.space.parts import PART, Over, Part, manifest_path, parts_of, space_fingerprint
from workflows.space.projecting import PartBuilder, Projection

A = TypeVar("A")
Way = Literal["auto", "exact", "cells"]
EXACT_ROWS = 2_000_000
"""Vectors up to which a query is compared with all of them."""
RECALL_AT = 10
RECALL_QUERIES = 100
RECALL_SHARDS = 8
"""Sample shards from which the queries are drawn by which recall is measured."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The parts of one modality's vectors over a snapshot."""

    modality: str
    parts: tuple[Part, ...]
    vectors: int
    made: int
    """Parts that were not there before."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """How many of the nearest that an exact search finds are found."""

    share: float
    at: int
    """How many of the nearest are meant."""
    queries: int
    """By how many it was measured; 0 if the search is exact."""
    of: str = ""
    """The modality of these queries."""


EXACT = Recall(share=1.0, at=RECALL_AT, queries=0)


class Each(Protocol):
    """`workflows.cluster.in_actors`, or `here`."""

    def __call__(
        self, worker: Callable[[A], Callable[[str], str]], argument: A, items: Sequence[str]
    ) -> Iterator[str]: ...


def here(
    worker: Callable[[A], Callable[[str], str]], argument: A, items: Sequence[str]
) -> Iterator[str]:
    """As `workflows.cluster.in_actors`, in this process."""
    if items:
        yield from map(worker(argument), items)


def missing_parts(store: Store, snapshot: Snapshot, *, projection: Projection) -> list[Part]:
    """The parts of an index that are to be made."""
    space = space_fingerprint(projection.record, modality=projection.modality)
    parts = parts_of(snapshot, modality=projection.modality, space=space)
    there = store.storage.list(f"indexes/{space}")
    return [part for part in parts if f"{part.name}.parquet" not in there]


def make_index(
    store: Store,
    snapshot: Snapshot,
    *,
    projection: Projection,
    each: Each = here,
    on_part: Callable[[str], None] = lambda _: None,
) -> Index:
    """The index of a modality over a snapshot, with what is missing of it made by `each`.

    Costs one listing if all is there; else time grows with the samples of the missing parts.
    """
    modality = projection.modality
    space = space_fingerprint(projection.record, modality=modality)
    parts = parts_of(snapshot, modality=modality, space=space)
    missing = missing_parts(store, snapshot, projection=projection)
    for name in each(PartBuilder, projection, [PART.dump_json(p).decode() for p in missing]):
        on_part(name)
    path = manifest_path(space=space, snapshot=snapshot.id)
    try:
        manifest = json.loads(store.storage.read(path))
    except FileNotFoundError:
        sizes = [_vectors_in(store, part) for part in parts]
        manifest = {
            "snapshot": snapshot.id,
            "modality": modality,
            "candidate": projection.record.fingerprint,
            "encoder": projection.encoder,
            "vectors": sum(sizes),
            "parts": {part.name: size for part, size in zip(parts, sizes, strict=True)},
        }
        store.storage.write_once(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return Index(
        modality=modality,
        parts=tuple(parts),
        vectors=int(manifest["vectors"]),
        made=len(missing),
    )


def with_cells(way: Way, *, vectors: int) -> bool:
    """Whether an index of so many vectors is searched by cells."""
    return way == "cells" or (way == "auto" and vectors > EXACT_ROWS)


class CellBuilder:
    """Makes the cells of part after part."""

    def __init__(self, storage: Storage) -> None:
        self._store = Store(storage)

    def __call__(self, text: str) -> str:
        """Make the cells of a part, given as JSON, if they are not there; its name.

        ImportError, with what to install, without FAISS.
        """
        part = PART.validate_json(text)
        if not self._store.storage.exists(part.cells_path):
            made = Cells.of(_read(self._store, part)).to_bytes()
            self._store.storage.write_once(part.cells_path, made)
        return part.name


def make_cells(store: Store, index: Index, *, each: Each = here) -> int:
    """Make the cells of the parts that have none, by `each`; of how many."""
    there = {path for part in index.parts[:1] for path in store.storage.list(_folder(part))}
    missing = [part for part in index.parts if f"{part.name}.faiss" not in there]
    texts = [PART.dump_json(part).decode() for part in missing]
    return sum(1 for _ in each(CellBuilder, store.storage, texts))


def nearest(
    store: Store, indexes: Sequence[Index], *, query: np.ndarray, k: int, by_cells: Sequence[bool]
) -> tuple[Hits, list[tuple[Index, Part]]]:
    """The `k` nearest vectors of several indexes to a query `[S]`, and to what `Hits.parts` refer.

    Of equally near ones those of the index that stands first.
    """
    places = [(index, part) for index in indexes for part in index.parts]
    found, first = [], 0
    for index, cells in zip(indexes, by_cells, strict=True):
        hits = search(store, index.parts, queries=query[None], k=k, by_cells=cells)
        found.append((hits, first))
        first += len(index.parts)
    similarities = np.concatenate([hits.similarities for hits, _ in found], axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return (
        Hits(
            similarities=np.take_along_axis(similarities, order, axis=1),
            parts=np.take_along_axis(
                np.concatenate([hits.parts + start for hits, start in found], axis=1), order, axis=1
            ),
            places=np.take_along_axis(
                np.concatenate([hits.places for hits, _ in found], axis=1), order, axis=1
            ),
        ),
        places,
    )


def recall_of(store: Store, index: Index, snapshot: Snapshot, *, asking: Projection) -> Recall:
    """How many of the 10 nearest the cells of an index find, by queries of another modality.

    The queries are vectors of up to RECALL_QUERIES samples, those of the test split where there
    are any, drawn from a few shards; the exact search over all parts is done once, and what it
    gave is kept beside the index.
    """
    space = space_fingerprint(asking.record, modality=asking.modality)
    parts = [part.name for part in index.parts]
    what = fingerprint(
        {
            "parts": parts,
            "asking": space,
            "snapshot": snapshot.id,
            "options": [RECALL_AT, RECALL_QUERIES, RECALL_SHARDS, PROBES, OVERSAMPLING],
        }
    )
    path = f"{_folder(index.parts[0])}/recall-{what}.json"
    try:
        kept = json.loads(store.storage.read(path))
    except FileNotFoundError:
        queries = _queries(store, snapshot, asking=asking)
        kept = {"share": 1.0, "queries": len(queries)}
        if len(queries):
            exact, cells = (
                search(store, index.parts, queries=queries, k=RECALL_AT, by_cells=by_cells)
                for by_cells in (False, True)
            )
            kept["share"] = recall(exact, found=cells)
        store.storage.write_once(path, (json.dumps(kept) + "\n").encode())
    return Recall(
        share=float(kept["share"]), at=RECALL_AT, queries=int(kept["queries"]), of=asking.modality
    )


def recall(exact: Hits, *, found: Hits) -> float:
    """The share of the nearest by an exact search that are among those found, over all queries."""
    right = total = 0
    for query in range(len(exact.places)):
        wanted = _named(exact, query)
        right += len(wanted & _named(found, query))
        total += len(wanted)
    return right / total if total else 1.0


def _named(hits: Hits, query: int) -> set[tuple[int, int]]:
    real = np.isfinite(hits.similarities[query])
    return set(
        zip(hits.parts[query][real].tolist(), hits.places[query][real].tolist(), strict=True)
    )


def _queries(store: Store, snapshot: Snapshot, *, asking: Projection) -> np.ndarray:
    """Vectors of some samples, `[Q, S]`."""
    rng = np.random.default_rng(0)
    over = snapshot.modalities[asking.modality].shards
    there = [number for number, shards in enumerate(over) if shards]
    builder, held, others = PartBuilder(asking), [], []
    for number in rng.permutation(there)[:RECALL_SHARDS].tolist():
        samples = snapshot.samples[number]
        found = builder.project(Over(shards=over[number], rows=samples.rows))
        split = store.read_table(samples.path, columns=["split"])["split"].to_numpy()
        tested = split[found.rows] == "test"
        held.append(found.vectors[tested])
        others.append(found.vectors[~tested])
    if not held:
        return np.empty((0, 0), np.float32)
    drawn = [rng.permutation(np.concatenate(some)) for some in (held, others)]
    queries: np.ndarray = np.concatenate(drawn)[:RECALL_QUERIES]
    return queries


def _read(store: Store, part: Part) -> np.ndarray:
    """All vectors of a part, float32 `[P, S]`."""

    def read(file: object) -> np.ndarray:
        with pq.ParquetFile(file) as parquet:
            width = parquet.schema_arrow.field("embedding").type.list_size
            groups = list(each_vectors(file, parquet))
            return np.concatenate([np.empty((0, width), np.float32), *groups])

    return store.read_file(part.path, read)


def _vectors_in(store: Store, part: Part) -> int:
    def read(file: object) -> int:
        with pq.ParquetFile(file) as parquet:
            return int(parquet.metadata.num_rows)

    return store.read_file(part.path, read)


def _folder(part: Part) -> str:
    return f"indexes/{part.space}"
