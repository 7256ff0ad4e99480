"""Parquet files, by row group and column (https://parquet.apache.org/docs/file-format)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

from features.sources.base import CHUNK_BYTES, Format, Window, refuse_lacking, rows_by_bytes
from features.sources.opening import STREAM_BYTES, open_file


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """The columns by the footer; none if there are no rows."""
    with open_file(file) as opened, pq.ParquetFile(opened) as parquet:
        return list(parquet.schema_arrow.names) if parquet.metadata.num_rows else []


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """The wanted columns alone; row groups outside the window are not read.

    A chunk's rows follow from the row group's bytes a row in these columns. What is held beside
    the chunk is the compressed columns of a row group, or of large ones a buffer's worth.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_file(file))
        metadata = pq.read_metadata(opened)
        leaves = _leaves(metadata, columns=columns)
        sizes = [_bytes(metadata, group=g, leaves=leaves) for g in range(metadata.num_row_groups)]
        large = max(sizes, default=0) > 2 * CHUNK_BYTES
        parquet = stack.enter_context(
            pq.ParquetFile(
                opened,
                metadata=metadata,
                buffer_size=STREAM_BYTES if large else 0,
                pre_buffer=not large,
            )
        )
        refuse_lacking(file, columns=columns, found=parquet.schema_arrow.names)
        first = 0
        for group, size in enumerate(sizes):
            rows = metadata.row_group(group).num_rows
            if first + rows > window.start:
                at = first
                for batch in parquet.iter_batches(
                    batch_size=rows_by_bytes(rows=rows, size=size),
                    row_groups=[group],
                    columns=list(columns),
                ):
                    if at + batch.num_rows > window.start:
                        yield at, pa.Table.from_batches([batch])
                    at += batch.num_rows
                    if window.start >= first + rows:
                        break
            first += rows


def _leaves(metadata: pq.FileMetaData, *, columns: Sequence[str]) -> list[int]:
    """Numbers of the columns of primitive values that the wanted ones consist of."""
    schema = metadata.schema
    return [
        number
        for number in range(metadata.num_columns)
        if any(
            (path := schema.column(number).path) == name or path.startswith(f"{name}.")
            for name in columns
        )
    ]


def _bytes(metadata: pq.FileMetaData, *, group: int, leaves: Sequence[int]) -> int:
    """Bytes of these columns in a row group, decompressed."""
    row_group = metadata.row_group(group)
    return sum(row_group.column(leaf).total_uncompressed_size for leaf in leaves)


FORMAT = Format(suffixes=(".parquet", ".pq"), read=read, names=names)
