"""Shards, snapshots and the quarantine: what the store holds, and how it is read.

    samples/<shard>.parquet                    ids, targets, splits, slices, payload keys
    embeddings/<encoder>/<shard>.parquet       rows present, payload keys, embeddings
    quarantine/<encoder>/<shard>.parquet       rows that have no embedding, and why
    encoders/<encoder>.json                    the encoder's spec
    snapshots/<id>.json                        the shards that make up one version of a dataset
    latest/<name>.json                         the newest snapshot of a dataset

Everything but `latest/` is written once and never changed. Readers follow snapshots only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoders import EncoderSpec, Kind
from features.fingerprint import DIGEST_BYTES, fingerprint
from features.samples import SampleShard
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
class ModalityShards:
    """One modality of a snapshot: its encoder, and the embedding shards over each sample shard."""

    kind: Kind
    encoder: Mapping[str, Any]
    """The encoder's spec, as JSON."""
    encoder_fingerprint: str
    dim: int
    shards: tuple[tuple[str, ...], ...]
    """Per sample shard: the embedding shards over it (none if no payload is there)."""
    present: int
    """Samples with an embedding."""
    missing: int
    """Samples without a payload."""
    bad: int
    """Samples whose payload is in the quarantine."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a dataset with its embeddings, by reference to immutable shards."""

    name: str
    target: str | None
    slices: tuple[str, ...]
    samples: tuple[SampleShard, ...]
    modalities: Mapping[str, ModalityShards]
    files: tuple[str, ...] = ()
    """The source's files, which the sample shards' ranges refer to."""

    @cached_property
    def id(self) -> str:
        """Hash of what the snapshot refers to; names and paths do not enter it."""
        return self.part(modalities=tuple(self.modalities))

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.samples)

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """Per sample shard: the number of its first row within the snapshot."""
        return tuple(int(row) for row in np.cumsum([0, *(s.rows for s in self.samples)])[:-1])

    def part(self, *, modalities: Sequence[str]) -> str:
        """Identity of the samples and of some of the modalities, without the others."""
        return fingerprint(
            {
                "samples": [shard.fingerprint for shard in self.samples],
                "target": self.target,
                "modalities": {
                    name: {
                        "encoder": self.modalities[name].encoder_fingerprint,
                        "shards": self.modalities[name].shards,
                    }
                    for name in modalities
                },
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
        """The snapshot last committed under a name."""
        try:
            pointer = json.loads(self.storage.read(f"latest/{name}.json"))
        except FileNotFoundError:
            return None
        return self.read_snapshot(pointer["snapshot"])

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

        False, and nothing written, if it is the latest already.
        """
        pointer = f"latest/{snapshot.name}.json"
        body = _json({"snapshot": snapshot.id})
        self.storage.write_once(f"snapshots/{snapshot.id}.json", _json(_snapshot_json(snapshot)))
        try:
            if self.storage.read(pointer) == body:
                return False
        except FileNotFoundError:
            pass
        self.storage.replace(pointer, body)
        return True

    # ------------------------------------------------------------------ reading

    def read_snapshot(self, id: str) -> Snapshot:
        """A committed snapshot; FileNotFoundError if there is none of that id."""
        return _snapshot_from(json.loads(self.storage.read(f"snapshots/{id}.json")))

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

    def read_quarantine(self, snapshot: Snapshot) -> pa.Table:
        """Who is quarantined and why: `sample_id`, `modality`, `stage`, `reason`, in row order."""
        found: list[pa.Table] = []
        for name, part in snapshot.modalities.items():
            listed = self.quarantined_shards_of(part.encoder_fingerprint)
            for sample_shard, shards in zip(snapshot.samples, part.shards, strict=True):
                bad = [shard for shard in shards if shard in listed]
                if not bad:
                    continue
                # A later patch has quarantined a part of what the shard before it had.
                path = quarantine_path(encoder=part.encoder_fingerprint, shard=bad[-1])
                table = self.read_table(path)
                ids = self.read_table(sample_shard.path, columns=["sample_id"])["sample_id"]
                found.append(
                    pa.table(
                        {
                            "sample_id": ids.take(table["row"]),
                            "modality": pa.array([name] * table.num_rows, pa.string()),
                            "stage": table["stage"],
                            "reason": table["reason"],
                        }
                    )
                )
        names = ("sample_id", "modality", "stage", "reason")
        empty = pa.table({name: pa.array([], pa.string()) for name in names})
        return pa.concat_tables([empty, *found])

    def read_table(self, path: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file of the store, or some of its columns."""
        with self.storage.open(path) as file, pq.ParquetFile(file) as parquet:
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
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


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


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A whole Parquet file: zstd, and byte stream split for float32 vectors (about 0.85 of raw).

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
    )
    return sink.getvalue()


def _stems(names: set[str]) -> set[str]:
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "target": snapshot.target,
        "slices": list(snapshot.slices),
        "files": list(snapshot.files),
        "samples": [
            {
                "fingerprint": shard.fingerprint,
                "rows": shard.rows,
                "ranges": [[r.file, r.start, r.stop] for r in shard.ranges],
                "keys": dict(shard.keys),
                "payloads": dict(shard.payloads),
            }
            for shard in snapshot.samples
        ],
        "modalities": {
            name: {
                "kind": part.kind,
                "encoder": dict(part.encoder),
                "encoder_fingerprint": part.encoder_fingerprint,
                "dim": part.dim,
                "present": part.present,
                "missing": part.missing,
                "bad": part.bad,
                "shards": [list(shards) for shards in part.shards],
            }
            for name, part in snapshot.modalities.items()
        },
    }


def _snapshot_from(value: dict[str, Any]) -> Snapshot:
    return Snapshot(
        name=value["name"],
        target=value["target"],
        slices=tuple(value["slices"]),
        files=tuple(value["files"]),
        samples=tuple(
            SampleShard(
                fingerprint=shard["fingerprint"],
                rows=shard["rows"],
                ranges=tuple(RowRange(file=f, start=a, stop=b) for f, a, b in shard["ranges"]),
                keys=shard["keys"],
                payloads=shard["payloads"],
            )
            for shard in value["samples"]
        ),
        modalities={
            name: ModalityShards(**{**part, "shards": tuple(map(tuple, part["shards"]))})
            for name, part in value["modalities"].items()
        },
    )
