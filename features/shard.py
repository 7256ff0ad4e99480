"""The file of an embedding shard: rows, payload keys and vectors, laid out to be read at once.

Ordinary Parquet (https://parquet.apache.org/docs/file-format/), with one property more: the
vectors of a row group are plain, uncompressed and in one page, so that they stand in the file one
after another, and can be read into an array without being decoded. A reader that does not know
that reads them as any other column.

An encoder of sequences gives several vectors to a row: its row number stands beside each.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoders import EncoderSpec
from features.encoding import Rows
from features.fingerprint import DIGEST_BYTES
from features.statistics import statistics_json, statistics_of

ROW_GROUP_ROWS = 4096
_ONCE = tuple(
    f"sensorium.{name}".encode() for name in ("statistics", "computed", "counts", "seconds")
)
LAYOUT = "contiguous"
"""What the footer says of files whose vectors can be read without being decoded."""
LIBRARIES = {
    "sensorium": "features",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "torch": "torch",
    "transformers": "transformers",
    "pillow": "PIL",
    "scikit-image": "skimage",
    "scipy": "scipy",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "av": "av",
}
"""What may decide the last bits of an embedding: distribution → module."""
_VECTORS = "embedding.list.element"


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One modality's embeddings, dense, with the place of each."""

    rows: np.ndarray
    """int64 `[P]`, ascending: row numbers within the snapshot, or within the shard."""
    values: np.ndarray
    """float16 or float32 `[P, D]`; of sequences all vectors `[sum of lengths, D]`."""
    lengths: np.ndarray | None = None
    """int64 `[P]`: how many vectors each row has; None if each has one, and no sequence."""

    def padded(self, places: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sequences of some of the P rows, as `[B, T, D]` with zeros behind their ends, and a
        mask `[B, T]` that is true where a vector stands.
        """
        assert self.lengths is not None, "these embeddings are no sequences"
        lengths = self.lengths[places]
        stops = np.cumsum(self.lengths)[places]
        longest = int(lengths.max(initial=0))
        mask = np.arange(longest)[None, :] < lengths[:, None]
        values = np.zeros((len(lengths), longest, self.values.shape[1]), self.values.dtype)
        index = np.arange(longest)[None, :] + (stops - lengths)[:, None]
        values[mask] = self.values[index[mask]]
        return values, mask

    def pooled(self) -> Embeddings:
        """One vector a row: the mean of its sequence."""
        if self.lengths is None:
            return self
        starts = np.cumsum(self.lengths) - self.lengths
        sums = np.zeros((0, self.values.shape[1]), np.float32)
        if len(starts):
            sums = np.add.reduceat(self.values.astype(np.float32), starts, axis=0)
        means = sums / self.lengths[:, None]
        return Embeddings(rows=self.rows, values=means.astype(self.values.dtype))


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """How a shard came about, for its footer."""

    encoder: str
    modality: str
    copied: int = 0
    bad: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the encoder counted of its payloads."""
    seconds: Mapping[str, float] = field(default_factory=dict)


def shard_table(
    done: Rows,
    *,
    keys: Sequence[bytes | None],
    spec: EncoderSpec,
    dim: int,
    facts: ShardFacts,
) -> pa.Table:
    """The table of a shard, in row order, with its facts and statistics as metadata."""
    rows = sorted(done.values)
    lengths = [len(done.values[row]) if spec.sequence else 1 for row in rows]
    values = np.empty((sum(lengths), dim), dtype=spec.dtype)
    start = 0
    for row, length in zip(rows, lengths, strict=True):
        values[start : start + length] = done.values[row]
        start += length
    found = Embeddings(
        rows=np.array(rows, np.int64),
        values=values,
        lengths=np.array(lengths, np.int64) if spec.sequence else None,
    )
    row_keys = [key for row in rows if (key := keys[row]) is not None]
    statistics = statistics_of(found.pooled().values, keys=row_keys, pooled=spec.sequence)
    metadata = {
        "sensorium.layout": LAYOUT,
        "sensorium.encoder": facts.encoder,
        "sensorium.modality": facts.modality,
        "sensorium.dim": str(dim),
        "sensorium.sequence": str(int(spec.sequence)),
        "sensorium.rows": str(len(rows)),
        "sensorium.bytes_per_row": str(values.nbytes // max(1, len(rows))),
        "sensorium.embedded": str(len(rows) - facts.copied),
        "sensorium.copied": str(facts.copied),
        "sensorium.bad": str(facts.bad),
        "sensorium.counts": json.dumps(dict(facts.counts), sort_keys=True),
        "sensorium.seconds": json.dumps({k: round(v, 4) for k, v in facts.seconds.items()}),
        "sensorium.statistics": statistics_json(statistics),
        "sensorium.checksum": column_checksum([values]),
        "sensorium.computed": json.dumps(
            {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "host": platform.node(),
                "versions": library_versions(),
            }
        ),
    }
    return embedding_table(found, keys=row_keys, metadata=metadata)


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries at work in this process that make embeddings."""
    loaded = [name for name, module in LIBRARIES.items() if module in sys.modules]
    return {"python": platform.python_version(), **{name: _version(name) for name in loaded}}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def embedding_table(
    found: Embeddings, *, keys: Sequence[bytes], metadata: Mapping[str, str]
) -> pa.Table:
    """An embedding shard's table: int32 row numbers, a key a row, and vectors."""
    number = pa.field("element", pa.from_numpy_dtype(found.values.dtype), nullable=False)
    vector = pa.list_(number, found.values.shape[1])
    rows = pa.array(found.rows, pa.int32())
    row_keys = pa.array(keys, pa.binary(DIGEST_BYTES))
    if found.lengths is not None:
        place = pa.array(np.repeat(np.arange(len(rows)), found.lengths))
        rows, row_keys = rows.take(place), row_keys.take(place)
    flat = pa.array(np.ascontiguousarray(found.values).reshape(-1))
    schema = pa.schema(
        [
            pa.field("row", pa.int32(), nullable=False),
            pa.field("payload_key", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field("embedding", vector, nullable=False),
        ],
        metadata=dict(metadata),
    )
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=vector)
    return pa.table([rows, row_keys, vectors], schema=schema)


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


def embedding_bytes(table: pa.Table) -> pa.Buffer:
    """The Parquet file of an embedding shard, in the layout that can be read without decoding."""
    sink = pa.BufferOutputStream()
    metadata = dict(table.schema.metadata or {})
    sequence = metadata.get(b"sensorium.sequence") == b"1"
    # As metadata of the schema it would stand in the file twice, once within Arrow's own.
    large = {key: metadata.pop(key) for key in _ONCE if key in metadata}
    table = table.replace_schema_metadata(metadata)
    with pq.ParquetWriter(
        sink,
        table.schema,
        data_page_size=2**31 - 1,
        compression={
            "row": "zstd",
            "payload_key": "zstd" if sequence else "none",
            _VECTORS: "none",
        },
        use_dictionary=["payload_key"] if sequence else False,
        column_encoding={"row": "DELTA_BINARY_PACKED"},
        write_statistics=["row"],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        if large:
            writer.add_key_value_metadata(large)
    return sink.getvalue()


class _Seekable(Protocol):
    def seek(self, position: int) -> int: ...
    def readinto(self, buffer: memoryview) -> int: ...


def read_vectors(file: _Seekable, parquet: pq.ParquetFile, *, into: np.ndarray) -> None:
    """Fill `[N, D]` with the vectors of a file in the layout of this module."""
    metadata = parquet.metadata
    start = 0
    for number in range(metadata.num_row_groups if into.size else 0):
        group = metadata.row_group(number)
        part = into[start : start + group.num_rows]
        file.seek(_end_of_vectors(group) - part.nbytes)
        read = file.readinto(part.data.cast("B"))
        if read != part.nbytes:
            raise OSError(f"the file ends {part.nbytes - read} bytes before its vectors do")
        start += group.num_rows


def each_vectors(file: pa.NativeFile, parquet: pq.ParquetFile) -> Iterator[np.ndarray]:
    """The vectors of each row group of a file in the layout of this module, `[N, D]`.

    Of a file that is mapped into memory no copies, where its pages happen to begin at a multiple of
    a number's width; one group's copy at a time where they do not.
    """
    vector = parquet.schema_arrow.field("embedding").type
    dtype = np.dtype(vector.value_type.to_pandas_dtype())
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        size = group.num_rows * vector.list_size * dtype.itemsize
        file.seek(_end_of_vectors(group) - size)
        read = file.read_buffer(size)
        if read.size != size:
            raise OSError(f"the file ends {size - read.size} bytes before its vectors do")
        flat = np.frombuffer(read, dtype)
        if not flat.flags.aligned:  # as bytes: a product would copy it number by number
            flat = np.frombuffer(read, np.uint8).copy().view(dtype)
        yield flat.reshape(group.num_rows, vector.list_size)


def read_some_vectors(file: _Seekable, parquet: pq.ParquetFile, *, rows: np.ndarray) -> np.ndarray:
    """The vectors of some rows, int64 `[N]`, of a file in the layout of this module: `[N, D]`."""
    vector = parquet.schema_arrow.field("embedding").type
    found = np.empty((len(rows), vector.list_size), vector.value_type.to_pandas_dtype())
    width = found.itemsize * vector.list_size
    all_groups = [parquet.metadata.row_group(g) for g in range(parquet.num_row_groups)]
    ends = np.cumsum([group.num_rows for group in all_groups])
    places = [_end_of_vectors(group) for group in all_groups]
    order = np.argsort(rows, kind="stable")
    groups = np.searchsorted(ends, rows, side="right")
    for place in order.tolist():
        number, row = int(groups[place]), int(rows[place])
        file.seek(places[number] - (int(ends[number]) - row) * width)
        if file.readinto(found[place].data.cast("B")) != width:
            raise OSError("the file ends before its vectors do")
    return found


def _end_of_vectors(group: pq.RowGroupMetaData) -> int:
    """Where the vectors of a row group end in the file.

    They are one page, whose values are its end: before them stand its header and the list's levels.
    """
    column = next(
        group.column(i)
        for i in range(group.num_columns)
        if group.column(i).path_in_schema == _VECTORS
    )
    return int(column.data_page_offset + column.total_compressed_size)


def merge_patches(parts: Sequence[Embeddings]) -> Embeddings | None:
    """A shard and its patches as one, in row order; None if there are none."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    values = np.concatenate([part.values for part in parts])
    if parts[0].lengths is None:
        return Embeddings(rows=rows[order], values=values[order])
    lengths = np.concatenate([part.lengths for part in parts if part.lengths is not None])
    starts = np.cumsum(lengths) - lengths
    places = [np.arange(starts[i], starts[i] + lengths[i]) for i in order.tolist()]
    return Embeddings(
        rows=rows[order], values=values[np.concatenate(places)], lengths=lengths[order]
    )


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed-size list column without nulls as an array `[N, D]`; no copy of a single chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), array.type.list_size)
