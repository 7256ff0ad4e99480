"""Whether the difference between two models' answers to the same rows is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.evaluation.bootstrap import (
    Interval,
    drawn_units,
    paired_gain,
    paired_resamples,
    percentile_interval,
)
from training.evaluation.metrics import Metric

FEW = 10
"""Fewer resamples than this on the other side of zero are too few to count a probability by."""
Test = Literal["McNemar", "paired bootstrap", "paired bootstrap of groups"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """By how much one model is better than another, and how likely chance would do as much."""

    gain: Interval
    p: float
    """Two-sided: the probability of a difference at least as large, were there none."""
    test: Test


def difference(
    metric: Metric,
    *,
    targets: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Difference:
    """How much better the answers `a` are than `b`, to the same rows.

    Of right and wrong answers p is McNemar's, exact; of all else it is the paired bootstrap's, as
    it is where rows belong to `groups` `[N]`, since McNemar's takes rows for independent.
    """
    units = drawn_units(groups)
    values = paired_resamples(metric, targets=targets, a=a, b=b, seed=seed, groups=groups)
    reached = paired_gain(metric, targets=targets, a=a, b=b)
    gain = percentile_interval(reached, values, confidence=confidence)
    if units is None and metric.binary and metric.rows is not None:
        p = mcnemar(metric.rows(targets, a), metric.rows(targets, b))
        return Difference(gain=gain, p=p, test="McNemar")
    count = len(targets) if units is None else int(units.max()) + 1
    return Difference(
        gain=gain,
        p=bootstrap_p(reached, values, units=count),
        test="paired bootstrap" if units is None else "paired bootstrap of groups",
    )


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test, of whether each row was answered rightly, `[N]` each.

    Where just one of the two is right, each is equally likely to be, if they are equally good:
    McNemar 1947, https://doi.org/10.1007/BF02295996, with the binomial law instead of χ².
    """
    import scipy.stats

    a, b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if a.shape != b.shape:
        raise ValueError(f"paired answers must be of the same rows: {a.shape}, {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number: below α one by one keeps the probability of any
    false alarm among them below α.

    Holm 1979, https://www.jstor.org/stable/4615733.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def bootstrap_p(gain: float, values: np.ndarray, *, units: int) -> float:
    """Two-sided p of a gain over zero, by its resampled values `[R]`; `units` were drawn from.

    The share of resamples on the other side of zero, with one added, so that it is never zero:
    Davison and Hinkley, Bootstrap Methods and their Application (1997), section 4.2. Where `FEW`
    lie there, it would be a matter of how many were drawn, and a correction for many comparisons
    would leave nothing real: there it is Student's, of the gain over the resamples' deviation.
    """
    import scipy.stats

    known = values[~np.isnan(values)]
    other = int(min((known <= 0).sum(), (known >= 0).sum()))
    deviation = float(known.std()) if len(known) else 0.0
    if other < FEW and deviation > 0 and units > 1:
        return float(2 * scipy.stats.t.sf(abs(gain) / deviation, df=units - 1))
    return min(1.0, 2 * (other + 1) / (len(known) + 1))
