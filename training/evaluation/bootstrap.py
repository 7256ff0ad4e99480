"""Percentile bootstrap intervals of a mean, of any metric, and of paired differences; numpy alone.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.evaluation.metrics import Metric
from training.evaluation.resampling import Resamples

RESAMPLES = 2000
LEAST_RESAMPLES = 100
DRAWS = 2**25
"""Of how many rows and outputs, over all resamples, a metric that is no mean is computed; more
rows are resampled less often, down to `LEAST_RESAMPLES`."""
BLOCK_DRAWS = 2**20
"""Row numbers drawn at once, at most: what bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the interval that holds it with some confidence."""

    mean: float
    low: float
    high: float


def expanded(confidence: float, *, rows: int) -> float:
    """The confidence at which to take percentiles, so that those of few rows hold what they state.

    Percentiles of resampled means are too near to each other by √((n − 1)/n), and know nothing of
    Student's t: of 20 rows a 95% interval is left on one side 3.3% of the time. Hesterberg, What
    Teachers Should Know About the Bootstrap (2015), section 5.3: the expanded percentile interval.
    """
    from scipy.special import ndtr, stdtrit

    if rows < 2:
        return confidence
    quantile = stdtrit(rows - 1, (1 + confidence) / 2)
    return float(1 - 2 * ndtr(-quantile * np.sqrt(rows / (rows - 1))))


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Interval:
    """Interval of the mean of `[N]` values: the bootstrap's percentiles.

    Of values of `groups` `[N]`, see `metric_interval`. Equal for equal arguments. ValueError for no
    values or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"an interval needs at least one value in one row, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(array))} of the values are not finite")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1; {confidence} does not")
    means = _resampled_means(array, resamples=resamples, seed=seed, groups=groups)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def metric_interval(
    metric: Metric,
    *,
    targets: np.ndarray,
    answers: np.ndarray,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Interval:
    """The metric of answers to rows, with its interval; see `Metric` for the shapes.

    `groups` `[N]` are equal for rows that are not independent: whole groups are drawn, as in
    Davison and Hinkley (1997), section 3.8, if there are several.

    A resample in which the metric is not defined (of one class alone, say) is left out; where
    all are, the interval is NaN.
    """
    (interval,) = metric_intervals(
        [metric],
        targets=targets,
        answers=answers,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        groups=groups,
    )
    return interval


def metric_intervals(
    metrics: Sequence[Metric],
    *,
    targets: np.ndarray,
    answers: np.ndarray,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> list[Interval]:
    """As `metric_interval`, of several: what they need of a resample is worked out once.

    Of a metric that resamples are `biased` for, they are moved by what their mean is off.
    """
    further = [number for number, metric in enumerate(metrics) if metric.rows is None]
    found: dict[int, list[np.ndarray]] = {number: [] for number in further}
    if further:
        drawn = _resamples(answers.shape, resamples=resamples, seed=seed, groups=groups)
        for counts in drawn:
            block = Resamples(targets=targets, answers=answers, counts_RN=counts)
            for number in further:
                found[number].append(_resampled(metrics[number], block))
    intervals = []
    for number, metric in enumerate(metrics):
        if metric.rows is None:
            value, values = metric.value(targets, answers), np.concatenate(found[number])
            if metric.biased:
                values = (values - np.nanmean(values) + value).clip(min=0)
            intervals.append(percentile_interval(value, values, confidence=confidence))
        else:
            rows = metric.rows(targets, answers)
            intervals.append(
                bootstrap_interval(
                    rows, confidence=confidence, resamples=resamples, seed=seed, groups=groups
                )
            )
    return intervals


def paired_metric(
    metric: Metric,
    *,
    targets: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Interval:
    """By how much the answers `a` are better than `b`, which are of the same rows; paired.

    That is metric(a) − metric(b), or the other way round where less is better.
    """
    values = paired_resamples(
        metric, targets=targets, a=a, b=b, resamples=resamples, seed=seed, groups=groups
    )
    gain = paired_gain(metric, targets=targets, a=a, b=b)
    return percentile_interval(gain, values, confidence=confidence)


def paired_gain(metric: Metric, *, targets: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """By how much the answers `a` are better than `b`, on all rows."""
    if metric.rows is not None:
        return float(_row_gains(metric, targets, a, b).mean())
    return metric.gain(metric.value(targets, a), metric.value(targets, b))


def paired_resamples(
    metric: Metric,
    *,
    targets: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """By how much the answers `a` are better than `b` in each of many resamples, float64 `[R]`."""
    if a.shape != b.shape:
        raise ValueError(f"paired answers must be of the same rows: {a.shape}, {b.shape}")
    if metric.rows is not None:
        gains = _row_gains(metric, targets, a, b)
        return _resampled_means(gains, resamples=resamples, seed=seed, groups=groups)
    sign = 1 if metric.higher_is_better else -1
    found = []
    for counts in _resamples(a.shape, resamples=resamples, seed=seed, groups=groups):
        first, second = (
            _resampled(metric, Resamples(targets=targets, answers=answers, counts_RN=counts))
            for answers in (a, b)
        )
        found.append(sign * (first - second))
    return np.concatenate(found)


def _row_gains(metric: Metric, targets: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert metric.rows is not None
    first, second = metric.rows(targets, a), metric.rows(targets, b)
    return first - second if metric.higher_is_better else second - first


def _resampled(metric: Metric, resamples: Resamples) -> np.ndarray:
    assert metric.resampled is not None, f"{metric.name} is neither a mean nor resampled"
    return metric.resampled(resamples)


def _resamples(
    shape: tuple[int, ...], *, resamples: int, seed: int, groups: np.ndarray | None
) -> Iterator[np.ndarray]:
    """How often each row is in each resample, float64 `[block, N]`, block by block."""
    rows, outputs = shape[0], int(np.prod(shape[1:]))
    resamples = min(resamples, max(LEAST_RESAMPLES, DRAWS // max(1, rows * outputs)))
    units = drawn_units(groups)
    count = rows if units is None else int(units.max()) + 1
    for counts_RU in _counts(count, rows=rows, resamples=resamples, seed=seed):
        yield counts_RU if units is None else counts_RU[:, units]


def _counts(units: int, *, rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is drawn, float64 `[block, U]`, of as many blocks as rows ask for."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_DRAWS // rows)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        found = np.bincount(drawn.ravel(), minlength=count * units)
        yield found.reshape(count, units).astype(float)


def drawn_units(groups: np.ndarray | None) -> np.ndarray | None:
    """The unit of each row `[N]`, counted from 0, that is drawn as a whole; None for the rows
    themselves: where each is a group, or all are one, of which nothing is known but its rows.
    """
    if groups is None:
        return None
    found, units = np.unique(groups, return_inverse=True)
    return None if len(found) in (1, len(groups)) else units


def percentile_interval(value: float, values: np.ndarray, *, confidence: float) -> Interval:
    """A value with the percentiles of what resamples `[R]` say; of all that are NaN, NaN."""
    known = values[~np.isnan(values)]
    if not known.size:
        return Interval(mean=value, low=np.nan, high=np.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(mean=value, low=float(low), high=float(high))


def _resampled_means(
    values: np.ndarray, *, resamples: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Means of `resamples` draws of N out of the N values, with replacement; or of all groups."""
    units = drawn_units(groups)
    if units is not None:
        sums_U, sizes_U = np.bincount(units, weights=values), np.bincount(units)
        options = {"rows": len(sums_U), "resamples": resamples, "seed": seed}
        blocks = _counts(len(sums_U), **options)
        return np.concatenate([counts @ sums_U / (counts @ sizes_U) for counts in blocks])
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
