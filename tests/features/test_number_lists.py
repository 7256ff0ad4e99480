"""Columns of lists against pyarrow's own conversion, and the keys of what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.columns import PayloadColumns
from features.payload_keys import payload_key

SERIES = PayloadColumns(kind="series", columns=("v",))
LISTS = [[1, 2, 3], None, [4, None, 6], [7, 8, 9]]
NESTED = [[[1, 2], [3, 4]], None, [], [[5, None]], [[1], [2, 3]], [None, [1, 2]], [[6, 7]] * 3]


def payloads(column: pa.Array) -> list[Any]:
    return SERIES.payloads(pa.table({"v": column}))


def key(value: Any) -> bytes:
    return payload_key(value, columns=SERIES, folder="")


def plain(value: Any) -> Any:
    """A payload with lists for arrays and None for NaN."""
    if isinstance(value, np.ndarray):
        assert value.dtype == np.float64
        return [plain(item) for item in value]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if value is None or np.isnan(value) else float(value)


@pytest.mark.parametrize(
    "number", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()]
)
@pytest.mark.parametrize("wrap", [pa.list_, pa.large_list, lambda t: pa.list_(t, 3)])
def test_a_list_is_an_array_whatever_the_column_is_called(number: Any, wrap: Any) -> None:
    rows = [row and [None if x is None else number_of(x, number) for x in row] for row in LISTS]
    column = pa.array(rows, wrap(number))
    for part in (column, column.slice(1), column.slice(2, 1), pa.chunked_array([column, column])):
        assert [plain(value) for value in payloads(part)] == part.to_pylist()


def number_of(value: int, type: pa.DataType) -> Any:
    return np.float16(value) if type == pa.float16() else value


@pytest.mark.parametrize("outer", [pa.list_, pa.large_list])
@pytest.mark.parametrize("inner", [pa.list_, pa.large_list])
def test_lists_of_lists_are_matrices_unless_they_are_ragged(outer: Any, inner: Any) -> None:
    column = pa.array(NESTED, outer(inner(pa.int32())))
    for start in range(len(NESTED)):
        found = payloads(column.slice(start))
        assert [plain(value) for value in found] == NESTED[start:]
        arrays = [isinstance(value, np.ndarray) for value in found]
        assert arrays == [True, False, True, True, False, False, True][start:]


def test_lists_of_lists_of_a_fixed_size() -> None:
    rows = [[[1, 2], [3, 4]], None, [[5, 6]]]
    found = payloads(pa.array(rows, pa.list_(pa.list_(pa.float32(), 2))))
    assert [plain(value) for value in found] == rows


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)])
def test_tensors_keep_the_order_of_their_axes(axes: tuple[int, ...]) -> None:
    tensors = np.arange(24.0).reshape(2, 3, 4).transpose(axes)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(tensors)
    np.testing.assert_array_equal(np.stack(payloads(column)), tensors)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_and_durations_count_in_seconds(unit: str) -> None:
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    for type in (pa.timestamp(unit), pa.timestamp(unit, tz="UTC"), pa.duration(unit)):
        column = pa.array([[5 * ticks, None, 7 * ticks]], pa.list_(pa.int64())).cast(pa.list_(type))
        assert plain(payloads(column)[0]) == [5, None, 7]


def test_integers_beyond_the_reach_of_floats_come_near_and_stop_nothing() -> None:
    assert payloads(pa.array([[2**60 + 1]]))[0][0] == 2.0**60


def test_lists_of_text_are_left_for_the_decoder_to_refuse() -> None:
    assert payloads(pa.array([["a"], None])) == [["a"], None]


def test_equal_numbers_have_equal_keys_whatever_holds_them() -> None:
    rows = [[0.5, -2.0, 3.0], [1.0, 2.0, 4.0]]
    columns = [
        pa.array(rows, type)
        for type in (
            pa.list_(pa.float64()),
            pa.list_(pa.float32()),
            pa.large_list(pa.float32()),
            pa.list_(pa.float64(), 3),
        )
    ]
    columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(rows, np.float32)))
    found = {tuple(map(key, payloads(column))) for column in columns}
    assert len(found) == 1
    assert len(set(found.pop())) == 2


def test_keys_tell_apart_shapes_and_do_not_see_strides() -> None:
    numbers = np.arange(6.0)
    shapes = [(6,), (2, 3), (3, 2), (1, 6), (6, 1)]
    assert len({key(numbers.reshape(shape)) for shape in shapes}) == len(shapes)
    assert len({key(np.zeros(shape)) for shape in [(0,), (0, 3), (3, 0)]}) == 3
    wide = np.zeros((6, 2))
    wide[:, 0] = numbers
    assert key(wide[:, 0]) == key(numbers) == key(numbers.astype(">f8"))


def test_keys_are_those_of_the_stores_that_are_there() -> None:
    assert key(np.array([1.0, 2.0])).hex() == "4c866fef7f699ed3b2317d494dd31bfc"


def test_a_record_is_its_fields_by_name() -> None:
    def record(*columns: str) -> bytes:
        table = PayloadColumns(kind="table", columns=columns)
        return payload_key((1, "x"), columns=table, folder="")

    assert record("a", "b") == record("a", "b")
    assert record("a", "b") != record("b", "a")
