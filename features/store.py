"""The store: where everything lies, and its snapshots and tables, written and read.

    samples/<shard>.parquet                    ids, targets, splits, slices, payload keys
    embeddings/<encoder>/<shard>.parquet       rows present, payload keys, embeddings
    quarantine/<encoder>/<shard>.parquet       rows that have no embedding, and why
    encoders/<encoder>.json                    the encoder's spec
    snapshots/<id>.json                        the shards that make up one version of a dataset
    statistics/<id>.parquet                    what the footers of its shards say of their rows
    places/<id>.json                           where the rows of an earlier snapshot stood
    indexes/<space>/of-<snapshot>.json         the parts of an index over it, which lie beside it
    latest/<name>.json                         the newest snapshot of a dataset, where its rows
                                               stand in the source, and which was before it
    scans/<name>.json                          what was found when the table was last scanned
    attempts/<name>                            the last snapshot that went over its budget
    leases/<kind>-<random>.json                who works on the store at the moment

Everything but the last six is written once and never changed. Readers follow snapshots only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.by_name import code_digest
from features.encoders import EncoderSpec
from features.persistence import persist
from features.samples import SampleShard, groups_of
from features.scan_record import ScanRecord, record_bytes, record_from
from features.shard import ROW_GROUP_ROWS
from features.snapshot import Snapshot, snapshot_from, snapshot_json
from features.sources import RowRange
from features.storage import Storage, local_file

READERS = 8
"""Shards that are read at once: threads wait for a medium, not for a processor."""

T = TypeVar("T")


class UnreadableFile(OSError, ValueError):
    """A file of the store that is not as it was written, or could not be read as that."""


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
        code = code_digest(type(spec))
        if code is not None:
            card["code"] = code
        self.storage.write_once(f"encoders/{fingerprint}.json", _json(card))

    def code_of(self, encoder: str) -> str | None:
        """The hash of the code of a user's encoder when its first shard was computed; None of
        others, and if there is none yet.
        """
        try:
            return self._read_json(f"encoders/{encoder}.json").get("code")
        except FileNotFoundError:
            return None

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

    def read_groups(self, snapshot: Snapshot) -> np.ndarray | None:
        """The number of each row's group of the split, int64 `[N]`; None if samples keep none.

        One file is opened to know that; only if they keep any are the groups of all rows read.
        """
        first = self.read_table(snapshot.samples[0].path, columns=["group"])
        if "group" not in first.column_names:
            return None
        return groups_of(self.read_samples(snapshot, columns=["group"]))

    def read_table(self, path: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """A Parquet file of the store, or some of its columns."""
        # Read ahead in few large requests: without it a store in S3 costs one a column and group.
        wanted = None if columns is None else list(columns)

        def read(file: pa.NativeFile) -> pa.Table:
            with pq.ParquetFile(file, pre_buffer=True) as parquet:
                return parquet.read(columns=wanted)

        return self.read_file(path, read)

    def read_metadata(self, path: str) -> dict[str, str]:
        """The key-value metadata in the footer of a Parquet file of the store."""

        def read(file: pa.NativeFile) -> dict[str, str]:
            with pq.ParquetFile(file) as parquet:
                metadata = dict(parquet.metadata.metadata or {})
                metadata.pop(b"ARROW:schema", None)
                return {key.decode(): value.decode() for key, value in metadata.items()}

        return self.read_file(path, read)

    def _read_json(self, path: str) -> Any:
        body = self.storage.read(path)
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._unreadable(path, error) from error

    def read_file(
        self, path: str, read: Callable[[pa.NativeFile], T], *, mapped: bool = False
    ) -> T:
        """What is read from a file; again after a fault that may pass.

        `mapped`, one on a disk is mapped into memory, and what is read of it is no copy.
        What Arrow says of a damaged file names no file, and bears no number as what a system says.
        """

        def attempt() -> T:
            local = local_file(self.storage, path) if mapped else None
            with self.storage.open(path) if local is None else pa.memory_map(local) as file:
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
