"""What is repeated in a snapshot, and what of it is on two sides of a split."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import pyarrow as pa

from features.integrity import Integrity, Marks, Repeats, marks_of
from features.sample_shards import read_ahead
from features.samples import SampleShard
from features.snapshot import Snapshot
from features.store import Store


def repeats_in(store: Store, *, snapshot: Snapshot) -> Mapping[str, Repeats]:
    """What is repeated in a snapshot, by modality; groups under the name of an empty modality.

    As the last scan of the table found it, if that is of these samples; otherwise ids, splits
    and keys are read of all sample shards, and brought together on a local disk as a plan does.
    FileNotFoundError if one is not there.
    """
    record = store.read_scan(snapshot.name)
    if record is not None and record.holds(snapshot.samples):
        return record.repeats

    def rows(shard: SampleShard, columns: list[str]) -> pa.Table:
        return store.read_table(shard.path, columns=columns)

    def marks(shard: SampleShard) -> Marks:
        return marks_of(store.read_table(shard.path))

    with ExitStack() as stack:
        integrity = Integrity(stack)
        for found in read_ahead(snapshot.samples, read=marks):
            integrity.add(found)
        return integrity.repeats(shards=snapshot.samples, rows=rows)
