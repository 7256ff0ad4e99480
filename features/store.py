"""Shards, snapshots and the quarantine: what the store holds, and how it is read.

    samples/<shard>.parquet                    ids, targets, splits, slices, payload keys
    embeddings/<encoder>/<shard>.parquet       rows present, payload keys, embeddings
    quarantine/<encoder>/<shard>.parquet       rows that have no embedding, and why
    encoders/<encoder>.json                    the encoder's spec
    snapshots/<id>.json                        the shards that make up one version of a dataset
    latest/<name>.json                         the newest snapshot of a dataset, and where its
                                               rows stand in the source
    attempts/<name>                            the last snapshot that went over its budget
    leases/<kind>-<random>.json                who works on the store at the moment

Everything but the last three is written once and never changed. Readers follow snapshots only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoders import EncoderSpec
from features.fingerprint import DIGEST_BYTES
from features.samples import SampleShard
from features.snapshot import Snapshot, snapshot_from, snapshot_json
from features.sources import RowRange
from features.storage import Storage

ROW_GROUP_ROWS = 4096
QUARANTINE_SCHEMA = pa.schema(
    {
        "row": pa.int32(),
        "payload_key": pa.binary(DIGEST_BYTES),
        "stage": pa.string(),
        "reason": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One modality's embeddings, dense, with the place of each."""

    rows: np.ndarray
    """int64 `[P]`, ascending: row numbers within the snapshot."""
    values: np.ndarray
    """float16 or float32 `[P, D]`."""


def shard_fingerprint(*, encoder: str, keys: str) -> str:
    """Name of the shard that an encoder makes of payloads, given the hash of their keys."""
    digest = hashlib.blake2b(f"{encoder}/{keys}".encode(), digest_size=DIGEST_BYTES)
    return digest.hexdigest()


def embedding_path(*, encoder: str, shard: str) -> str:
    """Where an embedding shard lies in the store."""
    return f"embeddings/{encoder}/{shard}.parquet"


def quarantine_path(*, encoder: str, shard: str) -> str:
    """Where the quarantined rows of an embedding shard lie."""
    return f"quarantine/{encoder}/{shard}.parquet"


