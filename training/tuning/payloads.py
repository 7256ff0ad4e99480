"""The raw payloads of one modality, by row number: read once, opened and prepared by threads.

The cells of a modality (text, paths, bytes) are read from the user's table in one pass, and kept
in a file of this machine in the order of the rows, from which any row is had at once; memory holds
what the system keeps of that file. What is prepared is kept for the next epoch while there is room.

Threads, and neither processes nor Ray Data, because which rows come next is drawn step by step and
a picture is some 150 kB to pass on, while most of preparing holds no lock: of the 7 ms of a core
that a JPEG of 640 × 480 takes to become 224 × 224, two thirds are Pillow's decoding and resizing.
The rest bounds a worker to about 450 new pictures a second however many cores it has, which is more
than a CPU tunes an encoder with; a GPU that takes more waits for them in the first epoch, and in
each where they are not kept: there processes would help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.columns import PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, Limits
from features.encoders import EncoderSpec, TrainableEncoder, parse_encoder
from features.payload_keys import payload_key
from features.payloads import open_payload
from features.prepare import READ_ROWS, WINDOW_ROWS, bytes_of
from features.snapshot import Snapshot
from features.sources import RowReader, Source, SourceError, rows_in_source
from features.store import Store

KEPT_BYTES = 2**30
"""Size of prepared payloads, of one modality, that are kept from one epoch to the next."""


@dataclass(frozen=True, kw_only=True)
class PayloadSource:
    """Where a snapshot's payloads are: the user's table, and how its cells are read."""

    source: Source
    columns: Mapping[str, PayloadColumns]
    """Per modality."""
    key_by: str = "stat"
    limits: Limits = DEFAULT_LIMITS


class PayloadRows:
    """One modality's payloads by row number, prepared for an encoder."""

    def __init__(
        self,
        *,
        store: Store,
        snapshot: Snapshot,
        modality: str,
        payloads: PayloadSource,
        present: np.ndarray,
        folder: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._modality, self._payloads, self._pool = modality, payloads, pool
        self._columns = payloads.columns[modality]
        self._present = present
        self.spec = _encoder_spec(snapshot, modality=modality)
        self._encoder: TrainableEncoder | None = None
        self._cells = _Cells(Path(folder) / f"{modality}.arrow")
        for table in self._read(store, snapshot):
            self._cells.add(table)
        self._cells.close()
        self._kept: dict[int, Any] = {}
        self._kept_bytes = 0
        self._coming: dict[int, Future[Any]] = {}

    def load(self) -> TrainableEncoder:
        """The encoder with the weights of stage 1, loaded anew each time; it prepares from now."""
        self._encoder = self.spec.load_trainable()
        return self._encoder

    @property
    def at_hand(self) -> set[int]:
        """The rows that are prepared, or being prepared."""
        return {*self._kept, *self._coming}

    def expect(self, rows: Sequence[int]) -> None:
        """Begin to prepare some rows that will be asked for."""
        if self._encoder is None:
            self.load()
        for row in rows:
            if row not in self._kept and row not in self._coming:
                self._coming[row] = self._pool.submit(self._prepare, row)

    def take(self, rows: Sequence[int]) -> list[Any]:
        """The prepared payloads of some rows, all of which have one."""
        self.expect(rows)
        found = []
        for row in rows:
            if row in self._coming:
                found.append(self._keep(row, self._coming.pop(row).result()))
            else:
                found.append(self._kept[row])
        return found

    def _keep(self, row: int, prepared: Any) -> Any:
        size = bytes_of(prepared)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[row] = prepared
            self._kept_bytes += size
        return prepared

    def _prepare(self, row: int) -> Any:
        assert self._encoder is not None
        place = int(np.searchsorted(self._present, row))
        (value,) = self._columns.payloads(self._cells.row(place))
        try:
            payload = open_payload(
                value,
                columns=self._columns,
                folder=self._payloads.source.folder,
                limits=self._payloads.limits,
            )
            return self._encoder.prepare(payload)
        except ValueError as error:
            raise SourceError(
                f"modality {self._modality!r}: a payload that has been embedded cannot be read "
                f"any more: {error}; leave the table and its files alone while they are read"
            ) from error

    def _read(self, store: Store, snapshot: Snapshot) -> Iterator[pa.Table]:
        """The cells of all present rows, in their order; SourceError if one is another now."""
        source, columns = self._payloads.source, self._columns
        reader = RowReader(source, columns=columns.names, text=columns.text_names)
        step = READ_ROWS.get(columns.kind, WINDOW_ROWS[columns.kind])
        for shard, first in zip(snapshot.samples, snapshot.first_rows, strict=True):
            inside = (self._present >= first) & (self._present < first + shard.rows)
            rows = (self._present[inside] - first).tolist()
            if not rows:
                continue
            if not shard.ranges:
                raise SourceError(
                    f"it is not known where the samples of snapshot {snapshot.id} stand in the "
                    "table; embed once more"
                )
            name = f"key.{self._modality}"
            keys = store.read_table(shard.path, columns=[name])[name].to_pylist()
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                table = reader.read(rows_in_source(shard.ranges, some))
                self._check(columns.payloads(table), keys=[keys[row] for row in some])
                yield table.select(list(columns.names))

    def _check(self, values: Sequence[Any], *, keys: Sequence[bytes | None]) -> None:
        for value, key in zip(values, keys, strict=True):
            found = None
            if value is not None:
                found = payload_key(
                    value,
                    columns=self._columns,
                    folder=self._payloads.source.folder,
                    by=self._payloads.key_by,
                )
            if found != key:
                raise SourceError(
                    f"modality {self._modality!r}: a payload is not the one that was embedded: "
                    f"{str(value)[:80]!r}; embed once more, so that candidates are fitted to the "
                    "table as it is"
                )


class _Cells:
    """Rows of a table in a file, from which any is had at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._schema: pa.Schema | None = None
        self._starts = [0]
        self._batches: list[pa.RecordBatch] = []

    def add(self, table: pa.Table) -> None:
        """Write the next rows."""
        if self._schema is None:
            self._schema = table.schema
            self._writer = pa.ipc.new_file(str(self._path), self._schema)
        (batch,) = table.cast(self._schema).combine_chunks().to_batches()
        self._writer.write_batch(batch)
        self._starts.append(self._starts[-1] + batch.num_rows)

    def close(self) -> None:
        """No more rows come; from here on they are read."""
        if self._writer is None:
            return
        self._writer.close()
        file = pa.ipc.open_file(pa.memory_map(str(self._path)))
        self._batches = [file.get_batch(i) for i in range(file.num_record_batches)]

    def row(self, number: int) -> pa.Table:
        """One row."""
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        batch = self._batches[place].slice(number - self._starts[place], 1)
        return pa.Table.from_batches([batch])


def _encoder_spec(snapshot: Snapshot, *, modality: str) -> EncoderSpec:
    part = snapshot.modalities[modality]
    spec = parse_encoder(dict(part.encoder))
    if not spec.trainable:
        raise SourceError(
            f"modality {modality!r}: the encoder {spec.type!r} has no weights that can be tuned; "
            "take it out of `encoders`"
        )
    here = spec.fingerprint()
    if here != part.encoder_fingerprint:
        raise SourceError(
            f"modality {modality!r}: the encoder {spec.type!r} here has the fingerprint {here}, "
            f"and the snapshot was embedded by {part.encoder_fingerprint}; embed once more"
        )
    return spec
