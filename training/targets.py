"""Labels as they stand in the table → what a loss is computed against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

ABSENT = -1
"""Stands for no embedding in an index, and for no label among the targets."""


class Untrainable(ValueError):
    """The data do not allow a training; the message says what they lack."""


def classes_of(labels: pa.ChunkedArray | pa.Array, *, target: str) -> tuple[Any, ...]:
    """All labels there are, sorted."""
    kind = labels.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
    ):
        raise Untrainable(
            f"column {target!r} holds {kind}; a class is text, an integer or a boolean"
        )
    classes = tuple(sorted(pc.unique(labels.drop_null()).to_pylist()))
    if len(classes) < 2:
        raise Untrainable(
            f"column {target!r} holds {len(classes)} classes {list(classes)}; at least 2 are needed"
        )
    return classes


def class_indices(labels: pa.ChunkedArray | pa.Array, *, classes: tuple[Any, ...]) -> torch.Tensor:
    """The place of each label among the classes, int64 `[N]`; -1 where there is none."""
    codes = pc.fill_null(pc.index_in(labels, value_set=pa.array(classes, labels.type)), ABSENT)
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    return torch.from_numpy(codes.to_numpy(zero_copy_only=False).astype(np.int64))
