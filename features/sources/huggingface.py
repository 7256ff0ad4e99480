"""Folders that `datasets` saved (`save_to_disk` of a Dataset or a DatasetDict), without it.

Files of Arrow record batches in the stream format
(https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format); `dataset_info.json`
beside them says what columns mean. An image or sound comes out as its bytes, or as its path where
there are none; a class as its name; of a DatasetDict, `split` is the folder's name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.sources.base import Format, SourceError, Window, refuse_lacking, slices
from features.sources.opening import is_remote, open_file
from features.storage import local_path, read_uri

SPLIT = "split"
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""What stands for each folder of a DatasetDict in `split`; rows of other folders have null."""
CLASS = "ClassLabel"
LISTS = ("List", "LargeList", "Sequence")
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a stream that was closed."""


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """The columns, with `split` if the folder holds several datasets; none if there are no rows."""
    with _open(file) as reader:
        if not any(batch.num_rows for batch in reader):
            return []
        found = list(reader.schema.names)
    adds_split = SPLIT not in found and _split_of(file, folder=folder) is not None
    return [*found, SPLIT] if adds_split else found


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """On a disk the file is mapped: what is not wanted is not read.

    In S3 record batches are read one by one, as large as they were saved.
    """
    first = 0
    media: dict[str, pa.DataType] = {}
    with _open(file) as reader:
        features = _features(file, schema=reader.schema)
        there = [name for name in columns if name in reader.schema.names]
        split = _split_of(file, folder=folder)
        adds_split = SPLIT in columns and SPLIT not in there and split is not None
        has = [*reader.schema.names, *([SPLIT] if adds_split else [])]
        refuse_lacking(file, columns=columns, found=has)
        for batch in reader:
            if first + batch.num_rows > window.start and batch.num_rows:
                table = pa.Table.from_batches([batch])
                table = table.select(there or table.column_names[:1])
                for start, part in slices(table, first=first, window=window):
                    made = _meant(part, features=features, file=file, media=media)
                    if adds_split and split is not None:
                        made[SPLIT] = pa.array([split[0]] * part.num_rows, pa.string())
                    yield start, pa.table({name: made[name] for name in columns})
            first += batch.num_rows


@contextmanager
def _open(file: str) -> Iterator[pa.ipc.RecordBatchStreamReader]:
    with ExitStack() as stack:
        if is_remote(file):
            opened = stack.enter_context(open_file(file))
        else:
            opened = stack.enter_context(pa.memory_map(local_path(file)))
        size = opened.size()
        opened.seek(max(0, size - len(END)))
        if opened.read() != END:
            raise SourceError(
                f"{file}: it ends at byte {size} without the mark of an end: truncated, or not "
                "whole yet; save the dataset again"
            )
        opened.seek(0)
        yield stack.enter_context(pa.ipc.open_stream(opened))


def _split_of(file: str, *, folder: str) -> tuple[str | None] | None:
    """The split of a file, which may be none that is used; None if the table is one Dataset."""
    above = os.path.dirname(file)
    if above.rstrip("/") == folder.rstrip("/"):
        return None
    return (SPLIT_NAMES.get(os.path.basename(above)),)


def _features(file: str, *, schema: pa.Schema) -> Mapping[str, Any]:
    """What the columns mean: by the file beside the data, which `datasets` prefers, or in it."""
    try:
        info = json.loads(read_uri(os.path.join(os.path.dirname(file), "dataset_info.json")))
    except FileNotFoundError:
        info = {}
    if not info.get("features"):
        inside = (schema.metadata or {}).get(b"huggingface", b"{}")
        info = json.loads(inside).get("info", {})
    return info.get("features") or {}


def _meant(
    table: pa.Table, *, features: Mapping[str, Any], file: str, media: dict[str, pa.DataType]
) -> dict[str, pa.Array]:
    """The columns as they are meant; `media` holds which are bytes and which paths so far."""
    columns = {}
    for name in table.column_names:
        try:
            array = _value(table[name].combine_chunks(), feature=features.get(name))
        except _Mixed:
            raise _mixed(file, column=name) from None
        if table[name].type == MEDIA:
            if array.null_count == len(array):
                array = pa.nulls(len(array))
            elif media.setdefault(name, array.type) != array.type:
                raise _mixed(file, column=name)
        columns[name] = array
    return columns


def _value(array: pa.Array, *, feature: Any) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if kind == MEDIA:
        return _bytes_or_path(array)
    if isinstance(feature, Mapping) and feature.get("_type") == CLASS:
        known = pa.array(feature["names"], pa.string())
        # -1 stands for a class that is not known, as in test sets.
        return known.take(pc.if_else(pc.less(array, 0), pa.scalar(None, kind), array))
    inner = _element(feature)
    if inner is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        values = _value(array.flatten(), feature=inner)
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        ends = pc.cumulative_sum(lengths.cast(pa.int64()))
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
        return pa.LargeListArray.from_arrays(offsets, values, mask=array.is_null())
    return array


def _element(feature: Any) -> Any:
    """What the elements of a list are, if it is one of classes, images or sounds."""
    if isinstance(feature, Sequence) and not isinstance(feature, str) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, Mapping) and feature.get("_type") in LISTS:
        return feature.get("feature")
    return None


class _Mixed(Exception):
    """Some rows have bytes, and some have paths alone."""


def _bytes_or_path(array: pa.Array) -> pa.Array:
    data, path = pc.struct_field(array, "bytes"), pc.struct_field(array, "path")
    by_path = pc.and_(data.is_null(), path.is_valid())
    if not pc.any(by_path).as_py():
        return data
    if data.null_count < len(data):
        raise _Mixed
    return path


def _mixed(file: str, *, column: str) -> SourceError:
    return SourceError(
        f"{file}: column {column!r} holds the bytes of some files and only the paths of others; "
        "load and save the dataset where the files are, which puts all bytes in it"
    )


FORMAT = Format(suffixes=(".arrow",), read=read, names=names)
