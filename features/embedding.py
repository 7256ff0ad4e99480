"""One missing shard, computed: read, decode, prepare, encode, write. Knows nothing of Ray.

Payloads are fetched, decoded and prepared by threads, one window of rows ahead of the
encoder, so memory is bounded by two windows whatever the shard's size. Within a window,
batches are formed of rows of like size, in an order that depends on the rows alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from features import payloads
from features.encoders import Encoder, EncoderSpec
from features.plan import Work
from features.samples import payload_key
from features.sources import RowReader, Source, SourceError
from features.store import (
    QUARANTINE_SCHEMA,
    Store,
    embedding_path,
    embedding_table,
    parquet_bytes,
    quarantine_path,
    vectors,
)

WINDOW_ROWS = 512
"""Rows that are decoded at once. Fixed, since it decides which rows share a batch."""
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


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A row without an embedding, and why."""

    row: int
    stage: str
    reason: str


@dataclass(kw_only=True)
class _Rows:
    """Embeddings as they come, in any order."""

    rows: list[int] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def embed_shard(
    work: Work,
    *,
    store: Store,
    spec: EncoderSpec,
    encoder: Encoder,
    source: Source,
    reader: RowReader,
    column: str,
    payload_key_by: str,
) -> ShardResult:
    """Compute one shard and write it, with its quarantine first if it has any.

    Raises SourceError if the payloads are no longer those that were planned, and OSError
    for a fault of the medium; a bad payload raises nothing.
    """
    keys = store.read_table(work.samples, columns=[f"key.{work.modality}"])[0].to_pylist()
    done = _copied(work, store=store, keys=keys)
    copied = len(done.rows)
    seconds = {"read": 0.0, "encode": 0.0, "write": 0.0}
    held = set(done.rows)
    wanted = [row for row, key in enumerate(keys) if key is not None and row not in held]
    if wanted:
        values = reader.read(work.ranges)[column].to_pylist()
        windows = _prepared_windows(
            [(row, values[row], keys[row]) for row in wanted],
            spec=spec,
            encoder=encoder,
            folder=source.folder,
            key_by=payload_key_by,
        )
        begun = time.perf_counter()
        for prepared, bad in windows:
            seconds["read"] += time.perf_counter() - begun
            begun = time.perf_counter()
            done.bad += bad
            _encode_window(prepared, spec=spec, encoder=encoder, into=done)
            seconds["encode"] += time.perf_counter() - begun
            begun = time.perf_counter()
    begun = time.perf_counter()
    table = _shard_table(
        done, spec=spec, dim=encoder.dim, work=work, keys=keys, copied=copied, seconds=seconds
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
        embedded=len(done.rows) - copied,
        copied=copied,
        bad=len(done.bad),
        written=written,
        seconds=seconds,
    )


def _copied(work: Work, *, store: Store, keys: Sequence[bytes | None]) -> _Rows:
    """The rows whose embeddings stand in donor shards."""
    found = _Rows()
    if not work.donors:
        return found
    held: dict[bytes, np.ndarray] = {}
    for donor in work.donors:
        path = embedding_path(encoder=work.encoder, shard=donor)
        try:
            table = store.read_table(path, columns=["payload_key", "embedding"])
        except FileNotFoundError:
            continue  # collected since the planning; its rows are computed like any others
        held.update(zip(table["payload_key"].to_pylist(), vectors(table["embedding"]), strict=True))
    for row, key in enumerate(keys):
        if key is not None and key in held:
            found.rows.append(row)
            found.values.append(held[key])
    return found


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    row: int
    payload: Any
    size: int


