"""What a series is like in a few numbers: statistics of each channel over its steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUMMARY = ("mean", "deviation", "least", "greatest", "first", "last", "slope", "missing")
"""What is kept of each channel before its quantiles, in the order of an embedding."""


def summary(
    values: Sequence[np.ndarray], *, times: Sequence[np.ndarray], quantiles: tuple[float, ...]
) -> np.ndarray:
    """Statistics, float32 `[B, C * S + 2]`, of B series `[T, C]` with times `[T]` from 0 on.

    NaN is a gap. The S statistics are those of `SUMMARY` and the quantiles; the last two numbers
    are log(1 + steps) and log(1 + duration). A series padded beside longer ones is as it is alone.
    """
    steps_B = np.array([len(item) for item in values])
    channels = values[0].shape[1]
    values_BTC = np.full((len(values), steps_B.max(), channels), np.nan)
    places_BT = np.zeros((len(values), steps_B.max()))  # 0 at the first step, 1 at the last
    spans_B = np.zeros(len(values))
    for i, (item, seconds) in enumerate(zip(values, times, strict=True)):
        values_BTC[i, : steps_B[i]] = item
        spans_B[i] = seconds[-1]
        if seconds[-1] > 0:
            places_BT[i, : steps_B[i]] = seconds / seconds[-1]
    there_BTC = ~np.isnan(values_BTC)
    counts_BC = there_BTC.sum(axis=1)
    least_one_BC = np.maximum(counts_BC, 1)
    zeros_BTC = np.where(there_BTC, values_BTC, 0.0)
    mean_BC = zeros_BTC.sum(axis=1) / least_one_BC
    off_BTC = np.where(there_BTC, values_BTC - mean_BC[:, None], 0.0)
    deviation_BC = np.sqrt(np.square(off_BTC).sum(axis=1) / least_one_BC)

    sorted_BTC = np.sort(values_BTC, axis=1)  # NaN comes last
    last_BC = np.maximum(counts_BC - 1, 0)
    first_there_BC = there_BTC.argmax(axis=1)
    last_there_BC = there_BTC.shape[1] - 1 - there_BTC[:, ::-1].argmax(axis=1)
    found = [
        mean_BC,
        deviation_BC,
        sorted_BTC[:, 0],
        _at(sorted_BTC, last_BC),
        _at(values_BTC, first_there_BC),
        _at(values_BTC, last_there_BC),
        _slope(off_BTC, there_BTC=there_BTC, places_BT=places_BT),
        1 - counts_BC / steps_B[:, None],
        *(_quantile(sorted_BTC, last_BC=last_BC, q=q) for q in quantiles),
    ]
    stacked_BCS = np.nan_to_num(np.stack(found, axis=2), nan=0.0)  # a channel without a value
    lengths_B2 = np.log1p(np.stack([steps_B, spans_B], axis=1))
    rows = np.concatenate([stacked_BCS.reshape(len(values), -1), lengths_B2], axis=1)
    return rows.astype(np.float32)


def _at(values_BTC: np.ndarray, step_BC: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.take_along_axis(values_BTC, step_BC[:, None], axis=1)[:, 0]
    return found


def _slope(off_BTC: np.ndarray, *, there_BTC: np.ndarray, places_BT: np.ndarray) -> np.ndarray:
    """Slopes `[B, C]` of the lines of least squares through values less their mean."""
    counts_BC = np.maximum(there_BTC.sum(axis=1), 1)
    where_BTC = np.where(there_BTC, places_BT[:, :, None], 0.0)
    middle_BC = where_BTC.sum(axis=1) / counts_BC
    apart_BTC = np.where(there_BTC, where_BTC - middle_BC[:, None], 0.0)
    spread_BC = np.square(apart_BTC).sum(axis=1)
    flat_BC = spread_BC < 1e-12
    slopes: np.ndarray = (apart_BTC * off_BTC).sum(axis=1) / np.where(flat_BC, 1.0, spread_BC)
    return np.where(flat_BC, 0.0, slopes)


def _quantile(sorted_BTC: np.ndarray, *, last_BC: np.ndarray, q: float) -> np.ndarray:
    """The quantile `[B, C]`, between two values in proportion, as NumPy has it."""
    place_BC = q * last_BC
    below_BC = np.floor(place_BC).astype(np.int64)
    above_BC = np.minimum(below_BC + 1, last_BC)
    low_BC, high_BC = _at(sorted_BTC, below_BC), _at(sorted_BTC, above_BC)
    found: np.ndarray = low_BC + (high_BC - low_BC) * (place_BC - below_BC)
    return found
