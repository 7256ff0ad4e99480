"""Percentile bootstrap intervals of a mean and of a paired difference; numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
BLOCK_DRAWS = 2**22
"""Row numbers drawn at once, at most: what bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the interval that holds it with some confidence."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of the mean of `[N]` independent values: the bootstrap's percentiles.

    Equal for equal arguments. ValueError for no values or one that is not finite. Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"an interval needs at least one value in one row, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} of the values are not finite")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1; {confidence} does not")
    means = _resampled_means(array, resamples=resamples, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of mean(a − b), where a[i] and b[i] `[N]` are two answers to the same row."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must be of the same rows: {first.shape}, {second.shape}")
    return bootstrap_interval(first - second, confidence=confidence, resamples=resamples, seed=seed)


def _resampled_means(values: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of `resamples` draws of N out of the N values, with replacement."""
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size * 4 <= values.size:
        # How often each distinct value is drawn is multinomial: the same law, at the cost
        # of the distinct values (right or wrong: two) instead of the rows.
        drawn = rng.multinomial(values.size, counts / values.size, size=resamples)
        return drawn @ distinct / values.size
    means = np.empty(resamples)
    block = max(1, BLOCK_DRAWS // values.size)
    for start in range(0, resamples, block):
        rows = rng.integers(values.size, size=(min(block, resamples - start), values.size))
        means[start : start + block] = values[rows].mean(axis=1)
    return means
