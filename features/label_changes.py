"""Labels that are others than in the snapshot before, of samples that both have.

Only sample shards that differ are read. Their boundaries follow the ids, so that a changed label
leaves them where they were: a shard is compared with the one before that begins with the same
sample. A sample that has come into a shard which begins with another is not looked at. Costs two
reads of each such shard, READERS at a time; of samples one pair of shards a reader is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.snapshot import Snapshot
from features.store import READERS, Store

MOST_PAIRS = 1000
"""Pairs of an old and a new label that are counted; numbers to predict have as many as rows."""


@dataclass(frozen=True, kw_only=True)
class LabelChanges:
    """Samples with another label than before."""

    by_split: Mapping[str, int] = field(default_factory=dict)
    """How many, by the split that they are in now."""
    pairs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By the label before and now, as text, the most frequent first; none if they are many."""

    @property
    def samples(self) -> int:
        """How many in all."""
        return sum(self.by_split.values())


def label_changes(store: Store, *, before: Snapshot, after: Snapshot) -> LabelChanges | None:
    """What labels have changed since an earlier snapshot.

    None if that had another target, or is no longer in the store.
    """
    if before.target != after.target or after.target is None:
        return None
    targets = [after.target] if isinstance(after.target, str) else list(after.target)
    columns = ["sample_id", "split", *(f"target.{name}" for name in targets)]
    kept = {shard.path for shard in after.samples}
    old = [shard.path for shard in before.samples if shard.path not in kept]
    known = {shard.path for shard in before.samples}
    new = [shard.path for shard in after.samples if shard.path not in known]

    def first_of(path: str) -> str:
        ids = store.read_table(path, columns=["sample_id"])["sample_id"]
        return str(ids[0]) if len(ids) else ""

    splits: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    try:
        with ThreadPoolExecutor(READERS) as pool:
            begins = dict(zip(pool.map(first_of, old), old, strict=True))

            def compared(path: str) -> Sequence[tuple[str, str, str]]:
                rows = store.read_table(path, columns=columns)
                earlier = begins.get(str(rows["sample_id"][0])) if len(rows) else None
                if earlier is None:
                    return []
                return _changed(store.read_table(earlier, columns=columns), rows, targets=targets)

            for found in pool.map(compared, new):
                for split, was, now in found:
                    splits[split] += 1
                    if len(pairs) < MOST_PAIRS:
                        pairs[was, now] += 1
    except FileNotFoundError:
        return None
    many = len(pairs) >= MOST_PAIRS
    return LabelChanges(by_split=dict(splits), pairs={} if many else dict(pairs.most_common()))


def _changed(
    before: pa.Table, after: pa.Table, *, targets: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Of the rows with another label: split, label before, label now."""
    places = pc.index_in(after["sample_id"], value_set=before["sample_id"]).to_numpy(
        zero_copy_only=False
    )
    both = np.flatnonzero(~np.isnan(places.astype(float)))
    was = _texts(before.take(pa.array(places[both].astype(np.int64))), targets=targets)
    now = _texts(after.take(pa.array(both)), targets=targets)
    splits = after["split"].take(pa.array(both)).to_pylist()
    return [
        (split or "no split", old, new)
        for split, old, new in zip(splits, was, now, strict=True)
        if old != new
    ]


def _texts(table: pa.Table, *, targets: Sequence[str]) -> list[str]:
    columns = [table[f"target.{name}"].to_pylist() for name in targets]
    return [
        ", ".join("(none)" if value is None else str(value) for value in row)
        for row in zip(*columns, strict=True)
    ]
