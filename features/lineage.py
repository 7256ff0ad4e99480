"""Where a row of a snapshot comes from, and what became of each of its payloads.

Finding a sample by its id costs a footer a sample shard, several at a time, and the ids alone of
the row groups whose least and greatest id have it between them, until it is found.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.shard_names import embedding_path, quarantine_path
from features.snapshot import ModalityShards, Snapshot
from features.store import READERS, Store

State = Literal["embedded", "missing", "quarantined", "lost"]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """When, where and with what a shard was computed, as its footer says."""

    time: str
    """UTC, ISO 8601; of the shard: rows copied into it were computed before."""
    host: str
    versions: Mapping[str, str]
    rows: int
    copied: int
    """Rows of the shard that were copied from shards that were there."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingPlace:
    """The file in which an embedding stands, and where in it."""

    path: str
    """Within the store."""
    position: int
    """Of its (first) vector among the rows of the file, from 0."""
    vectors: int
    """1, or the length of a sequence."""
    patch: bool
    """Whether the file is a patch: rows that were tried again after they had been bad."""
    computed: Computed | None
    """None if the file does not say."""


@dataclass(frozen=True, kw_only=True)
class PayloadTrace:
    """One modality of a sample."""

    state: State
    """`lost`: there is a payload, but neither an embedding nor an entry in the quarantine."""
    key: str
    """The payload's key, in hexadecimal; empty if there is no payload."""
    encoder: str
    """Fingerprint of the encoder."""
    spec: Mapping[str, Any]
    """The encoder's spec: what its card, `encoders/<fingerprint>.json`, says."""
    embedding: EmbeddingPlace | None = None
    stage: str = ""
    """Of a quarantined payload: where it failed."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleTrace:
    """A row of a snapshot."""

    sample_id: str
    snapshot: str
    row: int
    """Within the snapshot, from 0."""
    source_file: str
    """Empty if it is not known where the rows of the snapshot stood."""
    source_row: int | None
    """Within the file, from 0."""
    sample_shard: str
    """Path within the store."""
    shard_row: int
    """Within the sample shard, from 0: the `row` of the embedding and quarantine shards over it."""
    values: Mapping[str, Any]
    """Split, targets and slices, by their columns in the sample shard."""
    payloads: Mapping[str, PayloadTrace]
    """By modality."""


def trace_sample(store: Store, snapshot: Snapshot, *, sample_id: str) -> SampleTrace | None:
    """Where a sample comes from and what became of its payloads; None if it is not there.

    OSError if a shard that the snapshot names is not there, or cannot be read.
    """
    found = find_sample(store, snapshot, sample_id=sample_id)
    if found is None:
        return None
    number, row = found
    shard = snapshot.samples[number]
    table = store.read_table(shard.path).slice(row, 1)
    values = table.to_pylist()[0]
    file, at = _place(snapshot, number=number, row=row)
    return SampleTrace(
        sample_id=sample_id,
        snapshot=snapshot.id,
        row=snapshot.first_rows[number] + row,
        source_file=file,
        source_row=at,
        sample_shard=shard.path,
        shard_row=row,
        values={
            name: value
            for name, value in values.items()
            if name != "sample_id" and not name.startswith("key.")
        },
        payloads={
            modality: _trace_payload(
                store, part, over=part.shards[number], row=row, key=values[f"key.{modality}"]
            )
            for modality, part in snapshot.modalities.items()
        },
    )


def find_sample(store: Store, snapshot: Snapshot, *, sample_id: str) -> tuple[int, int] | None:
    """The number of the sample shard that has an id, and the row in it; None if none has."""
    stop = threading.Event()

    def look(number: int) -> tuple[int, int] | None:
        if stop.is_set():
            return None
        row = _row_in(store, snapshot.samples[number].path, sample_id=sample_id)
        return None if row is None else (number, row)

    with ThreadPoolExecutor(READERS) as pool:
        waiting = iter(range(len(snapshot.samples)))
        running: set[Future[tuple[int, int] | None]] = {
            pool.submit(look, number) for number in islice(waiting, 2 * READERS)
        }
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    found = future.result()
                    if found is not None:
                        return found
                running |= {pool.submit(look, number) for number in islice(waiting, len(done))}
        finally:
            stop.set()
    return None


def _row_in(store: Store, path: str, *, sample_id: str) -> int | None:
    """The row of an id in a sample shard."""
    first = 0
    with store.storage.open(path) as file, pq.ParquetFile(file) as parquet:
        column = parquet.schema_arrow.get_field_index("sample_id")
        for number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(number)
            known = group.column(column).statistics
            outside = (
                known is not None and known.has_min_max and not known.min <= sample_id <= known.max
            )
            if not outside:
                ids = parquet.read_row_group(number, columns=["sample_id"])["sample_id"]
                row = pc.index(ids, pa.scalar(sample_id, ids.type)).as_py()
                if row >= 0:
                    return first + int(row)
            first += group.num_rows
    return None


def _place(snapshot: Snapshot, *, number: int, row: int) -> tuple[str, int | None]:
    """File and row of a sample shard's row in the source."""
    left = row
    for part in snapshot.samples[number].ranges:
        if left < part.stop - part.start:
            return snapshot.files[part.file], part.start + left
        left -= part.stop - part.start
    return "", None


def _trace_payload(
    store: Store,
    part: ModalityShards,
    *,
    over: Sequence[str],
    row: int,
    key: bytes | None,
) -> PayloadTrace:
    encoder = part.encoder_fingerprint
    about: dict[str, Any] = {"encoder": encoder, "spec": part.encoder}
    if key is None:
        return PayloadTrace(state="missing", key="", **about)
    about["key"] = key.hex()
    for shard in over:
        path = embedding_path(encoder=encoder, shard=shard)
        rows = store.read_table(path, columns=["row"])["row"].to_numpy()
        places = np.flatnonzero(rows == row)
        if len(places):
            place = EmbeddingPlace(
                path=path,
                position=int(places[0]),
                vectors=len(places),
                patch=shard != over[0],
                computed=_computed(store.read_metadata(path)),
            )
            return PayloadTrace(state="embedded", embedding=place, **about)
    for shard in reversed(over):
        path = quarantine_path(encoder=encoder, shard=shard)
        if store.storage.exists(path):
            for bad in store.read_table(path).to_pylist():
                if bad["row"] == row:
                    return PayloadTrace(
                        state="quarantined", stage=bad["stage"], reason=bad["reason"], **about
                    )
    return PayloadTrace(state="lost", **about)


def _computed(metadata: Mapping[str, str]) -> Computed | None:
    if "sensorium.computed" not in metadata:
        return None
    said = json.loads(metadata["sensorium.computed"])
    return Computed(
        time=said["time"],
        host=said["host"],
        versions=said.get("versions", {}),
        rows=int(metadata["sensorium.rows"]),
        copied=int(metadata["sensorium.copied"]),
    )
