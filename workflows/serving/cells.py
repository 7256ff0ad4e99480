"""The cells of rows that a model is asked about, as payloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from features.columns import NUMBER_KINDS, PayloadColumns
from features.number_lists import as_numbers
from features.payloads import INLINE
from workflows.serving.places import Forbidden, Places

WANTED = {
    "text": "text",
    "numbers": f"a list of numbers, or a path, a URI or a {INLINE} URI of a file of them",
    "table": "a number, text, true or false",
    "seconds": "a number of seconds",
    "file": f"bytes, a path, a URI or a {INLINE} URI",
}


class InvalidCell(ValueError):
    """A cell that holds no payload of its column's kind, and is not one that is merely broken."""


def payloads(
    rows: pd.DataFrame,
    *,
    columns: PayloadColumns,
    places: Places | None = None,
    base: str = "",
    first: int = 0,
) -> list[Any]:
    """The payload of each row; None where it is missing, or its column is not there.

    InvalidCell, with column and row (of which `first` is the first), for a value that is no
    payload, or a file out of `places`.
    """

    def cells(name: str | None) -> list[Any]:
        if name is None or name not in rows.columns:
            return [None] * len(rows)
        found = []
        for row, value in enumerate(rows[name].tolist(), first):
            try:
                cell = _cell(value, column=name, columns=columns)
                if places is not None and isinstance(cell, str) and _names_a_file(columns, name):
                    places.check(cell, base=base)
            except (TypeError, Forbidden) as error:
                raise InvalidCell(f"column {name!r}, row {row}: {error}") from error
            found.append(cell)
        return found

    return columns.combine(
        [cells(name) for name in columns.columns],
        starts=cells(columns.start),
        ends=cells(columns.end),
    )


def _names_a_file(columns: PayloadColumns, column: str) -> bool:
    if columns.kind == "table" or column in (columns.start, columns.end):
        return False
    return columns.kind != "text" or columns.uri


def _cell(value: Any, *, column: str, columns: PayloadColumns) -> Any:
    """A cell as a payload or a part of one; None for what stands for a missing one."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating) and np.isnan(value):
        return None
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, np.generic):
        value = value.item()
    if column in (columns.start, columns.end):
        try:
            if not isinstance(value, bool):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise TypeError(_refusal(value, wanted="seconds"))
    if columns.kind == "table":
        if isinstance(value, dict | list | tuple | set | np.ndarray):
            raise TypeError(_refusal(value, wanted="table"))
        return value
    if columns.kind in NUMBER_KINDS and isinstance(value, list | tuple | np.ndarray):
        return as_numbers(value)
    if isinstance(value, str | bytes):
        return value
    text = columns.kind == "text" and not columns.uri
    numbers = "numbers" if columns.kind in NUMBER_KINDS else "file"
    raise TypeError(_refusal(value, wanted="text" if text else numbers))


def _refusal(value: Any, *, wanted: str) -> str:
    return (
        f"it holds a {type(value).__name__}; a payload is {WANTED[wanted]}, or null (None) if it "
        "is missing"
    )
