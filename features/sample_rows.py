"""Rows of the table → rows of samples: ids, split, target, slices, and a key for each payload."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import PayloadColumns, as_text, plain_array, read_as_text
from features.fingerprint import DIGEST_BYTES, fingerprint
from features.payload_keys import depends_on_files, payload_keys
from features.sources import SourceError
from features.spec import DatasetSpec
from features.split import Strata, splits_of

KEY = pa.binary(DIGEST_BYTES)
TargetKind = Literal["class", "labels", "number"]
"""What a target's cells hold: text, an integer or a boolean; a list of such, or a boolean; a
number."""
VERSION = 2
"""Raised when rows come out otherwise, so that remembered scans are not used any more."""


@dataclass(frozen=True, kw_only=True)
class SampleColumns:
    """What is read of the table, and what becomes of it."""

    dataset: DatasetSpec
    payloads: Mapping[str, PayloadColumns]
    """Per modality."""
    target: str | tuple[str, ...] | None
    target_kind: TargetKind = "class"
    strata: Strata | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns of targets; none if nothing is to be predicted."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        split = self.dataset.split
        names = [self.dataset.id, *self.dataset.slices]
        names += [name for columns in self.payloads.values() for name in columns.names]
        names += [n for n in (*self.targets, split.column, split.group, split.stratify) if n]
        return list(dict.fromkeys(names))

    @property
    def text_names(self) -> list[str]:
        """Those that a format without types must not guess at."""
        split = self.dataset.split
        names = [self.dataset.id, *self.dataset.slices]
        names += [n for n in (split.column, split.group, split.stratify) if n]
        return read_as_text(self.payloads.values(), also=names)

    def identity(self) -> str:
        """The hash of all that decides rows and boundaries, but for the table itself."""
        dataset = self.dataset
        # Scans of before groups were kept are right for all other tables.
        grouped = dataset.split.column is None and dataset.split.keeps_group(id=dataset.id)
        return fingerprint(
            {
                **({"keeps": "group"} if grouped else {}),
                "version": VERSION,
                "id": dataset.id,
                "split": dataset.split,
                "strata": None if self.strata is None else self.strata.digest,
                "slices": dataset.slices,
                "payload_key": dataset.payload_key,
                "shard_rows": dataset.shard_rows,
                "payloads": self.payloads,
                "target": self.target
                if self.target_kind == "class"
                else {"columns": self.target, "kind": self.target_kind},
            }
        )

    def rows(
        self, table: pa.Table, *, folder: str, first_row: int = 0, file: str = ""
    ) -> SampleRows:
        """Rows of samples, given these columns of some rows of the table.

        Their columns are `sample_id`, `split`, `target.<column>`, `slice.<column>`, `group` (if
        it is not the id) and `key.<modality>`. Raises SourceError for a null id and an
        unknown split; `first_row` and `file` are where they stand, for its message.
        """
        dataset = self.dataset
        columns: dict[str, pa.Array] = {
            "sample_id": ids_of(table[dataset.id], name=dataset.id, first_row=first_row, file=file),
            "split": splits_of(table, dataset=dataset, strata=self.strata),
        }
        for name in self.targets:
            columns[f"target.{name}"] = _TARGETS[self.target_kind](table[name], name=name)
        for name in dataset.slices:
            columns[f"slice.{name}"] = as_text(table[name], name=name)
        if dataset.split.keeps_group(id=dataset.id):
            assert dataset.split.group is not None
            columns["group"] = as_text(table[dataset.split.group], name=dataset.split.group)
        in_files = False
        for modality, read in self.payloads.items():
            values = read.payloads(table)
            keys = payload_keys(values, columns=read, folder=folder, by=dataset.payload_key)
            columns[f"key.{modality}"] = pa.array(keys, KEY)
            if dataset.payload_key != "uri" and not in_files:
                in_files = any(depends_on_files(value, columns=read) for value in values)
        return SampleRows(table=pa.table(columns), in_files=in_files)


@dataclass(frozen=True, kw_only=True)
class SampleRows:
    """Rows of samples, and whether a key among them depends on a file beside the table."""

    table: pa.Table
    in_files: bool


def id_hashes(ids: pa.Array) -> np.ndarray:
    """The hash of each id, which decides where shards end: uint64 `[N]`."""
    digests = [hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids.to_pylist()]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def ids_of(column: pa.ChunkedArray, *, name: str, first_row: int, file: str) -> pa.Array:
    """The ids as text; SourceError with the file and the row in it, from 0, of one that is null."""
    ids = as_text(column, name=name)
    if ids.null_count:
        row = first_row + pc.index(pc.is_null(ids), True).as_py()
        at = f"row {row} of {file}" if file else f"row {row}"
        raise SourceError(
            f"column {name!r}, {at} (counted from 0): the id is null; every sample needs one"
        )
    return ids


def key_hashes(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The first 8 bytes of each payload key, uint64 `[N]`; of no meaning where there is none."""
    array = plain_array(column)
    width = array.type.byte_width
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), np.uint64)
    data = np.frombuffer(buffer, np.uint8, len(array) * width, array.offset * width)
    return data.reshape(-1, width)[:, :8].copy().view("<u8").ravel()


