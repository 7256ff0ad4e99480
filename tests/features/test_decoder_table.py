"""Records: what becomes of the cells of each type, by pandas where it has an opinion."""

from __future__ import annotations

import datetime
import decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.columns import PayloadColumns
from features.decoders.base import BadPayload, Limits
from features.payloads import decode, decode_row, open_payload
from features.sources import SourceError

HELSINKI = ZoneInfo("Europe/Helsinki")


def cell(value: Any, **options: Any) -> Any:
    record = decode_row((value, 1), kind="table", names=("a", "b"), **options)
    assert record["b"] == 1
    return record["a"]


def days(text: str, **options: Any) -> float:
    return (pd.Timestamp(text, **options) - pd.Timestamp(0, **options)) / pd.Timedelta(days=1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**80, 2**80),
        (0.5, 0.5),
        (float("nan"), None),
        (np.float64(0.25), 0.25),
        ("x", "x"),
        (" ", " "),
        ("", None),
        ("Zürich".encode(), "Zürich"),
        (b"", None),
        (decimal.Decimal("1.25"), 1.25),
        (decimal.Decimal("NaN"), None),
        (datetime.date(2024, 2, 29), days("2024-02-29")),
        (datetime.date(1969, 12, 31), -1.0),
        (datetime.datetime(2024, 2, 29, 6), days("2024-02-29 06:00")),
        (pd.Timestamp("2024-02-29 06:00:00.5"), days("2024-02-29 06:00:00.5")),
        (datetime.datetime(2024, 7, 1, 3, tzinfo=HELSINKI), days("2024-07-01 00:00")),
        (datetime.time(18), 0.75),
        (datetime.timedelta(hours=36), 1.5),
        (pd.Timedelta(hours=-12), -0.5),
    ],
)
def test_a_cell_is_a_number_a_text_or_missing(value: Any, expected: Any) -> None:
    found = cell(value)
    assert type(found) in (bool, int, float, str, type(None)) or found == value
    assert found == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("inf"), "column 'a' is infinite"),
        (decimal.Decimal("-Infinity"), "column 'a' is infinite"),
        (b"\xff\xfe", "column 'a' holds bytes that are no text"),
        ([1, 2], "column 'a' holds a list"),
        ("x" * 11, "column 'a': text of more than 10 characters"),
    ],
)
def test_a_cell_that_is_none_of_these_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason) as caught:
        cell(value, limits=Limits(characters=10))
    assert caught.value.stage == "decode"


def test_a_record_without_a_cell_is_refused() -> None:
    with pytest.raises(BadPayload, match="all cells of the record are missing"):
        decode_row(("", float("nan")), kind="table", names=("a", "b"))


def test_a_record_may_be_a_mapping() -> None:
    assert decode({"a": "", "b": 2}, kind="table") == {"a": None, "b": 2}
    with pytest.raises(BadPayload, match="columns"):
        decode(b"a,b", kind="table")


def test_a_table_gives_its_records_by_column() -> None:
    table = pa.table(
        {
            "age": pa.array([41, None, None], pa.uint8()),
            "dose": pa.array([np.nan, 0.5, np.nan], pa.float32()),
            "ward": pa.array(["a", None, None]).dictionary_encode(),
            "on": pa.array([datetime.date(1970, 1, 2), None, None]),
        }
    )
    columns = PayloadColumns(kind="table", columns=("ward", "age", "dose", "on"))
    first, second, third = columns.payloads(table)
    assert third is None
    opened = [open_payload(row, columns=columns, folder="") for row in (first, second)]
    assert opened == [
        {"ward": "a", "age": 41, "dose": None, "on": 1.0},
        {"ward": None, "age": None, "dose": 0.5, "on": None},
    ]
    assert list(opened[0]) == ["ward", "age", "dose", "on"]


def test_a_single_column_is_a_record_too() -> None:
    columns = PayloadColumns(kind="table", columns=("age",))
    found = columns.payloads(pa.table({"age": [1, None]}))
    assert found == [(1,), None]
    assert open_payload(found[0], columns=columns, folder="") == {"age": 1}


def test_a_column_of_lists_is_a_fault_of_the_table() -> None:
    columns = PayloadColumns(kind="table", columns=("a",))
    with pytest.raises(SourceError, match="column 'a' holds list"):
        columns.payloads(pa.table({"a": [[1]]}))
