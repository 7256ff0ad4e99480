"""Labels as they stand in the table → what a loss is computed against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from training.batch import ABSENT

Column: TypeAlias = pa.ChunkedArray | pa.Array


class Untrainable(ValueError):
    """The data do not allow a training; the message says what they lack."""


def is_labelled(targets: torch.Tensor) -> torch.Tensor:
    """Which rows have a label, bool `[N]`: of class indices `[N]` those that are none of `ABSENT`,
    of numbers `[N, K]` those without NaN.
    """
    if targets.is_floating_point():
        return ~targets.isnan().any(dim=1)
    return targets != ABSENT


def classes_of(labels: Column, *, target: str) -> tuple[Any, ...]:
    """All labels there are, sorted."""
    kind = labels.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise Untrainable(
            f"column {target!r} holds {kind}; a class is text, an integer or a boolean"
        )
    classes = tuple(sorted(pc.unique(labels.drop_null()).to_pylist()))
    if len(classes) < 2:
        raise Untrainable(
            f"column {target!r} holds {len(classes)} classes {list(classes)}; at least 2 are needed"
        )
    return classes


def class_indices(labels: Column, *, classes: tuple[Any, ...]) -> torch.Tensor:
    """The place of each label among the classes, int64 `[N]`; -1 where there is none."""
    codes = pc.fill_null(pc.index_in(labels, value_set=pa.array(classes, labels.type)), ABSENT)
    return torch.from_numpy(_one(codes).to_numpy(zero_copy_only=False).astype(np.int64))


def label_names(labels: Mapping[str, Column]) -> tuple[Any, ...]:
    """The labels of a multilabel task: all that a column of lists holds, sorted, or the names of
    the boolean columns.
    """
    if all(_is_flag(column.type) for column in labels.values()):
        return tuple(labels)
    (target, column), *more = labels.items()
    if more or not _is_list(column.type):
        odd = {name: str(c.type) for name, c in labels.items() if not _is_flag(c.type)}
        raise Untrainable(
            f"a multilabel target is one column of lists, or boolean columns; it has {odd}"
        )
    names = tuple(sorted(pc.unique(_one(pc.list_flatten(column)).drop_null()).to_pylist()))
    if not names:
        raise Untrainable(f"column {target!r} holds no label at all: every list is empty")
    return names


def label_matrix(labels: Mapping[str, Column], *, names: tuple[Any, ...]) -> torch.Tensor:
    """Which labels each row has, float32 `[N, K]` of 0 and 1; NaN in rows without a target."""
    columns = {name: _one(column) for name, column in labels.items()}
    first = next(iter(columns.values()))
    if not _is_list(first.type):
        flags = [_floats(column.cast(pa.bool_()).cast(pa.uint8())) for column in columns.values()]
        return torch.from_numpy(np.stack(flags, axis=1).astype(np.float32))
    matrix = np.zeros((len(first), len(names)), np.float32)
    values = pc.list_flatten(first)
    codes = pc.index_in(values, value_set=pa.array(names, values.type))
    rows = pc.list_parent_indices(first).to_numpy()
    known = codes.is_valid().to_numpy(zero_copy_only=False)
    matrix[rows[known], pc.fill_null(codes, 0).to_numpy()[known]] = 1
    matrix[first.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return torch.from_numpy(matrix)


def number_matrix(labels: Mapping[str, Column]) -> torch.Tensor:
    """The numbers of each row, float64 `[N, K]`; NaN where there is none.

    Untrainable for a column of anything else, or with a value that is infinite.
    """
    found = []
    for name, column in labels.items():
        kind = column.type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise Untrainable(f"column {name!r} holds {kind}; a regression's target is a number")
        values = _floats(_one(column))
        if np.isinf(values).any():
            raise Untrainable(
                f"column {name!r} holds an infinite number (row {int(np.isinf(values).argmax())} "
                "of the snapshot); a regression's target is finite, or null where it is not known"
            )
        found.append(values)
    return torch.from_numpy(np.stack(found, axis=1))


def _floats(column: pa.Array) -> np.ndarray:
    """float64 `[N]`, NaN for null."""
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _one(column: Column) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.nulls(0)
    return combined


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_flag(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind))