class Store:
    """The shards and snapshots under one storage. Holds nothing itself; safe to send to workers."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    # ------------------------------------------------------------------ what is there

    def shards_of(self, encoder: str) -> set[str]:
        """Fingerprints of the finished shards of an encoder: one listing."""
        return _stems(self.storage.list(f"embeddings/{encoder}"))

    def quarantined_shards_of(self, encoder: str) -> set[str]:
        """Fingerprints of the shards of an encoder that have quarantined rows: one listing."""
        return _stems(self.storage.list(f"quarantine/{encoder}"))

    def latest(self, name: str) -> Snapshot | None:
        """The snapshot last committed under a name, with where its rows stand."""
        try:
            pointer = json.loads(self.storage.read(f"latest/{name}.json"))
        except FileNotFoundError:
            return None
        snapshot = self.read_snapshot(pointer["snapshot"])
        samples = [
            replace(shard, ranges=tuple(RowRange(file=f, start=a, stop=b) for f, a, b in ranges))
            for shard, ranges in zip(snapshot.samples, pointer["ranges"], strict=True)
        ]
        return replace(snapshot, name=name, files=tuple(pointer["files"]), samples=tuple(samples))

    def donors(self, name: str) -> list[Snapshot]:
        """The snapshots of a name that may hold embeddings to copy, the newest first.

        The latest, and before it the last that was complete but went over its budget.
        """
        try:
            attempt = self.read_snapshot(self.storage.read(f"attempts/{name}").decode())
        except FileNotFoundError:
            attempt = None
        return [snapshot for snapshot in (attempt, self.latest(name)) if snapshot is not None]

    # ------------------------------------------------------------------ writing

    def write_samples(self, shard: SampleShard, *, rows: pa.Table) -> bool:
        """Write a sample shard if it is not there."""
        if self.storage.exists(shard.path):
            return False
        return self.storage.write_once(shard.path, parquet_bytes(rows))

    def write_encoder(self, spec: EncoderSpec, *, fingerprint: str) -> None:
        """Write an encoder's card, for readers without this project."""
        card = {"fingerprint": fingerprint, "kind": spec.kind, "spec": spec.model_dump(mode="json")}
        self.storage.write_once(f"encoders/{fingerprint}.json", _json(card))

    def commit(self, snapshot: Snapshot) -> bool:
        """Write a snapshot whose shards are all there, and make it the latest of its name.

        False if it is the latest already.
        """
        pointer = f"latest/{snapshot.name}.json"
        ranges = [[[r.file, r.start, r.stop] for r in s.ranges] for s in snapshot.samples]
        place = {"snapshot": snapshot.id, "files": list(snapshot.files), "ranges": ranges}
        self._write_snapshot(snapshot)
        try:
            before = json.loads(self.storage.read(pointer))
        except FileNotFoundError:
            before = {}
        if before != place:
            self.storage.replace(pointer, _json(place, indent=None))
        return before.get("snapshot") != snapshot.id

    def keep_attempt(self, snapshot: Snapshot) -> None:
        """Remember a snapshot that must not be used, so that its embeddings can be copied."""
        self._write_snapshot(snapshot)
        self.storage.replace(f"attempts/{snapshot.name}", snapshot.id.encode())

    def _write_snapshot(self, snapshot: Snapshot) -> None:
        path = f"snapshots/{snapshot.id}.json"
        if not self.storage.exists(path):
            self.storage.write_once(path, _json(snapshot_json(snapshot)))

    # ------------------------------------------------------------------ reading

    def read_snapshot(self, id: str) -> Snapshot:
        """A committed snapshot; FileNotFoundError if there is none of that id."""
        return snapshot_from(json.loads(self.storage.read(f"snapshots/{id}.json")))

    def read_samples(self, snapshot: Snapshot, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The samples' columns in row order, all shards in memory at once."""
        tables = [self.read_table(shard.path, columns=columns) for shard in snapshot.samples]
        return pa.concat_tables(tables, promote_options="permissive")

    def read_embeddings(self, snapshot: Snapshot, *, modality: str) -> Embeddings:
        """A modality's embeddings in row order, all of them in memory at once."""
        part = snapshot.modalities[modality]
        rows: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for first, shards in zip(snapshot.first_rows, part.shards, strict=True):
            tables = [self.read_shard(shard, encoder=part.encoder_fingerprint) for shard in shards]
            merged = merge_patches(tables)
            if merged is not None:
                rows.append(merged.rows + first)
                values.append(merged.values)
        dtype = np.dtype(str(part.encoder["dtype"]))
        return Embeddings(
            rows=np.concatenate([np.empty(0, np.int64), *rows]),
            values=np.concatenate([np.empty((0, part.dim), dtype), *values]),
        )

    def read_shard(self, shard: str, *, encoder: str) -> Embeddings:
        """One embedding shard; its row numbers are those within the sample shard."""
        table = self.read_table(
            embedding_path(encoder=encoder, shard=shard), columns=["row", "embedding"]
        )
        return Embeddings(
            rows=table["row"].to_numpy().astype(np.int64), values=vectors(table["embedding"])
        )

    def read_rows(self, snapshot: Snapshot, *, modality: str) -> np.ndarray:
        """Row numbers of the samples that have an embedding, int64 `[P]`, ascending."""
        part = snapshot.modalities[modality]
        found = [np.empty(0, np.int64)]
        for first, shards in zip(snapshot.first_rows, part.shards, strict=True):
            for shard in shards:
                path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
                rows = self.read_table(path, columns=["row"])["row"].to_numpy()
                found.append(rows.astype(np.int64) + first)
        return np.sort(np.concatenate(found))

    def read_quarantine(self, snapshot: Snapshot) -> pa.Table:
        """Who is quarantined and why: `sample_id`, `modality`, `stage`, `reason`, in row order."""
        names = ("sample_id", "modality", "stage", "reason")
        found = [pa.table({name: pa.array([], pa.string()) for name in names})]
        for name, part in snapshot.modalities.items():
            listed = self.quarantined_shards_of(part.encoder_fingerprint)
            for sample_shard, shards in zip(snapshot.samples, part.shards, strict=True):
                bad = self.read_bad(shards, encoder=part.encoder_fingerprint, listed=listed)
                if bad is None:
                    continue
                ids = self.read_table(sample_shard.path, columns=["sample_id"])["sample_id"]
                modality = pa.array([name] * bad.num_rows, pa.string())
                columns = [ids.take(bad["row"]), modality, bad["stage"], bad["reason"]]
                found.append(pa.table(dict(zip(names, columns, strict=True))))
        return pa.concat_tables(found)

    def read_bad(
        self, shards: Sequence[str], *, encoder: str, listed: Collection[str]
    ) -> pa.Table | None:
        """The quarantined rows of a shard and its patches; None if there are none.

        `listed` are the shards of the encoder that have any. A row that a patch embeds is no
        longer bad, and what a patch says of a row holds over what was said before.
        """
        tables = [
            self.read_table(quarantine_path(encoder=encoder, shard=shard))
            for shard in shards
            if shard in listed
        ]
        if not tables:
            return None
        last = {row: i for i, row in enumerate(row for t in tables for row in t["row"].to_pylist())}
        for patch in shards[1:]:
            for row in self.read_shard(patch, encoder=encoder).rows.tolist():
                last.pop(row, None)
        places = [last[row] for row in sorted(last)]
        return pa.concat_tables(tables).take(places) if places else None

    def read_table(self, path: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file of the store, or some of its columns."""
        # Read ahead in few large requests: without it a store in S3 costs one a column and group.
        with self.storage.open(path) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            return parquet.read(columns=None if columns is None else list(columns))

    def read_metadata(self, path: str) -> dict[str, str]:
        """The key-value metadata in the footer of a Parquet file of the store."""
        with self.storage.open(path) as file, pq.ParquetFile(file) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            return {key.decode(): value.decode() for key, value in metadata.items()}


def merge_patches(parts: Sequence[Embeddings]) -> Embeddings | None:
    """A shard and its patches as one, in row order; None if there are none."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    return Embeddings(
        rows=rows[order], values=np.concatenate([part.values for part in parts])[order]
    )


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size list column without nulls as an array `[N, D]`; no copy of a single chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), array.type.list_size)