def _prepared_windows(
    rows: Sequence[tuple[int, Any, bytes]],
    *,
    spec: EncoderSpec,
    encoder: Encoder,
    folder: str,
    key_by: str,
) -> Iterator[tuple[list[_Prepared], list[Bad]]]:
    """Windows of prepared rows; the next one is worked on by threads while one is used."""

    def prepare(item: tuple[int, Any, bytes]) -> _Prepared | Bad:
        row, value, key = item
        if value is None or payload_key(value, kind=spec.kind, folder=folder, by=key_by) != key:
            raise SourceError(
                f"the payload {_shown(value)} is not the one that the job was planned for; leave "
                "the table and its files alone while they are read, and run again"
            )
        try:
            raw = value
            if spec.kind != "text" and isinstance(value, str):
                raw = payloads.fetch(value, base=folder)
            payload = payloads.decode(raw, kind=spec.kind)
        except payloads.BadPayload as error:
            return Bad(row=row, stage=error.stage, reason=error.reason)
        try:
            prepared = encoder.prepare(payload)
        except ValueError as error:
            return Bad(row=row, stage="prepare", reason=str(error))
        return _Prepared(row=row, payload=prepared, size=encoder.size(prepared))

    with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="prepare") as pool:
        starts = range(0, len(rows), WINDOW_ROWS)
        ahead: list[Future[_Prepared | Bad]] = []
        for start in (*starts, None):
            current = ahead
            if start is not None:
                ahead = [pool.submit(prepare, item) for item in rows[start : start + WINDOW_ROWS]]
            if current:
                results = [future.result() for future in current]
                yield (
                    [item for item in results if isinstance(item, _Prepared)],
                    [item for item in results if isinstance(item, Bad)],
                )


def _encode_window(
    prepared: list[_Prepared], *, spec: EncoderSpec, encoder: Encoder, into: _Rows
) -> None:
    """Encode in batches of rows of like size, the longest first: if memory runs out, then soon."""
    ordered = sorted(prepared, key=lambda item: (-item.size, item.row))
    for start in range(0, len(ordered), spec.batch_size):
        batch = ordered[start : start + spec.batch_size]
        failures = _encode_batch(batch, spec=spec, encoder=encoder, into=into)
        if len(failures) == len(batch) > 1:
            raise failures[0]  # not the rows are at fault, but the encoder


def _encode_batch(
    batch: Sequence[_Prepared], *, spec: EncoderSpec, encoder: Encoder, into: _Rows
) -> list[Exception]:
    """Encode a batch; on an error halve it, until it is done or the row that fails is alone.

    Returns the errors of rows that failed alone. Memory that does not suffice for one row,
    and a fault of the medium, are raised.
    """
    try:
        values = np.asarray(encoder.encode([item.payload for item in batch]))
    except OSError:
        raise
    except Exception as error:
        if len(batch) == 1:
            if _is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}"
            into.bad.append(Bad(row=batch[0].row, stage="encode", reason=reason))
            return [error]
        middle = (len(batch) + 1) // 2
        return [
            failure
            for half in (batch[:middle], batch[middle:])
            for failure in _encode_batch(half, spec=spec, encoder=encoder, into=into)
        ]
    assert values.shape == (len(batch), encoder.dim), (values.shape, len(batch), encoder.dim)
    with np.errstate(over="ignore"):
        stored = values.astype(spec.dtype)
    finite = np.isfinite(stored).all(axis=1)
    for item, value, computed, good in zip(batch, stored, values, finite, strict=True):
        if good:
            into.rows.append(item.row)
            into.values.append(value)
        elif np.isfinite(computed).all():
            reason = f"the embedding is out of range for {spec.dtype}; set `dtype: float32`"
            into.bad.append(Bad(row=item.row, stage="encode", reason=reason))
        else:
            reason = "the encoder gave a value that is not finite"
            into.bad.append(Bad(row=item.row, stage="encode", reason=reason))
    return []


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _shard_table(
    done: _Rows,
    *,
    spec: EncoderSpec,
    dim: int,
    work: Work,
    keys: Sequence[bytes | None],
    copied: int,
    seconds: dict[str, float],
) -> pa.Table:
    order = np.argsort(np.array(done.rows, dtype=np.int64))
    rows = np.array(done.rows, dtype=np.int32)[order]
    values = np.empty((len(rows), dim), dtype=spec.dtype)
    for place, source in enumerate(order):
        values[place] = done.values[source]
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
