"""Columns of lists of numbers, of any list type and depth, as one array a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list(found: pa.DataType) -> bool:
    """Whether a column of this type holds lists, of whatever."""
    return bool(
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
        or isinstance(found, pa.FixedShapeTensorType)
    )


def number_arrays(values: pa.Array) -> list[Any]:
    """Each list as a float64 array `[T]` or `[T, C]`; one that is none stays a list.

    Moments and durations count in seconds, moments from 1970 on.
    """
    if isinstance(values.type, pa.FixedShapeTensorType):
        return _tensors(values)
    flat = _flat_numbers(values.flatten())
    if flat is not None:
        return _cut_at(flat, _lengths(values))
    if is_list(values.type.value_type):
        return _matrices(values)
    return [None if value is None else as_numbers(value) for value in values.to_pylist()]


def _tensors(values: pa.ExtensionArray) -> list[Any]:
    """Each tensor in the order of its logical axes."""
    order = values.type.permutation or range(len(values.type.shape))
    return [
        # The type's shape and the stored one are the same but for the permutation.
        None if flat is None else np.reshape(flat, values.type.shape).transpose(order)
        for flat in number_arrays(values.storage)
    ]


def _matrices(values: pa.Array) -> list[Any]:
    """Lists of lists of numbers as `[T, C]`; one that is ragged stays a list."""
    steps = values.flatten()
    numbers = _flat_numbers(steps.flatten())
    if numbers is None:
        return [None if value is None else as_numbers(value) for value in values.to_pylist()]
    widths, known = _lengths(steps), steps.is_valid().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum([0 if w is None else w for w in widths], dtype=int)])
    found: list[Any] = []
    stop = 0
    for i, length in enumerate(_lengths(values)):
        if length is None:
            found.append(None)
            continue
        start, stop = stop, stop + length
        alike = len(set(widths[start:stop])) == 1
        if alike and known[start:stop].all():
            found.append(numbers[starts[start] : starts[stop]].reshape(length, -1))
        else:
            found.append(as_numbers(values[i].as_py()))
    return found


def _flat_numbers(values: pa.Array) -> np.ndarray | None:
    """float64 with NaN for null, if the values are numbers or times."""
    found = values.type
    if pa.types.is_timestamp(found) or pa.types.is_duration(found):
        units = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
        ticks = pc.cast(pc.cast(values, pa.int64()), pa.float64(), safe=False)
        values = pc.divide(ticks, float(units[found.unit]))
    elif not (
        pa.types.is_integer(found)
        or pa.types.is_floating(found)
        or pa.types.is_boolean(found)
        or pa.types.is_decimal(found)
        or pa.types.is_null(found)
    ):
        return None
    numbers: np.ndarray = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return numbers


def _lengths(values: pa.Array) -> list[int | None]:
    """The length of each list; None for one that is null."""
    if pa.types.is_fixed_size_list(values.type):  # it states a length for nulls, too
        size = values.type.list_size
        return [size if there else None for there in values.is_valid().to_pylist()]
    lengths: list[int | None] = pc.list_value_length(values).to_pylist()
    return lengths


def _cut_at(flat: np.ndarray, lengths: list[int | None]) -> list[Any]:
    """The parts of these lengths, in order; None has no part."""
    found: list[Any] = []
    stop = 0
    for length in lengths:
        if length is None:
            found.append(None)
        else:
            start, stop = stop, stop + length
            found.append(flat[start:stop])
    return found


def as_numbers(value: Any) -> Any:
    """A list of numbers, or a list of such lists, as a float64 array with NaN for None.

    One that is ragged, or holds something else, stays as it is: its decoder says that it is bad.
    """
    if isinstance(value, np.ndarray) and value.dtype == object:  # pandas' nested lists
        value = value.tolist()
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return value
