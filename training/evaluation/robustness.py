"""How much of a metric is left when inputs are impaired, as one number; NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from training.evaluation.metrics import Metric


def kept(metric: Metric, *, whole: float, left: float) -> float:
    """The share of a metric that is left: 1 if nothing is lost. Of an error, by how little it has
    grown: the one before over the one after.

    NaN where one of the two is not defined, or the metric was not positive from the first.
    """
    if not (math.isfinite(whole) and math.isfinite(left)):
        return math.nan
    before, after = (whole, left) if metric.higher_is_better else (left, whole)
    if before == after:
        return 1.0
    return after / before if before > 0 else math.nan


def kept_over_levels(
    metric: Metric, *, levels: Sequence[float], values: Sequence[float], whole: float
) -> float:
    """The share that is left on the average of all levels from 0 to the last.

    The area under the curve of performance against imperfection, by trapezoids, over that of a
    model which loses nothing: Liang et al. 2021 (MultiBench), https://arxiv.org/abs/2107.07502,
    section 3. The level 0 is `whole`.
    """
    heights = np.array([whole, *values], np.float64)
    area = np.trapezoid(heights, [0.0, *levels])
    return kept(metric, whole=whole, left=float(area / levels[-1]))


def kept_of_subsets(metric: Metric, *, values: Sequence[float], whole: float) -> float:
    """The share that is left on the average of the subsets of modalities but the whole."""
    return kept(metric, whole=whole, left=float(np.mean(values))) if len(values) else math.nan
