"""Sample shards: runs of consecutive samples, where they end, and what they are called.

Boundaries follow the hash of the sample's id alone, so that all modalities share them and
neither a changed payload nor a changed label moves them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import plain_array
from features.fingerprint import DIGEST_BYTES, fingerprint
from features.sources import RowRange, SourceError
from features.spec import ShardSize


@dataclass(frozen=True, kw_only=True)
class SampleShard:
    """A run of consecutive samples."""

    fingerprint: str
    """Hash of all that the shard's file holds."""
    labels: str
    """Hash of ids, splits and targets alone, which is what training depends on."""
    rows: int
    ranges: tuple[RowRange, ...]
    """Where the samples stand in the source."""
    keys: Mapping[str, str]
    """Per modality with at least one payload here: hash of the payload keys, in order."""
    payloads: Mapping[str, int]
    """Per modality: how many payloads are not missing."""

    @property
    def path(self) -> str:
        return f"samples/{self.fingerprint}.parquet"


class Cutter:
    """Where shards end, as rows come in."""

    def __init__(self, size: ShardSize, *, pending: int = 0) -> None:
        self._size = size
        self.pending = pending
        """Rows since the last end."""

    def ends(self, hashes: np.ndarray) -> list[int]:
        """Ends (exclusive) of shards among the next rows, given the hashes of their ids."""
        size, found = self._size, list[int]()
        marked = np.flatnonzero(hashes % np.uint64(size.target) == 0) + 1
        last = -self.pending
        while True:
            following = int(np.searchsorted(marked, last + size.min))
            end = last + size.max
            if following < len(marked):
                end = min(end, int(marked[following]))
            if end > len(hashes):
                self.pending = len(hashes) - last
                return found
            found.append(end)
            last = end


def make_shard(
    tables: Sequence[pa.Table], *, ranges: Sequence[RowRange]
) -> tuple[SampleShard, pa.Table]:
    """The shard of some rows of samples, which stand in the source at `ranges`, and its rows."""
    try:
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise SourceError(f"a column changes its type within the table: {error}") from error
    for place, name in enumerate(table.column_names):
        # Whether a column without a value has a type depends on what was read beside it.
        if name.startswith("target.") and table[name].null_count == table.num_rows:
            table = table.set_column(place, name, pa.nulls(table.num_rows))
    digests = {name: _column_digest(table[name]) for name in table.column_names}
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    counts = {
        name.removeprefix("key."): table.num_rows - table[name].null_count
        for name in table.column_names
        if name.startswith("key.")
    }
    shard = SampleShard(
        fingerprint=fingerprint({"columns": digests, "types": list(types.values())}),
        labels=fingerprint(
            {
                name: [digest, types[name]]
                for name, digest in digests.items()
                if not name.startswith(("key.", "slice.", "group"))
            }
        ),
        rows=table.num_rows,
        ranges=tuple(ranges),
        keys={m: digests[f"key.{m}"] for m, count in counts.items() if count},
        payloads=counts,
    )
    return shard, table


def _column_digest(column: pa.ChunkedArray) -> str:
    """Hash of a column's values and nulls, whatever its chunks and buffers are."""
    array = plain_array(column)
    nulls = np.packbits(array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_list(array.type):
        array = pa.array([None if cell is None else json.dumps(cell) for cell in array.to_pylist()])
    if pa.types.is_floating(array.type):
        exact = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy().astype("<f8")
        buffers = [None, pa.py_buffer(exact.tobytes())]
        array = pc.if_else(
            array.is_valid(), pa.Array.from_buffers(pa.binary(8), len(array), buffers), None
        )
    values = array if pa.types.is_fixed_size_binary(array.type) else array.cast(pa.string())
    values = pc.fill_null(values.cast(pa.binary()), b"")
    lengths = pc.binary_length(values).to_numpy()
    data = b"".join(values.to_pylist())
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    length = len(array).to_bytes(8, "little")
    for part in (length, nulls.tobytes(), lengths.astype("<i4").tobytes(), data):
        digest.update(part)
    return digest.hexdigest()


def sample_fingerprint(rows: pa.Table) -> str:
    """The fingerprint of the sample shard that holds these rows, and nothing else."""
    digests = {name: _column_digest(rows[name]) for name in rows.column_names}
    return fingerprint({"columns": digests, "types": [str(t) for t in rows.schema.types]})


def groups_of(samples: pa.Table) -> np.ndarray | None:
    """The number of each row's group, int64 `[N]`, equal for rows that share one; None if the
    samples keep none. A row without a group is one by itself.
    """
    if "group" not in samples.column_names:
        return None
    codes = plain_array(samples["group"]).dictionary_encode().indices
    found = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    lacking = np.flatnonzero(found < 0)
    found[lacking] = found.max(initial=-1) + 1 + np.arange(len(lacking))
    return found
