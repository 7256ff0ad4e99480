"""The samples that were found: what the snapshot says of them, and their payloads in the table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns import PayloadColumns, read_as_text
from features.payload_keys import depends_on_files, payload_keys
from features.snapshot import Snapshot
from features.sources import RowReader, Source, SourceError, rows_in_source
from features.sources.formats import FORMATS, format_of
from features.spec import PayloadKey
from features.store import Store
from workflows.space.index import Index
from workflows.space.nearest import Near
from workflows.space.parts import Part
from workflows.space.preview import place_of

KEYS_BY: tuple[PayloadKey, ...] = ("stat", "uri", "content")
"""What a payload's key may have been made of, the cheapest first."""
CHANGED = "the table or the file has changed since it was embedded"
UNCOMPARED = "not opened, so not compared with what was embedded; a page (--html) compares"


@dataclass(kw_only=True)
class Found:
    """A payload that was found, and the samples that hold it."""

    modality: str
    similarity: float
    """Cosine, -1..1."""
    rank: int
    """From 1."""
    sample_id: str
    row: int
    """Within the snapshot, from 0."""
    shard: int
    """Number of the sample shard."""
    shard_row: int
    key: bytes
    """Of the payload."""
    repeats: int = 0
    """Further samples that hold the same payload, among those that were looked at."""
    split: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """By the target's column."""
    slices: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = None
    """As it stands in the table: a text, a URI, bytes, numbers, a cut."""
    lacking: str | None = None
    """Why there is no payload to show."""


def located(
    store: Store, snapshot: Snapshot, *, nearest: Sequence[tuple[Index, Near]]
) -> list[Found]:
    """Which samples of the snapshot hold what was found, and not yet what it is."""
    rows: dict[str, dict[int, int]] = {}
    for index, near in nearest:
        rows.setdefault(index.parts[near.part].path, {})[near.place] = 0
    for path, of in rows.items():
        places = sorted(of)
        of.update(zip(places, _rows(store, path, places=places), strict=True))
    found = []
    for rank, (index, near) in enumerate(nearest, start=1):
        part = index.parts[near.part]
        shard, row = _sample(part, row=rows[part.path][near.place])
        found.append(
            Found(
                modality=index.modality,
                similarity=near.similarity,
                rank=rank,
                sample_id="",
                row=snapshot.first_rows[shard] + row,
                shard=shard,
                shard_row=row,
                key=near.key,
                repeats=near.samples - 1,
            )
        )
    return found


def _rows(store: Store, path: str, *, places: Sequence[int]) -> list[int]:
    """The rows within a part, of vectors by their places."""

    def read(file: pa.NativeFile) -> pa.Table:
        with pq.ParquetFile(file, pre_buffer=True) as parquet:
            return parquet.read(columns=["row"])

    rows: list[int] = store.read_file(path, read, mapped=True)["row"].take(places).to_pylist()
    return rows


def _sample(part: Part, *, row: int) -> tuple[int, int]:
    """The sample shard of a row of a part, and the row in it."""
    ends = np.cumsum([over.rows for over in part.over])
    shard = int(np.searchsorted(ends, row, side="right"))
    return part.first + shard, row - (int(ends[shard - 1]) if shard else 0)


def tell(store: Store, snapshot: Snapshot, *, found: Sequence[Found]) -> None:
    """Put ids, splits, labels and slices into what was found, out of the sample shards."""
    for number in sorted({one.shard for one in found}):
        table = store.read_table(snapshot.samples[number].path)
        some = [one for one in found if one.shard == number]
        rows = table.take(pa.array([one.shard_row for one in some])).to_pylist()
        for one, values in zip(some, rows, strict=True):
            one.sample_id, one.split = values["sample_id"], values["split"]
            one.labels = _named(values, "target.")
            one.slices = _named(values, "slice.")


def _named(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix) and value is not None
    }


def read_payloads(
    found: Sequence[Found],
    *,
    snapshot: Snapshot,
    columns: Mapping[str, PayloadColumns],
    source: Source | None,
    opened: bool,
) -> None:
    """Put their payloads into what was found, as they stand in the table, or why they do not.

    A payload is shown only if its key is that which was embedded, so that what is shown is what
    was found, whatever became of the table meanwhile. A file is read whole for that only if it is
    to be `opened` anyhow, and is known by its content alone; else it is said where it is, and that
    it was not compared.
    """
    if source is None or not all(snapshot.samples[one.shard].ranges for one in found):
        for one in found:
            one.lacking = "it is not known where the rows of this snapshot stood in the table"
        return
    wanted = list(dict.fromkeys(name for read in columns.values() for name in read.names))
    reader = RowReader(source, columns=wanted, text=read_as_text(columns.values(), also=()))
    for one in sorted(found, key=lambda one: (one.shard, one.shard_row)):
        try:
            ranges = rows_in_source(snapshot.samples[one.shard].ranges, [one.shard_row])
            table = reader.read(ranges)
            read = columns[one.modality]
            (payload,) = read.payloads(table)
            is_same = any(
                one.key == payload_keys([payload], columns=read, folder=source.folder, by=by)[0]
                for by in KEYS_BY
                if opened or by != "content" or not depends_on_files(payload, columns=read)
            )
        except (SourceError, OSError, ValueError, IndexError, KeyError) as error:
            one.lacking = f"it cannot be read from the table: {error}"
            continue
        if is_same:
            one.payload = payload
        elif opened or not depends_on_files(payload, columns=read):
            one.lacking = CHANGED
        else:
            place = place_of(payload, columns=read, folder=source.folder)
            one.lacking = f"{place or 'a file'} ({UNCOMPARED})"


def source_of(snapshot: Snapshot) -> Source | None:
    """The table that a snapshot was made of, by its files; None if they are not known.

    In formats whose names do not tell them, a folder of files for instance, by what they look like.
    """
    if not snapshot.files:
        return None
    first = snapshot.files[0]
    try:
        format = "folder" if first.endswith(("/*", "/")) else format_of(first)
    except SourceError:
        return None
    folder = os.path.dirname(first.rstrip("/"))
    if format not in FORMATS:
        return None
    return Source(files=tuple(snapshot.files), stats=(), format=format, folder=folder)
