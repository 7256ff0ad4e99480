"""What becomes of a table's targets in sample shards, by what kind of task they are for."""

from __future__ import annotations

import decimal
import math

import pyarrow as pa
import pytest

from features.sample_rows import SampleColumns
from features.samples import make_shard
from features.sources import SourceError
from features.spec import DatasetSpec, SplitSpec

DATASET = DatasetSpec(path="t.parquet", id="id", split=SplitSpec(column="split"))


def rows_of(
    targets: dict[str, list], *, kind: str = "class", types: dict | None = None
) -> pa.Table:
    count = len(next(iter(targets.values())))
    arrays = {name: pa.array(v, (types or {}).get(name)) for name, v in targets.items()}
    table = pa.table({"id": [f"s{i}" for i in range(count)], "split": ["train"] * count, **arrays})
    return columns_of(targets, kind=kind).rows(table, folder="/").table


def columns_of(targets: dict[str, list], *, kind: str) -> SampleColumns:
    one = next(iter(targets)) if len(targets) == 1 else tuple(targets)
    return SampleColumns(dataset=DATASET, payloads={}, target=one, target_kind=kind)


@pytest.mark.parametrize(
    ("given", "type_", "expected"),
    [
        ([1.5, None, -2.0], None, [1.5, None, -2.0]),
        ([1, None, 3], None, [1.0, None, 3.0]),
        (
            [0.1, math.nan, math.inf],
            pa.float32(),
            [pa.scalar(0.1, pa.float32()).as_py(), None, math.inf],
        ),
        ([decimal.Decimal("2.50"), None, decimal.Decimal("1")], None, [2.5, None, 1.0]),
        ([None, None, None], None, [None, None, None]),
    ],
)
def test_numbers_are_kept_exactly_and_nan_is_none(given, type_, expected) -> None:
    rows = rows_of({"y": given}, kind="number", types={"y": type_})
    assert rows["target.y"].to_pylist() == expected


@pytest.mark.parametrize(
    ("given", "type_", "expected"),
    [
        ([["a", "b"], [], None], None, [["a", "b"], [], None]),
        ([[3, 12], None, []], None, [["3", "12"], None, []]),
        ([["a"], None, ["b"]], pa.large_list(pa.string()), [["a"], None, ["b"]]),
        ([[], []], None, [[], []]),
        ([True, None, False], None, [True, None, False]),
        ([1, 0, None], None, [True, False, None]),
        ([1.0, math.nan], None, [True, None]),
    ],
)
def test_labels_are_lists_of_text_or_flags(given, type_, expected) -> None:
    rows = rows_of({"y": given}, kind="labels", types={"y": type_})
    assert rows["target.y"].to_pylist() == expected


def test_several_columns_stand_side_by_side() -> None:
    rows = rows_of({"u": [1, 2], "v": [0.5, None]}, kind="number")
    assert rows["target.u"].to_pylist() == [1.0, 2.0]
    assert rows["target.v"].to_pylist() == [0.5, None]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("class", [0.5], "column 'y' holds fractions"),
        ("class", [["a"]], "a class is text, an integer or a boolean"),
        ("number", ["1.5"], "column 'y' holds string; the target of a regression is a number"),
        ("number", [True], "holds bool; the target of a regression is a number"),
        ("labels", ["a, b"], "column 'y' holds string; labels are a list"),
        ("labels", [0, 2], "holds numbers other than 0 and 1"),
        ("labels", [["a", None]], "a list of labels holds a null"),
        ("labels", [[0.5]], "column 'y' holds fractions"),
    ],
)
def test_a_column_of_something_else_is_named(kind, given, message) -> None:
    with pytest.raises(SourceError, match=message):
        rows_of({"y": given}, kind=kind)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("number", [1.5, 2.5], [1.5, math.nextafter(2.5, 3)]),
        ("number", [1.5, 0.0], [1.5, None]),
        ("labels", [["a", "b"], []], [["a"], ["b"]]),
        ("labels", [["a"], []], [["a"], None]),
        ("labels", [["a", "b"], []], [["a, b"], []]),
    ],
)
def test_any_change_of_a_target_is_another_shard(kind, before, after) -> None:
    shards = [make_shard([rows_of({"y": y}, kind=kind)], ranges=())[0] for y in (before, after)]
    again = make_shard([rows_of({"y": before}, kind=kind)], ranges=())[0]
    assert shards[0].labels != shards[1].labels
    assert shards[0].fingerprint != shards[1].fingerprint
    assert (again.labels, again.fingerprint) == (shards[0].labels, shards[0].fingerprint)


def test_what_a_column_is_read_as_is_part_of_what_is_scanned() -> None:
    kinds = ("class", "labels", "number")
    found = {columns_of({"y": [1]}, kind=kind).identity() for kind in kinds}
    assert len(found) == 3
