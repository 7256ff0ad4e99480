"""One missing shard, computed: read, decode, prepare, encode, write. Knows nothing of Ray.

Payloads are read, decoded and prepared by threads, one window of rows ahead of the encoder, so
memory is bounded by two windows of prepared payloads and the shard's embeddings. Within a
window, batches are formed of rows of like size, in an order that depends on the rows alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from features.columns import PayloadColumns, open_payload, payload_key
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders import Encoder, EncoderSpec, Kind
from features.encoding import Bad, Prepared, Rows, encode_rows
from features.plan import Work
from features.sources import RowRange, RowReader, Source, SourceError
from features.store import (
    QUARANTINE_SCHEMA,
    Store,
    embedding_path,
    embedding_table,
    parquet_bytes,
    quarantine_path,
    vectors,
)

WINDOW_ROWS: dict[Kind, int] = {
    "text": 2048,
    "image": 256,
    "audio": 128,
    "video": 16,
    "series": 2048,
    "table": 4096,
    "vector": 4096,
}
"""Rows that are prepared at once. Fixed, since it decides which rows share a batch."""
PROBES = 4
"""Copied rows that are tried for one to prove an encoder with."""
THREADS = max(2, min(8, os.cpu_count() or 2))


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of one piece of work, counted in rows."""

    modality: str
    shard: str
    embedded: int
    copied: int
    bad: int
    written: bool
    """False if another job had written the shard meanwhile."""
    seconds: dict[str, float]
    """Wall time waiting for payloads (`read`), in the encoder (`encode`) and writing (`write`)."""


def embed_shard(
    work: Work,
    *,
    store: Store,
    spec: EncoderSpec,
    encoder: Encoder,
    source: Source,
    reader: RowReader,
    columns: PayloadColumns,
    payload_key_by: str,
    limits: Limits = DEFAULT_LIMITS,
) -> ShardResult:
    """Compute one shard and write it, with its quarantine first if it has any.

    Raises SourceError if the payloads are no longer those that were planned, and OSError
    for a fault of the medium; a bad payload raises nothing.
    """
    keys = store.read_table(work.samples, columns=[f"key.{work.modality}"])[0].to_pylist()
    held = _copied(work, store=store, keys=keys)
    done = Rows(values=dict(held))
    seconds = {"read": 0.0, "encode": 0.0, "write": 0.0}

    def windows(rows: Sequence[int]) -> Iterator[tuple[list[Prepared], list[Bad]]]:
        return _prepared_windows(
            rows,
            read=lambda some: columns.payloads(reader.read(_ranges(work.ranges, some))),
            keys=keys,
            columns=columns,
            encoder=encoder,
            folder=source.folder,
            key_by=payload_key_by,
            limits=limits,
        )

    def known_good() -> Iterator[Prepared]:
        for row in list(held)[:PROBES]:
            for prepared, _ in windows([row]):
                yield from prepared

    begun = time.perf_counter()
    wanted = [row for row, key in enumerate(keys) if key is not None and row not in held]
    for prepared, bad in windows(wanted):
        seconds["read"] += time.perf_counter() - begun
        begun = time.perf_counter()
        done.bad += bad
        encode_rows(prepared, spec=spec, encoder=encoder, into=done, known_good=known_good)
        seconds["encode"] += time.perf_counter() - begun
        begun = time.perf_counter()
    begun = time.perf_counter()
    table = _shard_table(
        done, spec=spec, dim=encoder.dim, work=work, keys=keys, copied=len(held), seconds=seconds
    )
    if done.bad:
        bad_rows = sorted(done.bad, key=lambda bad: bad.row)
        quarantine = pa.table(
            {
                "row": [bad.row for bad in bad_rows],
                "payload_key": [keys[bad.row] for bad in bad_rows],
                "stage": [bad.stage for bad in bad_rows],
                "reason": [bad.reason for bad in bad_rows],
            },
            schema=QUARANTINE_SCHEMA,
        )
        path = quarantine_path(encoder=work.encoder, shard=work.shard)
        store.storage.write_once(path, parquet_bytes(quarantine))
    path = embedding_path(encoder=work.encoder, shard=work.shard)
    written = store.storage.write_once(path, parquet_bytes(table))
    seconds["write"] = time.perf_counter() - begun
    return ShardResult(
        modality=work.modality,
        shard=work.shard,
        embedded=len(done.values) - len(held),
        copied=len(held),
        bad=len(done.bad),
        written=written,
        seconds=seconds,
    )


