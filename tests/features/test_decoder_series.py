"""Series from lists, `.npy` files and CSV files, against what NumPy and pandas hold."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.columns import PayloadColumns
from features.decoders.base import BadPayload, Limits
from features.payloads import decode, open_payload

RANDOM = np.random.default_rng(0)
VALUES = np.round(RANDOM.normal(size=(7, 3)), 3)
VALUES[2, 1] = VALUES[4] = np.nan


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def csv(**columns: Any) -> bytes:
    return pd.DataFrame(columns).to_csv(index=False).encode()


def refusal(payload: Any, **options: Any) -> str:
    with pytest.raises(BadPayload) as caught:
        decode(payload, kind="series", **options)
    assert caught.value.stage == "decode"
    return caught.value.reason


def test_lists_files_and_csv_are_one_series(tmp_path: Any) -> None:
    named = {name: VALUES[:, i] for i, name in enumerate("abc")}
    (tmp_path / "a.npy").write_bytes(npy(VALUES))
    (tmp_path / "a.csv").write_bytes(csv(**named))
    lists: list[Any] = VALUES.tolist()
    lists[4] = None  # a step that is missing altogether
    column = PayloadColumns(kind="series", columns=("s",))
    for value in ("a.npy", "a.csv", npy(VALUES), csv(**named), VALUES, lists):
        found = open_payload(value, columns=column, folder=str(tmp_path))
        np.testing.assert_array_equal(found.values, VALUES)
        assert found.values.dtype == np.float64 and found.times is None


def test_one_channel_needs_no_second_axis() -> None:
    for value in (np.arange(4.0), npy(np.arange(4)), csv(pulse=[0, 1, 2, 3])):
        np.testing.assert_array_equal(decode(value, kind="series").values, [[0], [1], [2], [3]])


@pytest.mark.parametrize("gap", ["", "NaN", "NA", "null", "None", "-"])
def test_gaps_of_a_csv_however_they_are_written(gap: str) -> None:
    found = decode(f"a,b\n1,2.5\n{gap},3\n5,{gap}\n".encode(), kind="series")
    np.testing.assert_array_equal(found.values, [[1, 2.5], [np.nan, 3], [5, np.nan]])


def test_a_gap_of_the_only_channel_is_a_step_too() -> None:
    found = decode(csv(pulse=[1.0, np.nan, 3.0]), kind="series")
    np.testing.assert_array_equal(found.values, [[1], [np.nan], [3]])


@pytest.mark.parametrize("name", ["time", "Time", "TIMESTAMP"])
def test_times_of_a_csv(name: str) -> None:
    seconds = [0.0, 0.5, 2.25]
    found = decode(csv(**{name: seconds, "a": [1, 2, 3]}), kind="series")
    assert found.times is not None
    np.testing.assert_array_equal(found.times, seconds)
    np.testing.assert_array_equal(found.values, [[1], [2], [3]])


def test_dates_are_seconds_since_1970() -> None:
    moments = pd.to_datetime(
        ["1970-01-02 00:00:00", "2024-02-29 12:00:01.250", "2024-02-29 12:00:02"], format="ISO8601"
    )
    found = decode(csv(timestamp=moments, a=[1, 2, 3]), kind="series")
    expected = [moment.timestamp() for moment in moments]
    assert found.times is not None
    np.testing.assert_array_equal(found.times, expected)


def test_several_columns_are_its_channels() -> None:
    columns = PayloadColumns(kind="series", columns=("a", "b", "c"))
    table = pa.table(
        {"a": [[1.0, 2.0]], "b": pa.array([None], pa.list_(pa.float64())), "c": [[3, 4]]}
    )
    (row,) = columns.payloads(table)
    found = open_payload(row, columns=columns, folder="")
    np.testing.assert_array_equal(found.values, [[1, np.nan, 3], [2, np.nan, 4]])


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ((np.arange(3.0), np.arange(2.0)), "'a' has 3 steps, 'b' 2"),
        ((None, None), "all channels of the series are missing"),
        ((np.arange(3.0), np.ones((3, 2))), "channel 'b' is a list of numbers"),
        (([1.0, "x"], np.arange(2.0)), "channel 'a'"),
        ((np.full(2, np.nan), None), "all steps are gaps"),
    ],
)
def test_channels_that_do_not_fit_are_refused(cells: Any, says: str) -> None:
    columns = PayloadColumns(kind="series", columns=("a", "b"))
    with pytest.raises(BadPayload, match=says):
        open_payload(cells, columns=columns, folder="")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (np.empty(0), "without a step"),
        (np.empty((0, 3)), "without a step"),
        (np.full((3, 2), np.nan), "all steps are gaps"),
        (np.ones((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.array([[1.0, 2.0], [3.0, -np.inf]]), "infinite value in step 1, channel 1"),
        ([[1.0, 2.0], [3.0]], "ragged series: steps of 1 and of 2 values"),
        ([[1.0], ["x"]], "other than numbers"),
        ("text", "a list of numbers"),
        (b"a,b\n", "without a step"),
        (b"1,2\n3,4\n", "must name the channels"),
        (b"a,b\n1,2\n3\n", "not a CSV file"),
        (b"a,b\n1,x\n", "column 'b' holds string"),
        (b"time\n1\n", "of times and no channel"),
        (b"time,a\n1,2\n,3\n", r"step 1 \(counted from 0\) has no time"),
        (b"time,a\n1,2\n3,3\n2,4\n", "the times go back at step 2"),
        (b"a\xff,b\n1,2\n", "not a CSV file"),
    ],
)
def test_what_is_no_series_is_refused_with_the_reason(payload: Any, says: str) -> None:
    assert re.search(says, refusal(payload)), refusal(payload)


def test_a_series_larger_than_the_limit_is_refused() -> None:
    limits = Limits(values=10)
    for payload in (np.ones((6, 2)), npy(np.ones(11)), csv(a=range(11))):
        assert "more than 10 numbers" in refusal(payload, limits=limits)
    decode(np.ones(10), kind="series", limits=limits)


def test_any_damage_gives_a_series_or_a_reason() -> None:
    whole = csv(time=range(20), a=RANDOM.normal(size=20), b=["", *range(19)])
    for _ in range(300):
        damaged = bytearray(whole)
        for place in RANDOM.integers(0, len(whole), 3):
            damaged[place] = RANDOM.integers(0, 256)
        payload = bytes(damaged[: RANDOM.integers(1, len(whole) + 1)])
        try:
            found = decode(payload, kind="series")
        except BadPayload as error:
            assert error.reason
        else:
            assert found.values.ndim == 2 and not np.isinf(found.values).any()
