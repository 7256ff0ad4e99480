"""The test rows of today beside those on which the champion was judged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from features.samples import SampleShard
from features.snapshot import Snapshot
from features.store import Store
from workflows.promotion.verdict import TestSet


def test_set(store: Store, *, snapshot: Snapshot, before: str | None, rows: int) -> TestSet:
    """What has become of the labelled test rows since the snapshot `before`.

    Reads ids, splits and labels of those sample shards alone that one of the two has and the
    other has not. If that snapshot is no longer in the store, it is not known.
    """
    found = TestSet(snapshot=snapshot.id, rows=rows, before=before)
    if before is None or before == snapshot.id:
        return found
    try:
        then = store.read_snapshot(before)
        kept = {shard.labels for shard in then.samples} & {s.labels for s in snapshot.samples}
        if then.target != snapshot.target:
            kept = set()
        old, new = (
            _labels(store, of, shards=[s for s in of.samples if s.labels not in kept])
            for of in (then, snapshot)
        )
    except FileNotFoundError:
        return found
    return TestSet(
        snapshot=snapshot.id,
        rows=rows,
        before=before,
        added=len(new.keys() - old.keys()),
        removed=len(old.keys() - new.keys()),
        relabelled=sum(old[key] != new[key] for key in old.keys() & new.keys()),
    )


test_set.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def _labels(
    store: Store, snapshot: Snapshot, *, shards: Iterable[SampleShard]
) -> dict[str, tuple[object, ...]]:
    """By sample id the labels of the labelled test rows in some sample shards."""
    target = snapshot.target
    names = [target] if isinstance(target, str) else list(target or ())
    columns = [f"target.{name}" for name in names]
    found: dict[str, tuple[object, ...]] = {}
    for shard in shards:
        table = store.read_table(shard.path, columns=["sample_id", "split", *columns])
        tested = np.array(table["split"].to_pylist(), dtype=object) == "test"
        part = table.filter(tested).to_pylist()
        for row in part:
            labels = tuple(row[column] for column in columns)
            if not columns or any(label is not None for label in labels):
                found[row["sample_id"]] = labels
    return found