def embedding_table(
    *, rows: np.ndarray, keys: Sequence[bytes], values: np.ndarray, metadata: Mapping[str, str]
) -> pa.Table:
    """An embedding shard's table: int32 rows `[P]`, keys, and embeddings `[P, D]`."""
    dim = values.shape[1]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    table = pa.table(
        {
            "row": pa.array(rows, pa.int32()),
            "payload_key": pa.array(keys, pa.binary(DIGEST_BYTES)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
        }
    )
    return table.replace_schema_metadata(dict(metadata))


def column_checksum(parts: Iterable[np.ndarray]) -> str:
    """BLAKE2b of an embedding column, given in one or more runs of its vectors, in row order.

    Of the numbers as they stand in the file (little-endian, without nulls), so that neither the
    row groups nor the compression enter it. It stands in the footer as `sensorium.checksum`.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        little = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A whole Parquet file: zstd, and byte stream split for float32 vectors (about 0.85 of raw).

    Each page has its CRC, which a reader checks if asked to.
    Float16 vectors are plain: DuckDB does not read them in byte stream split.
    """
    split = [
        f"{field.name}.list.element"
        for field in table.schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_float32(field.type.value_type)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type)],
        use_byte_stream_split=split,
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _stems(names: set[str]) -> set[str]:
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def _json(value: object, *, indent: int | None = 1) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()
