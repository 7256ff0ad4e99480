"""How many of the nearest the cells of an index find: measured against the exact search.

Part by part, where parts are made, on all of them: a part is read once, by whoever has it, and
what comes back are the nearest of each query alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.storage import Storage
from features.store import Store
from workflows.space.cells import PROBES
from workflows.space.index import Each, Index, here
from workflows.space.nearest import OVERSAMPLING, Hits, search
from workflows.space.parts import PART, Over, space_fingerprint
from workflows.space.projecting import PartBuilder, Projection

RECALL_AT = 10
RECALL_QUERIES = 100
RECALL_SHARDS = 8
"""Sample shards from which the queries are drawn by which recall is measured."""


@dataclass(frozen=True, kw_only=True)
class Recall:
    """How many of the nearest that an exact search finds are found."""

    share: float | None
    """None if there was nothing to ask by."""
    at: int
    """How many of the nearest are meant."""
    exact: bool
    """Whether every vector is compared, so that none is missed."""
    queries: int = 0
    """By how many it was measured."""
    of: str = ""
    """The modality of these queries."""


EXACT = Recall(share=1.0, at=RECALL_AT, exact=True)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What parts are asked by; it travels to workers as it is."""

    store: Storage
    queries: np.ndarray
    """float32 `[Q, S]` of length 1."""


class PartMeter:
    """Asks part after part, exactly and by its cells."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._store = Store(asked.store)

    def __call__(self, text: str) -> str:
        """The nearest of a part, given as JSON, to each query: as JSON, by name and way."""
        part = PART.validate_json(text)
        found: dict[str, Any] = {"part": part.name}
        queries = self._asked.queries
        for way, by_cells in (("exact", False), ("cells", True)):
            hits = search(self._store, [part], queries=queries, k=RECALL_AT, by_cells=by_cells)
            found[way] = [hits.similarities.tolist(), hits.places.tolist()]
        return json.dumps(found)


def recall_of(
    store: Store, index: Index, snapshot: Snapshot, *, asking: Projection, each: Each = here
) -> Recall:
    """How many of the 10 nearest the cells of an index find, by queries of another modality.

    The queries are vectors of up to RECALL_QUERIES samples, those of the test split where there
    are any, drawn from a few shards. All parts are asked once, by `each`, and what they gave is
    kept beside the index.
    """
    what = fingerprint(
        {
            "parts": [part.name for part in index.parts],
            "asking": space_fingerprint(asking.record, modality=asking.modality),
            "snapshot": snapshot.id,
            "options": [RECALL_AT, RECALL_QUERIES, RECALL_SHARDS, PROBES, OVERSAMPLING],
        }
    )
    path = f"indexes/{index.parts[0].space}/recall-{what}.json"
    try:
        kept = json.loads(store.storage.read(path))
    except FileNotFoundError:
        queries = _queries(store, snapshot, asking=asking)
        kept = {"share": None, "queries": len(queries)}
        if len(queries):
            texts = [PART.dump_json(part).decode() for part in index.parts]
            asked = Asked(store=store.storage, queries=queries)
            said = {one["part"]: one for one in map(json.loads, each(PartMeter, asked, texts))}
            of_parts = [said[part.name] for part in index.parts]
            kept["share"] = recall(_merged(of_parts, "exact"), found=_merged(of_parts, "cells"))
        store.storage.write_once(path, (json.dumps(kept) + "\n").encode())
    return Recall(
        share=float(kept["share"]) if kept["queries"] else None,
        at=RECALL_AT,
        exact=False,
        queries=int(kept["queries"]),
        of=asking.modality,
    )


def _merged(of_parts: Sequence[dict[str, Any]], way: str) -> Hits:
    """The nearest of all parts, out of those of each, in the order of the parts."""
    near = [np.array(one[way][0], np.float32) for one in of_parts]
    similarities = np.concatenate(near, axis=1)
    of = np.concatenate([np.full(some.shape, number) for number, some in enumerate(near)], axis=1)
    places = np.concatenate([np.array(one[way][1], np.int64) for one in of_parts], axis=1)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :RECALL_AT]
    return Hits(
        similarities=np.take_along_axis(similarities, order, axis=1),
        parts=np.take_along_axis(of, order, axis=1),
        places=np.take_along_axis(places, order, axis=1),
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
