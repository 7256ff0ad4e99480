"""Records: the cells of a row → numbers and text by column, None where one is missing."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Sequence
from typing import Any

from features.decoders.base import BadPayload, Limits

SECONDS_A_DAY = 86_400.0
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def decode(payload: Any, *, limits: Limits) -> dict[str, Any]:
    """A record given as a mapping of cells by column, as `decode_row` gives it back."""
    if not isinstance(payload, dict):
        raise BadPayload("a record is made of the cells of `columns`", stage="decode")
    return decode_row(tuple(payload.values()), names=tuple(payload), limits=limits)


def decode_row(cells: tuple[Any, ...], *, names: Sequence[str], limits: Limits) -> dict[str, Any]:
    """The cells by column: each a bool, int, float, str, or None where it is missing.

    Missing are null, NaN and the empty text. A date or a time stamp is its days since 1970-01-01
    as a float (one without a zone is taken as UTC), a time of day the part of the day that has
    passed, a duration its days. BadPayload for an infinite number, for bytes that are no text, for
    a text that is too long, and for a record without any cell.
    """
    record = {
        name: _cell(cell, name=name, limits=limits) for name, cell in zip(names, cells, strict=True)
    }
    if all(cell is None for cell in record.values()):
        raise BadPayload("all cells of the record are missing", stage="decode")
    return record


def _cell(cell: Any, *, name: str, limits: Limits) -> bool | int | float | str | None:
    match cell:
        case None | bool() | int():
            return cell
        case float():
            return _finite(cell, name=name)
        case str():
            if len(cell) > limits.characters:
                reason = f"column {name!r}: text of more than {limits.characters:,} characters"
                raise BadPayload(reason, stage="decode")
            return cell or None
        case bytes():
            try:
                return _cell(cell.decode(), name=name, limits=limits)
            except UnicodeDecodeError as error:
                reason = f"column {name!r} holds bytes that are no text"
                raise BadPayload(reason, stage="decode") from error
        case decimal.Decimal():
            return _finite(float(cell), name=name)
        case datetime.datetime():
            moment = cell if cell.tzinfo else cell.replace(tzinfo=EPOCH.tzinfo)
            return (moment - EPOCH).total_seconds() / SECONDS_A_DAY
        case datetime.date():
            return float(cell.toordinal() - EPOCH.toordinal())
        case datetime.time():
            seconds = (cell.hour * 60 + cell.minute) * 60 + cell.second + cell.microsecond / 1e6
            return seconds / SECONDS_A_DAY
        case datetime.timedelta():
            return cell.total_seconds() / SECONDS_A_DAY
    reason = f"column {name!r} holds a {type(cell).__name__}, not a number, text or date"
    raise BadPayload(reason, stage="decode")


def _finite(value: float, *, name: str) -> float | None:
    if math.isinf(value):
        raise BadPayload(f"column {name!r} is infinite", stage="decode")
    return None if math.isnan(value) else value
