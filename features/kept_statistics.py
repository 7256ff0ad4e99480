"""The statistics of a snapshot, gathered from its shards' footers and kept beside it.

They lie in `statistics/<snapshot>.parquet`, a row a shard, so that the next snapshot costs one
footer for each shard that is new, and none for the others. They are derived: neither the
snapshot's id nor any shard depends on them, and a file that is lost is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from features.shard_names import embedding_path
from features.sketch import below, sketch_from, sketch_json
from features.snapshot import ModalityShards, Snapshot
from features.statistics import (
    ModalityStatistics,
    ShardStatistics,
    merge_statistics,
    statistics_from,
)
from features.store import READERS, Store, UnreadableFile, parquet_bytes

LAYOUT = "1"
"""Of the file of a snapshot's statistics; one of another layout is made anew."""
SLACK = 4
"""A shard's keys are kept up to so many times the limit of the snapshot's sketch: the sample stays
as large while the dataset does not shrink to less than a quarter."""


@dataclass(frozen=True, kw_only=True)
class SnapshotStatistics:
    """The statistics of a snapshot: of each of its shards, and of its modalities."""

    snapshot: str
    shards: Mapping[tuple[str, str], ShardStatistics]
    """By encoder and shard."""
    modalities: Mapping[str, ModalityStatistics]


def gather_statistics(
    store: Store,
    snapshot: Snapshot,
    *,
    known: Mapping[tuple[str, str], ShardStatistics] | None = None,
) -> SnapshotStatistics:
    """The statistics of a snapshot, by the footers of those of its shards that are not `known`.

    FileNotFoundError if such a shard is not there.
    """
    known = known or {}
    wanted = dict.fromkeys(name for part in snapshot.modalities.values() for name in _names(part))
    unread = [name for name in wanted if name not in known]

    def read(name: tuple[str, str]) -> ShardStatistics:
        encoder, shard = name
        return statistics_from(store.read_metadata(embedding_path(encoder=encoder, shard=shard)))

    with ThreadPoolExecutor(READERS) as pool:
        new = dict(zip(unread, pool.map(read, unread), strict=True))
    shards = {name: new[name] if name in new else known[name] for name in wanted}
    return _of(snapshot, shards)


def _of(
    snapshot: Snapshot, shards: Mapping[tuple[str, str], ShardStatistics]
) -> SnapshotStatistics:
    return SnapshotStatistics(
        snapshot=snapshot.id,
        shards=shards,
        modalities={
            modality: merge_statistics([shards[name] for name in _names(part)], of=part)
            for modality, part in snapshot.modalities.items()
        },
    )


def _names(part: ModalityShards) -> Iterable[tuple[str, str]]:
    """Encoder and name of each embedding shard of a modality, as often as it is listed."""
    return ((part.encoder_fingerprint, shard) for over in part.shards for shard in over)


def statistics_path(snapshot: str) -> str:
    """Where the statistics of a snapshot lie in the store."""
    return f"statistics/{snapshot}.parquet"


def keep_statistics(
    store: Store, snapshot: Snapshot, *, previous: Snapshot | None
) -> SnapshotStatistics:
    """The statistics of a snapshot, written beside it if they are not there.

    Costs one footer for each shard that is not in the previous snapshot, if that has statistics.
    """
    kept = read_statistics(store, snapshot)
    if kept is not None:
        return kept
    before = None if previous is None else read_statistics(store, previous)
    made = gather_statistics(store, snapshot, known=before.shards if before else None)
    store.storage.replace(statistics_path(snapshot.id), _bytes(made))
    return made


def read_statistics(store: Store, snapshot: Snapshot) -> SnapshotStatistics | None:
    """The statistics beside a snapshot; None if there are none that can be used."""
    path = statistics_path(snapshot.id)
    try:
        if store.read_metadata(path).get("sensorium.layout") != LAYOUT:
            return None
        table = store.read_table(path)
    except (FileNotFoundError, UnreadableFile, pa.ArrowInvalid):
        return None
    shards = {(row["encoder"], row["shard"]): _from_row(row) for row in _rows(table)}
    names = {name for part in snapshot.modalities.values() for name in _names(part)}
    return _of(snapshot, shards) if names <= shards.keys() else None


SCHEMA = pa.schema(
    [
        ("encoder", pa.string()),
        ("shard", pa.string()),
        ("rows", pa.int64()),
        ("computed", pa.int64()),
        ("bad", pa.int64()),
        ("counts", pa.string()),
        ("norm_sum", pa.float64()),
        ("norm_m2", pa.float64()),
        ("norm_least", pa.float64()),
        ("norm_greatest", pa.float64()),
        ("directions", pa.list_(pa.float32())),
        ("constant", pa.string()),
        ("keys", pa.string()),
    ],
    metadata={"sensorium.layout": LAYOUT},
)


def _bytes(found: SnapshotStatistics) -> pa.Buffer:
    """The statistics' file; keys that are far from entering the snapshot's sketch are left out."""
    limits: dict[str, int] = {}
    for part in found.modalities.values():
        if part.keys is not None:
            limits[part.encoder] = max(part.keys.limit, limits.get(part.encoder, 0))

    def row(name: tuple[str, str], part: ShardStatistics) -> dict[str, Any]:
        encoder, shard = name
        keys = part.keys
        if keys is not None and encoder in limits:
            keys = below(keys, limit=SLACK * limits[encoder])
        return {
            **vars(part),
            "encoder": encoder,
            "shard": shard,
            "counts": json.dumps(dict(part.counts), sort_keys=True),
            "keys": None if keys is None else json.dumps(sketch_json(keys)),
        }

    rows = [row(name, part) for name, part in found.shards.items()]
    return parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA))


def _rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    columns = [
        # The numbers of a list as an array: a list of Python's own is slow, and large.
        [None if not item.is_valid else item.values.to_numpy() for item in table[name]]
        if name == "directions"
        else table[name].to_pylist()
        for name in SCHEMA.names
    ]
    return (dict(zip(SCHEMA.names, row, strict=True)) for row in zip(*columns, strict=True))


def _from_row(row: Mapping[str, Any]) -> ShardStatistics:
    fields = {name: row[name] for name in row if name not in ("encoder", "shard")}
    return ShardStatistics(
        **{
            **fields,
            "counts": json.loads(row["counts"]),
            "keys": None if row["keys"] is None else sketch_from(json.loads(row["keys"])),
        }
    )
