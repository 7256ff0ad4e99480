"""The index of one modality over a snapshot: made where it is not there, and searched.

A part is made once for a model and the embedding shards in it, and an added or changed shard makes
its own part anew and no other. Up to EXACT_ROWS vectors are all compared with the query: 1,000,000
of 256 numbers take 0.4 s of a processor's time from mapped Parquet (`benchmarks/search_index.py`),
which is little beside the seconds in which a model and its encoder are loaded; nothing is missed,
and there is nothing to make but the vectors. Above that FAISS makes cells, which cost more to make
than the vectors do, and a query looks at a few hundredths of these; what it misses is measured,
once for an index, against the exact search (`recall`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import pyarrow.parquet as pq

from features.shard import each_vectors
from features.snapshot import Snapshot
from features.storage import Storage
from features.store import Store
from workflows.space.cells import Cells
from workflows.space.nearest import Near, search_payloads
from workflows.space.parts import PART, Part, manifest_path, parts_of, space_fingerprint
from workflows.space.projecting import PartBuilder, Projection

A = TypeVar("A")
Way = Literal["auto", "exact", "cells"]
EXACT_ROWS = 2_000_000
"""Vectors up to which a query is compared with all of them."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """The parts of one modality's vectors over a snapshot."""

    modality: str
    parts: tuple[Part, ...]
    vectors: int
    made: int
    """Parts that were not there before."""


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


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An index that is to be made or completed."""

    projection: Projection
    space: str
    parts: Sequence[Part]
    missing: Sequence[Part]
    """Those of the parts that are not there."""


def planned(store: Store, snapshot: Snapshot, *, projection: Projection) -> Planned:
    """The index of a modality over a snapshot, and what is missing of it. Costs one listing."""
    space = space_fingerprint(projection.record, modality=projection.modality)
    parts = parts_of(snapshot, modality=projection.modality, space=space)
    there = store.storage.list(f"indexes/{space}")
    missing = [part for part in parts if f"{part.name}.parquet" not in there]
    return Planned(projection=projection, space=space, parts=parts, missing=missing)


def make_index(
    store: Store,
    snapshot: Snapshot,
    *,
    plan: Planned,
    each: Each = here,
    on_part: Callable[[str], None] = lambda _: None,
) -> Index:
    """The index of a modality over a snapshot, with what is missing of it made by `each`.

    Time grows with the samples of the missing parts.
    """
    projection, parts = plan.projection, plan.parts
    texts = [PART.dump_json(part).decode() for part in plan.missing]
    for name in each(PartBuilder, projection, texts):
        on_part(name)
    path = manifest_path(space=plan.space, snapshot=snapshot.id)
    try:
        manifest = json.loads(store.storage.read(path))
    except FileNotFoundError:
        sizes = [_vectors_in(store, part) for part in parts]
        manifest = {
            "snapshot": snapshot.id,
            "modality": projection.modality,
            "candidate": projection.record.fingerprint,
            "encoder": projection.encoder,
            "vectors": sum(sizes),
            "parts": {part.name: size for part, size in zip(parts, sizes, strict=True)},
        }
        store.storage.write_once(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return Index(
        modality=projection.modality,
        parts=tuple(parts),
        vectors=int(manifest["vectors"]),
        made=len(plan.missing),
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
) -> list[tuple[Index, Near]]:
    """The `k` nearest payloads of several indexes to a query `[S]`, each once, the nearest first.

    Of equally near ones those of the index that stands first. `Near.part` is one of its index's.
    """
    found = [
        (index, near)
        for index, cells in zip(indexes, by_cells, strict=True)
        for near in search_payloads(store, index.parts, query=query, k=k, by_cells=cells)
    ]
    return sorted(found, key=lambda pair: -pair[1].similarity)[:k]


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
