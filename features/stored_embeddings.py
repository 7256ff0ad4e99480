"""Embeddings read out of the store: a snapshot's, a shard's, or those of some rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.shard import (
    LAYOUT,
    Embeddings,
    merge_patches,
    read_some_vectors,
    read_vectors,
    vectors,
)
from features.shard_names import embedding_path
from features.snapshot import Snapshot
from features.store import READERS, Store


def read_embeddings(store: Store, snapshot: Snapshot, *, modality: str) -> Embeddings:
    """A modality's embeddings in row order, all of them in memory at once.

    Costs one open file a shard, several at a time; the vectors are read into their place.
    """
    part = snapshot.modalities[modality]
    over = list(zip(snapshot.first_rows, snapshot.samples, part.shards, strict=True))
    # No shard has more vectors than payloads, but for sequences, which make an array of their
    # own.
    sizes = [
        samples.payloads.get(modality, samples.rows) if shards else 0 for _, samples, shards in over
    ]
    ends = np.cumsum([0, *sizes])
    dtype = np.dtype(str(part.encoder["dtype"]))
    values = np.empty((int(ends[-1]), part.dim), dtype)

    def read(number: int) -> Embeddings | None:
        first, samples, shards = over[number]
        place = values[ends[number] : ends[number + 1]]
        found = [
            read_embedding_shard(
                store, shard, encoder=part.encoder_fingerprint, of=samples.rows, into=room
            )
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


def read_embedding_shard(
    store: Store,
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

    rows, values, sequence = store.read_file(path, read)
    if not sequence:
        return Embeddings(rows=rows, values=values)
    own, lengths = np.unique(rows, return_counts=True)
    return Embeddings(rows=own, values=values, lengths=lengths)


def read_into(store: Store, shard: str, *, encoder: str, into: np.ndarray) -> None:
    """Fill `[V, D]` with all the vectors of an embedding shard, which has so many."""
    path = embedding_path(encoder=encoder, shard=shard)

    def read(file: pa.NativeFile) -> None:
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            if metadata.get(b"sensorium.layout") == LAYOUT.encode():
                read_vectors(file, parquet, into=into)
            else:
                into[:] = vectors(parquet.read(columns=["embedding"])["embedding"])

    store.read_file(path, read)


def read_donor(store: Store, shard: str, *, encoder: str) -> dict[bytes, np.ndarray]:
    """A shard's embeddings by payload key: `[D]`, or `[T, D]` of sequences."""
    found = read_embedding_shard(store, shard, encoder=encoder)
    path = embedding_path(encoder=encoder, shard=shard)
    table = store.read_table(path, columns=["row", "payload_key"])
    keys = dict(zip(table["row"].to_pylist(), table["payload_key"].to_pylist(), strict=True))
    if found.lengths is None:
        parts: Iterable[np.ndarray] = found.values
    else:
        parts = np.split(found.values, np.cumsum(found.lengths)[:-1])
    return {keys[row]: part for row, part in zip(found.rows.tolist(), parts, strict=True)}


def read_some_embeddings(
    store: Store, shard: str, *, encoder: str, rows: np.ndarray
) -> list[np.ndarray]:
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

    some = store.read_file(embedding_path(encoder=encoder, shard=shard), read)
    if some is not None:
        return list(some)
    found = read_embedding_shard(store, shard, encoder=encoder)
    if found.lengths is None:
        return list(found.values[rows])
    starts = np.cumsum(found.lengths) - found.lengths
    parts = np.split(found.values, starts[1:])
    return [parts[place] for place in np.searchsorted(starts, rows)]


def embedded_rows(store: Store, snapshot: Snapshot, *, modality: str) -> np.ndarray:
    """Row numbers of the samples that have an embedding, int64 `[P]`, ascending."""
    part = snapshot.modalities[modality]
    found = [np.empty(0, np.int64)]
    for first, shards in zip(snapshot.first_rows, part.shards, strict=True):
        for shard in shards:
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            rows = np.unique(store.read_table(path, columns=["row"])["row"].to_numpy())
            found.append(rows.astype(np.int64) + first)
    return np.sort(np.concatenate(found))


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