def _copied(work: Work, *, store: Store, keys: Sequence[bytes | None]) -> dict[int, np.ndarray]:
    """The rows whose embeddings stand in donor shards."""
    held: dict[bytes, np.ndarray] = {}
    for donor in work.donors:
        path = embedding_path(encoder=work.encoder, shard=donor)
        try:
            table = store.read_table(path, columns=["payload_key", "embedding"])
        except FileNotFoundError:
            continue  # collected since the planning; its rows are computed like any others
        held.update(zip(table["payload_key"].to_pylist(), vectors(table["embedding"]), strict=True))
    return {row: held[key] for row, key in enumerate(keys) if key is not None and key in held}


def _ranges(ranges: Sequence[RowRange], rows: Sequence[int]) -> list[RowRange]:
    """Where some rows of a shard, counted within it and ascending, stand in the source."""
    starts = np.cumsum([0, *(part.stop - part.start for part in ranges)])
    found: list[RowRange] = []
    for row in rows:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        file, at = ranges[place].file, ranges[place].start + row - int(starts[place])
        if found and (found[-1].file, found[-1].stop) == (file, at):
            found[-1] = RowRange(file=file, start=found[-1].start, stop=at + 1)
        else:
            found.append(RowRange(file=file, start=at, stop=at + 1))
    return found


def _prepared_windows(
    rows: Sequence[int],
    *,
    read: Callable[[Sequence[int]], list[Any]],
    keys: Sequence[bytes | None],
    columns: PayloadColumns,
    encoder: Encoder,
    folder: str,
    key_by: str,
    limits: Limits,
) -> Iterator[tuple[list[Prepared], list[Bad]]]:
    """Windows of prepared rows; the next one is worked on by threads while one is used."""

    def prepare(row: int, value: Any) -> Prepared | Bad:
        if (
            value is None
            or payload_key(value, columns=columns, folder=folder, by=key_by) != keys[row]
        ):
            raise SourceError(
                f"the payload {_shown(value)} is not the one that the job was planned for; leave "
                "the table and its files alone while they are read, and run again"
            )
        try:
            payload = open_payload(value, columns=columns, folder=folder, limits=limits)
        except BadPayload as error:
            return Bad(row=row, stage=error.stage, reason=error.reason)
        try:
            prepared = encoder.prepare(payload)
        except ValueError as error:
            return Bad(row=row, stage="prepare", reason=str(error))
        return Prepared(row=row, payload=prepared, size=encoder.size(prepared))

    window = WINDOW_ROWS[columns.kind]
    with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="prepare") as pool:
        starts = range(0, len(rows), window)
        ahead: list[Future[Prepared | Bad]] = []
        for start in (*starts, None):
            current = ahead
            if start is not None:
                some = rows[start : start + window]
                ahead = [
                    pool.submit(prepare, row, value)
                    for row, value in zip(some, read(some), strict=True)
                ]
            if current:
                results = [future.result() for future in current]
                yield (
                    [item for item in results if isinstance(item, Prepared)],
                    [item for item in results if isinstance(item, Bad)],
                )


def _shard_table(
    done: Rows,
    *,
    spec: EncoderSpec,
    dim: int,
    work: Work,
    keys: Sequence[bytes | None],
    copied: int,
    seconds: dict[str, float],
) -> pa.Table:
    rows = np.array(sorted(done.values), dtype=np.int32)
    values = np.empty((len(rows), dim), dtype=spec.dtype)
    for place, row in enumerate(rows.tolist()):
        values[place] = done.values[row]
    metadata = {
        "sensorium.encoder": work.encoder,
        "sensorium.modality": work.modality,
        "sensorium.dim": str(dim),
        "sensorium.bytes_per_row": str(values.itemsize * dim),
        "sensorium.embedded": str(len(rows) - copied),
        "sensorium.copied": str(copied),
        "sensorium.bad": str(len(done.bad)),
        "sensorium.seconds": json.dumps({k: round(v, 4) for k, v in seconds.items()}),
    }
    row_keys = [key for row in rows.tolist() if (key := keys[row]) is not None]
    return embedding_table(rows=rows, keys=row_keys, values=values, metadata=metadata)


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bytes) else f"of {len(value)} bytes"
    return text if len(text) <= 80 else f"{text[:77]}..."
