"""Shards, snapshots and the quarantine: what the store holds, and how it is read.

    samples/<shard>.parquet                    ids, targets, splits, slices, payload keys
    embeddings/<encoder>/<shard>.parquet       rows present, payload keys, embeddings
    quarantine/<encoder>/<shard>.parquet       rows that have no embedding, and why
    encoders/<encoder>.json                    the encoder's spec
    snapshots/<id>.json                        the shards that make up one version of a dataset
    statistics/<id>.parquet                    what the footers of its shards say of their rows
    places/<id>.json                           where the rows of an earlier snapshot stood
    latest/<name>.json                         the newest snapshot of a dataset, where its rows
                                               stand in the source, and which was before it
    scans/<name>.json                          what was found when the table was last scanned
    attempts/<name>                            the last snapshot that went over its budget
    leases/<kind>-<random>.json                who works on the store at the moment

Everything but the last six is written once and never changed. Readers follow snapshots only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoders import EncoderSpec
from features.fingerprint import DIGEST_BYTES
from features.persistence import persist
from features.samples import SampleShard
from features.scan_record import ScanRecord, record_bytes, record_from
from features.shard import (
    LAYOUT,
    ROW_GROUP_ROWS,
    Embeddings,
    merge_patches,
    read_some_vectors,
    read_vectors,
    vectors,
)
from features.snapshot import Snapshot, snapshot_from, snapshot_json
from features.sources import RowRange
from features.storage import Storage

READERS = 8
"""Shards that are read at once: threads wait for a medium, not for a processor."""
QUARANTINE_SCHEMA = pa.schema(
    {
        "row": pa.int32(),
        "payload_key": pa.binary(DIGEST_BYTES),
        "stage": pa.string(),
        "reason": pa.string(),
    }
)


T = TypeVar("T")


class UnreadableFile(OSError, ValueError):
    """A file of the store that is not as it was written, or could not be read as that."""


def shard_fingerprint(*, encoder: str, keys: str) -> str:
    """Name of the shard that an encoder makes of payloads, given the hash of their keys."""
    digest = hashlib.blake2b(f"{encoder}/{keys}".encode(), digest_size=DIGEST_BYTES)
    return digest.hexdigest()


def patch_fingerprint(*, encoder: str, shard: str, keys: Mapping[int, bytes]) -> str:
    """Name of the patch over a shard that holds some of its rows, given each row's payload key."""
    digest = hashlib.blake2b(f"{encoder}/{shard}".encode(), digest_size=DIGEST_BYTES)
    for row in sorted(keys):
        digest.update(row.to_bytes(4, "little") + keys[row])
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
            pointer = self._read_json(f"latest/{name}.json")
        except FileNotFoundError:
            return None
        return replace(self._placed(pointer), name=name)

    def previous(self, name: str) -> Snapshot | None:
        """The snapshot that was the latest of a name before the present one, if it is there."""
        try:
            pointer = self._read_json(f"latest/{name}.json")
            return self.read_snapshot(pointer["previous"]) if "previous" in pointer else None
        except FileNotFoundError:
            return None

    def placed(self, id: str) -> Snapshot:
        """A snapshot with where its rows stood when it was last the latest of its name.

        Without, if that was not kept; FileNotFoundError if there is no snapshot of that id.
        """
        snapshot = self.read_snapshot(id)
        for path in (f"latest/{snapshot.name}.json", f"places/{id}.json"):
            try:
                place = self._read_json(path)
            except FileNotFoundError:
                continue
            if place["snapshot"] == id:
                return self._placed(place)
        return snapshot

    def _placed(self, place: Mapping[str, Any]) -> Snapshot:
        snapshot = self.read_snapshot(place["snapshot"])
        samples = [
            replace(shard, ranges=tuple(RowRange(file=f, start=a, stop=b) for f, a, b in ranges))
            for shard, ranges in zip(snapshot.samples, place["ranges"], strict=True)
        ]
        return replace(snapshot, files=tuple(place["files"]), samples=tuple(samples))

    def donors(self, name: str) -> list[Snapshot]:
        """The snapshots of a name that may hold embeddings to copy.

        The last that was complete but went over its budget, which may be older or newer than the
        other, and the latest.
        """
        try:
            attempt = self.read_snapshot(self.storage.read(f"attempts/{name}").decode())
        except FileNotFoundError:
            attempt = None
        return [snapshot for snapshot in (attempt, self.latest(name)) if snapshot is not None]

    def read_scan(self, name: str) -> ScanRecord | None:
        """What was found when a dataset's table was last scanned."""
        try:
            return record_from(self.storage.read(f"scans/{name}.json"))
        except FileNotFoundError:
            return None

    # ------------------------------------------------------------------ writing

    def write_scan(self, name: str, record: ScanRecord) -> None:
        """Remember a scan, for the next one to start from."""
        self.storage.replace(f"scans/{name}.json", record_bytes(record))

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

        False if it is the latest already. Of the one that was the latest, the places of its rows
        are kept beside it.
        """
        pointer = f"latest/{snapshot.name}.json"
        ranges = [[[r.file, r.start, r.stop] for r in s.ranges] for s in snapshot.samples]
        place: dict[str, Any] = {
            "snapshot": snapshot.id,
            "files": list(snapshot.files),
            "ranges": ranges,
        }
        self._write_snapshot(snapshot)
        try:
            before = self._read_json(pointer)
        except FileNotFoundError:
            before = {}
        known = before.get("snapshot")
        previous = before.get("previous") if known == snapshot.id else known
        if previous is not None:
            place["previous"] = previous
        if before != place:
            if known not in (None, snapshot.id):
                self.storage.replace(f"places/{known}.json", _json(before, indent=None))
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
        return snapshot_from(self._read_json(f"snapshots/{id}.json"))

    def read_samples(self, snapshot: Snapshot, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The samples' columns in row order, all shards in memory at once."""
        tables = [self.read_table(shard.path, columns=columns) for shard in snapshot.samples]
        return pa.concat_tables(tables, promote_options="permissive")

    def read_embeddings(self, snapshot: Snapshot, *, modality: str) -> Embeddings:
        """A modality's embeddings in row order, all of them in memory at once.

        Costs one open file a shard, several at a time; the vectors are read into their place.
        """
        part = snapshot.modalities[modality]
        over = list(zip(snapshot.first_rows, snapshot.samples, part.shards, strict=True))
        # No shard has more vectors than payloads, but for sequences, which make an array of their
        # own.
        sizes = [
            samples.payloads.get(modality, samples.rows) if shards else 0
            for _, samples, shards in over
        ]
        ends = np.cumsum([0, *sizes])
        dtype = np.dtype(str(part.encoder["dtype"]))
        values = np.empty((int(ends[-1]), part.dim), dtype)

        def read(number: int) -> Embeddings | None:
            first, samples, shards = over[number]
            place = values[ends[number] : ends[number + 1]]
            found = [
                self.read_shard(shard, encoder=part.encoder_fingerprint, of=samples.rows, into=room)
                for shard, room in zip(shards, (place, *[None] * len(shards)))
            ]
            merged = merge_patches(found)
            return None if merged is None else replace(merged, rows=merged.rows + first)

        with ThreadPoolExecutor(max_workers=READERS) as pool:
            parts = [item for item in pool.map(read, range(len(over))) if item is not None]
        lengths = [item.lengths for item in parts if item.lengths is not None]
        if lengths:
            values = np.concatenate([item.values for item in parts])
        else:
            values = _moved_together([item.values for item in parts], within=values)
        return Embeddings(
            rows=np.concatenate([np.empty(0, np.int64), *(item.rows for item in parts)]),
            values=values,
            lengths=np.concatenate(lengths) if lengths else None,
        )

    def read_shard(
        self,
        shard: str,
        *,
        encoder: str,
        of: int | None = None,
        into: np.ndarray | None = None,
    ) -> Embeddings:
        """One embedding shard; its row numbers are those within the sample shard.

        `of` is how many samples there are, if that is known: a shard that has a vector for each
        has no need to tell which. The vectors are read into the beginning of `into`, if they fit
        and are no sequences.
        """
        path = embedding_path(encoder=encoder, shard=shard)

        def read(file: pa.NativeFile) -> tuple[np.ndarray, np.ndarray, bool]:
            with pq.ParquetFile(file) as parquet:
                schema = parquet.schema_arrow
                metadata = schema.metadata or {}
                vector = schema.field("embedding").type
                count = parquet.metadata.num_rows
                sequence = metadata.get(b"sensorium.sequence") == b"1"
                if metadata.get(b"sensorium.layout") == LAYOUT.encode():
                    shape, dtype = (count, vector.list_size), vector.value_type.to_pandas_dtype()
                    if into is None or sequence or not _has_room(into, shape=shape, dtype=dtype):
                        values = np.empty(shape, dtype)
                    else:
                        values = into[:count]
                    read_vectors(file, parquet, into=values)
                else:
                    values = vectors(parquet.read(columns=["embedding"])["embedding"])
                if count == of and not sequence:
                    return np.arange(count), values, sequence
                rows = parquet.read(columns=["row"])["row"].to_numpy().astype(np.int64)
                return rows, values, sequence

        rows, values, sequence = self._read(path, read)
        if not sequence:
            return Embeddings(rows=rows, values=values)
        own, lengths = np.unique(rows, return_counts=True)
        return Embeddings(rows=own, values=values, lengths=lengths)

    def read_into(self, shard: str, *, encoder: str, into: np.ndarray) -> None:
        """Fill `[V, D]` with all the vectors of an embedding shard, which has so many."""
        path = embedding_path(encoder=encoder, shard=shard)

        def read(file: pa.NativeFile) -> None:
            with pq.ParquetFile(file) as parquet:
                metadata = parquet.schema_arrow.metadata or {}
                if metadata.get(b"sensorium.layout") == LAYOUT.encode():
                    read_vectors(file, parquet, into=into)
                else:
                    into[:] = vectors(parquet.read(columns=["embedding"])["embedding"])

        self._read(path, read)

    def read_donor(self, shard: str, *, encoder: str) -> dict[bytes, np.ndarray]:
        """A shard's embeddings by payload key: `[D]`, or `[T, D]` of sequences."""
        found = self.read_shard(shard, encoder=encoder)
        path = embedding_path(encoder=encoder, shard=shard)
        table = self.read_table(path, columns=["row", "payload_key"])
        keys = dict(zip(table["row"].to_pylist(), table["payload_key"].to_pylist(), strict=True))
        if found.lengths is None:
            parts: Iterable[np.ndarray] = found.values
        else:
            parts = np.split(found.values, np.cumsum(found.lengths)[:-1])
        return {keys[row]: part for row, part in zip(found.rows.tolist(), parts, strict=True)}

    def read_vectors(self, shard: str, *, encoder: str, rows: np.ndarray) -> list[np.ndarray]:
        """The embeddings in some rows of a shard's file, int64 `[N]` in any order: `[D]` each.

        Reads those alone where the layout allows; of sequences, which start in these rows,
        `[T, D]` each, out of the whole file.
        """

        def read(file: pa.NativeFile) -> np.ndarray | None:
            with pq.ParquetFile(file) as parquet:
                metadata = parquet.schema_arrow.metadata or {}
                sequence = metadata.get(b"sensorium.sequence") == b"1"
                if metadata.get(b"sensorium.layout") != LAYOUT.encode() or sequence:
                    return None
                return read_some_vectors(file, parquet, rows=rows)

        some = self._read(embedding_path(encoder=encoder, shard=shard), read)
        if some is not None:
            return list(some)
        found = self.read_shard(shard, encoder=encoder)
        if found.lengths is None:
            return list(found.values[rows])
        starts = np.cumsum(found.lengths) - found.lengths
        parts = np.split(found.values, starts[1:])
        return [parts[place] for place in np.searchsorted(starts, rows)]

    def read_rows(self, snapshot: Snapshot, *, modality: str) -> np.ndarray:
        """Row numbers of the samples that have an embedding, int64 `[P]`, ascending."""
        part = snapshot.modalities[modality]
        found = [np.empty(0, np.int64)]
        for first, shards in zip(snapshot.first_rows, part.shards, strict=True):
            for shard in shards:
                path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
                rows = np.unique(self.read_table(path, columns=["row"])["row"].to_numpy())
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
        wanted = None if columns is None else list(columns)

        def read(file: pa.NativeFile) -> pa.Table:
            with pq.ParquetFile(file, pre_buffer=True) as parquet:
                return parquet.read(columns=wanted)

        return self._read(path, read)

    def read_metadata(self, path: str) -> dict[str, str]:
        """The key-value metadata in the footer of a Parquet file of the store."""

        def read(file: pa.NativeFile) -> dict[str, str]:
            with pq.ParquetFile(file) as parquet:
                metadata = dict(parquet.metadata.metadata or {})
                metadata.pop(b"ARROW:schema", None)
                return {key.decode(): value.decode() for key, value in metadata.items()}

        return self._read(path, read)

    def _read_json(self, path: str) -> Any:
        body = self.storage.read(path)
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._unreadable(path, error) from error

    def _read(self, path: str, read: Callable[[pa.NativeFile], T]) -> T:
        """What is read from a file; again after a fault that may pass.

        What Arrow says of a damaged file names no file, and bears no number as what a system says.
        """

        def attempt() -> T:
            with self.storage.open(path) as file:
                return read(file)

        try:
            return persist(attempt)
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: str, error: Exception) -> UnreadableFile:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return UnreadableFile(
            f"{self.storage.root}/{path} cannot be read ({said}); if that stays so, it is damaged: "
            "`sensorium store verify` finds all such files; delete "
            "them (a quarantine with its embedding shard), and they are made again"
        )


def _has_room(place: np.ndarray, *, shape: tuple[int, int], dtype: object) -> bool:
    return place.dtype == dtype and place.shape[1] == shape[1] and len(place) >= shape[0]


def _moved_together(parts: Sequence[np.ndarray], *, within: np.ndarray) -> np.ndarray:
    """The parts one after another at the beginning of an array, in which most of them lie already.

    None is moved to behind where it lies, or over one that has yet to be moved.
    """
    stop = 0
    for part in parts:
        place = within[stop : stop + len(part)]
        if part.ctypes.data != place.ctypes.data:
            place[:] = part
        stop += len(part)
    return within[:stop]


def parquet_bytes(table: pa.Table) -> pa.Buffer:
    """A whole Parquet file, compressed by zstd; each page has its CRC, which readers may check."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[f.name for f in table.schema if pa.types.is_string(f.type)],
        row_group_size=ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _stems(names: set[str]) -> set[str]:
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def _json(value: object, *, indent: int | None = 1) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()