def _labels(column: pa.ChunkedArray, *, name: str) -> pa.Array:
    """Labels as text, int64 or booleans; whole floats (integers with gaps, in pandas) as int64."""
    labels = plain_array(column)
    found = labels.type
    if pa.types.is_floating(found):
        labels = pc.if_else(pc.is_nan(labels), pa.scalar(None, found), labels)
        try:
            return labels.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"column {name!r} holds fractions; a class is text, an integer or a boolean"
            ) from error
    if pa.types.is_integer(found):
        return labels.cast(pa.int64())
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return labels.cast(pa.string())
    if pa.types.is_boolean(found) or pa.types.is_null(found):
        return labels
    raise SourceError(f"column {name!r} holds {found}; a class is text, an integer or a boolean")


def _numbers(column: pa.ChunkedArray, *, name: str) -> pa.Array:
    """Numbers as float64; NaN, which stands for none in pandas, as null."""
    numbers = plain_array(column)
    found = numbers.type
    if pa.types.is_null(found):
        return numbers
    if not (
        pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_decimal(found)
    ):
        raise SourceError(f"column {name!r} holds {found}; the target of a regression is a number")
    numbers = numbers.cast(pa.float64())
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _label_lists(column: pa.ChunkedArray, *, name: str) -> pa.Array:
    """Lists of labels, each of text, int64 or booleans; or booleans, also as 0 and 1."""
    cells = plain_array(column)
    found = cells.type
    if pa.types.is_boolean(found) or pa.types.is_null(found):
        return cells
    if pa.types.is_integer(found) or pa.types.is_floating(found):
        flags = _labels(column, name=name)
        if not pc.all(pc.is_in(flags.drop_null(), pa.array([0, 1]))).as_py():
            raise SourceError(f"column {name!r} holds numbers other than 0 and 1; {_LABELS_ARE}")
        return flags.cast(pa.bool_())
    if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
        raise SourceError(f"column {name!r} holds {found}; {_LABELS_ARE}")
    if pa.types.is_null(found.value_type):  # empty lists and no others
        return cells.cast(pa.list_(pa.string()))
    inner = _labels(pa.chunked_array([pc.list_flatten(cells)]), name=name)
    if inner.null_count:
        raise SourceError(f"column {name!r}: a list of labels holds a null; {_LABELS_ARE}")
    lengths = pc.fill_null(pc.list_value_length(cells), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(
        offsets, inner.cast(pa.string()), mask=cells.is_null() if cells.null_count else None
    )


_LABELS_ARE = "labels are a list (of text or integers), or booleans, a column for each label"
_TARGETS = {"class": _labels, "labels": _label_lists, "number": _numbers}
