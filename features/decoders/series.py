"""Series: lists of numbers, or the bytes of a `.npy` or CSV file → values and times by step."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from features.decoders.base import BadPayload, Limits, short
from features.decoders.npy import MAGIC, read_npy, refuse_too_many
from features.encoders.base import Series
from features.encoders.series import refuse_disorder

TIME_NAMES = ("time", "timestamp")
"""Names by which the first column of a CSV file is its times, in small letters or capitals."""
GAPS = ("", "NaN", "nan", "NAN", "NA", "N/A", "n/a", "null", "NULL", "None", "none", "-")
"""What stands in a CSV file for a gap."""
LARGEST_BLOCK = 2**31 - 1


def decode(payload: Any, *, limits: Limits) -> Series:
    """The series of one cell: an array `[T]` or `[T, C]`, or a `.npy` or CSV file of one.

    The first line of a CSV file names the channels; the fields are divided by commas. Times come
    from its first column if that is named `time` or `timestamp`: seconds, or dates with times,
    which become seconds since 1970. Gaps are NaN. BadPayload for a series without a step or
    without a value, that is ragged, holds an infinite number, or whose times go back.
    """
    times: np.ndarray | None = None
    if isinstance(payload, bytes) and not payload.startswith(MAGIC):
        values, times = _read_csv(payload, limits=limits)
    else:
        values = _numbers(payload, limits=limits)
        if values.ndim == 1:
            values = values[:, None]
    if values.ndim != 2:
        reason = (
            f"a series has the shape [steps] or [steps, channels]; this has the shape "
            f"{values.shape}"
        )
        raise BadPayload(reason, stage="decode")
    return _checked(values, times, limits=limits)


def decode_row(cells: tuple[Any, ...], *, names: Sequence[str], limits: Limits) -> Series:
    """The series of several cells, a channel each: lists of numbers or `.npy` files, of one length.

    A channel that is missing is one gap.
    """
    channels: dict[str, np.ndarray] = {}
    for name, cell in zip(names, cells, strict=True):
        if cell is None:
            continue
        channel = _numbers(cell, limits=limits, what=f"channel {name!r}")
        if channel.ndim != 1:
            reason = f"channel {name!r} is a list of numbers; this has the shape {channel.shape}"
            raise BadPayload(reason, stage="decode")
        channels[name] = channel
    if not channels:
        raise BadPayload("all channels of the series are missing", stage="decode")
    first, steps = next((name, len(channel)) for name, channel in channels.items())
    for name, channel in channels.items():
        if len(channel) != steps:
            reason = (
                f"channels of unlike length: {first!r} has {steps} steps, {name!r} {len(channel)}"
            )
            raise BadPayload(reason, stage="decode")
    gap = np.full(steps, np.nan)
    values = np.stack([channels.get(name, gap) for name in names], axis=1)
    return _checked(values, None, limits=limits)


def _numbers(cell: Any, *, limits: Limits, what: str = "a series") -> np.ndarray:
    match cell:
        case np.ndarray() if cell.dtype.kind in "biuf":
            return cell.astype(np.float64, copy=False)
        case bytes() if cell.startswith(MAGIC):
            return read_npy(cell, limits=limits)
        case list():
            return _of_steps(cell, what=what)
    reason = f"{what} is a list of numbers, or a .npy file of one"
    raise BadPayload(reason, stage="decode")


def _of_steps(steps: list[Any], *, what: str) -> np.ndarray:
    """The array `[T, C]` of a list of steps, of which some are missing altogether."""
    known = [step for step in steps if step is not None]
    if not known or not all(isinstance(step, list | tuple | np.ndarray) for step in known):
        raise BadPayload(f"{what} is a list of numbers, or of lists of them", stage="decode")
    widths = sorted({len(step) for step in known})
    if len(widths) > 1:
        reason = f"ragged series: steps of {widths[0]} and of {widths[-1]} values"
        raise BadPayload(reason, stage="decode")
    gap = [np.nan] * widths[0]
    try:
        return np.array([gap if step is None else step for step in steps], dtype=np.float64)
    except (TypeError, ValueError) as error:
        reason = f"{what} holds something other than numbers: {short(error)}"
        raise BadPayload(reason, stage="decode") from error


def _checked(values: np.ndarray, times: np.ndarray | None, *, limits: Limits) -> Series:
    refuse_too_many(values.size, limits=limits)
    if not values.size:
        raise BadPayload("series without a step", stage="decode")
    present = np.isfinite(values)
    if not present.all():
        infinite = np.argwhere(np.isinf(values))
        if len(infinite):
            step, channel = infinite[0]
            reason = f"infinite value in step {step}, channel {channel} (counted from 0)"
            raise BadPayload(reason, stage="decode")
        if not present.any():
            raise BadPayload("series without a value: all steps are gaps", stage="decode")
    if times is not None:
        try:
            refuse_disorder(times)
        except ValueError as error:
            raise BadPayload(str(error), stage="decode") from error
    return Series(values=values, times=times)


def _read_csv(payload: bytes, *, limits: Limits) -> tuple[np.ndarray, np.ndarray | None]:
    """Values `[T, C]` and times `[T]`, if there are any, of a CSV file."""
    try:
        table = pa.csv.read_csv(
            io.BytesIO(payload),
            # The type of a column is guessed from its first block alone: let there be one.
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=min(len(payload) + 1, LARGEST_BLOCK)
            ),
            convert_options=pa.csv.ConvertOptions(
                null_values=list(GAPS), strings_can_be_null=True, check_utf8=True
            ),
        )
        names = [name.strip() for name in table.column_names]
    except (pa.ArrowException, UnicodeDecodeError) as error:  # names are decoded when asked for
        reason = f"not a CSV file of a series, or damaged: {short(error)}"
        raise BadPayload(reason, stage="decode") from error
    refuse_too_many(table.num_rows * table.num_columns, limits=limits)
    if all(map(_is_number, names)):
        reason = "the first line of a CSV file must name the channels; this one holds numbers"
        raise BadPayload(reason, stage="decode")
    columns = [_csv_column(column, name=n) for n, column in zip(names, table.columns, strict=True)]
    times = None
    if names[0].lower() in TIME_NAMES:
        if len(names) == 1:
            raise BadPayload("a CSV file of times and no channel", stage="decode")
        times = columns.pop(0)
    return np.stack(columns, axis=1), times


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _csv_column(column: pa.ChunkedArray, *, name: str) -> np.ndarray:
    """A column as float64 `[T]`, NaN in gaps; only the times may be dates."""
    found = column.type
    if (pa.types.is_timestamp(found) or pa.types.is_date(found)) and name.lower() in TIME_NAMES:
        stamps = column.cast(pa.timestamp("us", tz=getattr(found, "tz", None)))
        numbers = pc.divide(stamps.cast(pa.int64()).cast(pa.float64(), safe=False), 1e6)
    elif pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_null(found):
        numbers = column.cast(pa.float64(), safe=False)
    else:
        raise BadPayload(f"column {name!r} holds {found}, not numbers", stage="decode")
    array: np.ndarray = numbers.to_numpy()
    return array
