"""Payloads in a table: which columns hold them, and what a row's cells make.

A payload is one cell (a text, bytes, a URI, a list of numbers), a cut of a recording with its
start and end, or several cells side by side (the fields of a record, the channels of a series).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.encoders.base import Kind
from features.number_lists import is_list, number_arrays
from features.sources import SourceError

NUMBER_KINDS: tuple[Kind, ...] = ("series", "vector")
"""Kinds whose inline payloads are lists of numbers."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a recording."""

    whole: str | bytes
    start: float = 0.0
    """Seconds from the beginning."""
    end: float | None = None
    """Seconds from the beginning; None for the end of the recording."""


@dataclass(frozen=True, kw_only=True)
class PayloadColumns:
    """Where a modality's payloads stand in a table, and of which kind they are."""

    kind: Kind
    columns: tuple[str, ...]
    """One column, or those whose cells together are one payload."""
    uri: bool = False
    """Whether text cells are URIs of files, and not the text itself."""
    start: str | None = None
    """Column of the second at which a cut begins."""
    end: str | None = None
    """Column of the second at which a cut ends."""

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.columns, *(name for name in (self.start, self.end) if name))

    @property
    def text_names(self) -> tuple[str, ...]:
        """Columns that a format without types must not guess at: `007` stays so."""
        return () if self.kind == "table" else self.columns

    def payloads(self, table: pa.Table) -> list[Any]:
        """The payload of each row: a cell, a `Cut`, or a tuple of cells; None if it is missing.

        A list of numbers comes as a float64 array, nulls in it as NaN. A row of several columns
        is missing if all its cells are. SourceError for a column of a type that cannot be used.
        """
        cells = [self._cells(table[name], name=name) for name in self.columns]
        starts, ends = (_seconds(table, name=name) for name in (self.start, self.end))
        return self.combine(cells, starts=starts, ends=ends)

    def combine(
        self,
        cells: Sequence[Sequence[Any]],
        *,
        starts: Sequence[float | None],
        ends: Sequence[float | None],
    ) -> list[Any]:
        """The payload of each row, given each column's cells."""
        if self.start is not None or self.end is not None:
            return [
                None if whole is None else Cut(whole=whole, start=start or 0.0, end=end)
                for whole, start, end in zip(cells[0], starts, ends, strict=True)
            ]
        if len(cells) == 1 and self.kind != "table":
            return list(cells[0])
        rows = zip(*cells, strict=True)
        return [None if all(cell is None for cell in row) else row for row in rows]

    def _cells(self, column: pa.ChunkedArray, *, name: str) -> list[Any]:
        values = plain_array(column)
        found = values.type
        if values.null_count == len(values):  # of whatever type, as CSV and pandas make them
            return [None] * len(values)
        if self.kind == "table":
            if pa.types.is_nested(found):
                raise SourceError(
                    f"column {name!r} holds {found}; a table's cells are numbers, text, booleans "
                    "or dates"
                )
            return [None if _is_nan(value) else value for value in values.to_pylist()]
        if self.kind in NUMBER_KINDS and is_list(found):
            return number_arrays(values)
        text = pa.types.is_string(found) or pa.types.is_large_string(found)
        binary = pa.types.is_binary(found) or pa.types.is_large_binary(found)
        if not (text or binary):
            wanted = "paths, URIs or bytes"
            if self.kind == "text":
                wanted = "paths and URIs" if self.uri else "text"
            elif self.kind in NUMBER_KINDS:
                wanted = "lists of numbers, or paths and URIs"
            raise SourceError(f"column {name!r} holds {found}; {self.kind} payloads are {wanted}")
        return list(values.to_pylist())


def read_as_text(payloads: Iterable[PayloadColumns], *, also: Iterable[str]) -> list[str]:
    """Columns that a format without types must not guess at, those of payloads and others.

    The fields of records are none, though they be among the others: a job that embeds them reads
    them as numbers where they are, and all must come out alike.
    """
    read = list(payloads)
    fields = {name for one in read if one.kind == "table" for name in one.columns}
    names = dict.fromkeys([*also, *(name for one in read for name in one.text_names)])
    return [name for name in names if name not in fields]


def plain_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array without a dictionary encoding."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def as_text(column: pa.ChunkedArray | pa.Array, *, name: str) -> pa.Array:
    """A column of text or numbers as text; SourceError for any other."""
    array = plain_array(column)
    try:
        if pa.types.is_floating(array.type):  # Arrow writes 12345678901.0 as 1.2345678901e+10
            exact = array.cast(pa.float64())
            whole = pc.and_(pc.equal(pc.floor(exact), exact), pc.less(pc.abs(exact), 2.0**63))
            numbers = pc.if_else(whole, exact, pa.scalar(None, pa.float64())).cast(pa.int64())
            return pc.coalesce(numbers.cast(pa.string()), array.cast(pa.string()))
        return array.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SourceError(f"column {name!r} holds {array.type}, not text or numbers") from error


def _seconds(table: pa.Table, *, name: str | None) -> list[float | None]:
    if name is None:
        return [None] * table.num_rows
    try:
        values = plain_array(table[name]).cast(pa.float64()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(f"column {name!r} holds {table[name].type}, not seconds") from error
    return [None if _is_nan(value) else value for value in values]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
