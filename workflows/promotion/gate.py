"""The gate: the written conditions under which a challenger becomes champion.

Both models answer the same frozen rows, and every difference between them is paired: it is
taken row by row, before anything is averaged. What counts is the interval of a difference, not
the difference, since on a few hundred rows a better number is often no better model.
"""

from __future__ import annotations

import numpy as np

from training.evaluation.bootstrap import expanded, metric_interval
from training.evaluation.metrics import Metric
from training.evaluation.significance import mcnemar
from workflows.promotion.compare import (
    Answered,
    FrozenRows,
    Further,
    Predictions,
    answers_to,
    compared,
    decided,
    independent,
)
from workflows.promotion.limits import judge_limit
from workflows.promotion.spec import PromotionSpec
from workflows.promotion.verdict import Comparison, Condition, Verdict, interval_text

__all__ = ["FrozenRows", "Predictions", "PromotionSpec", "Verdict", "judge"]

POWER = 0.8
"""With what probability the gain that a verdict calls detectable is found."""


def judge(
    *,
    frozen: FrozenRows,
    challenger: Predictions,
    champion: Predictions | None,
    spec: PromotionSpec,
    metric: Metric,
    further: Further | None = None,
) -> Verdict:
    """Compare challenger and champion on the frozen rows by a metric, condition by condition.

    Raises ValueError if there are no rows, or if a model did not answer exactly these rows.
    The first champion (`champion=None`) has only floors and ceilings to pass.
    """
    if len(frozen.rows) == 0:
        raise ValueError("there is no labelled test row, so nothing can be compared or promoted")
    mine = answers_to(frozen, challenger, who="challenger")
    theirs = None if champion is None else answers_to(frozen, champion, who="champion")

    def compare(name: str, chosen: np.ndarray) -> Comparison | None:
        return compared(
            name,
            targets=frozen.targets[chosen],
            mine=mine[chosen],
            theirs=None if theirs is None else theirs[chosen],
            metric=metric,
            confidence=spec.confidence,
            groups=frozen.drawn_of(chosen),
        )

    overall = compare(metric.name, np.ones(len(mine), dtype=bool))
    if overall is None:
        raise ValueError(
            f"the {len(mine)} labelled test rows do not define {metric.title}: it asks for rows "
            "that differ in what is to be predicted"
        )
    p = None
    apart = independent(len(mine), groups=frozen.drawn)
    if metric.binary and metric.rows is not None and theirs is not None and apart == len(mine):
        p = mcnemar(metric.rows(frozen.targets, mine), metric.rows(frozen.targets, theirs))
    found = (compare(name, chosen) for name, chosen in frozen.groups())
    breakdown = tuple(item for item in found if item is not None)
    conditions = [_gain(overall, spec=spec, p=p)]
    if spec.floor is not None:
        conditions.append(_floor(overall, floor=spec.floor, metric=metric))
    if spec.max_slice_drop is not None and theirs is not None:
        conditions += [_slice_drop(item, spec=spec) for item in breakdown]
    further = further or Further()
    whole = Answered(challenger=challenger, champion=champion)
    for limit in spec.limits:
        conditions += judge_limit(
            limit, frozen=frozen, whole=whole, spec=spec, deciding=metric, further=further
        )
    own = metric_interval(
        metric,
        targets=frozen.targets,
        answers=mine,
        confidence=spec.confidence,
        groups=frozen.drawn,
    )
    return Verdict(
        passed=all(condition.passed for condition in conditions),
        confidence=spec.confidence,
        rows=len(mine),
        score=metric.value(frozen.targets, mine),
        low=own.low,
        high=own.high,
        conditions=tuple(conditions),
        breakdown=breakdown,
        metric=metric.name,
        detectable=_detectable(overall, spec=spec, independent=apart),
        test_set=further.test_set,
    )


def _gain(overall: Comparison, *, spec: PromotionSpec, p: float | None) -> Condition:
    rule = f"gain > {spec.min_gain:g}"
    if overall.low is None:
        return decided(overall, None, True, "there was no champion before", rule=rule)
    passed = overall.low > spec.min_gain
    test = "" if p is None else f" (McNemar p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
    what = f"{interval_text(overall)} against the champion{test}: the lower end "
    amount = abs(overall.low - spec.min_gain)
    if passed:
        detail = f"{what}is above {spec.min_gain:+.3f} by {amount:.3f}"
    else:
        detail = f"{what}must be above {spec.min_gain:+.3f} and falls short by {amount:.3f}"
    return decided(overall, spec.min_gain, passed, detail, rule=rule, p=p)


def _floor(overall: Comparison, *, floor: float, metric: Metric) -> Condition:
    assert overall.challenger is not None
    passed = metric.gain(overall.challenger, floor) >= 0
    amount = abs(overall.challenger - floor)
    side = "above" if overall.challenger >= floor else "below"
    detail = f"{overall.challenger:.3f} is {amount:.3f} {side} {floor:.3f}"
    rule = f"{'≥' if metric.higher_is_better else '≤'} {floor:g}"
    return decided(overall, floor, passed, detail, rule=rule, name="floor")


def _slice_drop(item: Comparison, *, spec: PromotionSpec) -> Condition:
    limit = -(spec.max_slice_drop or 0.0)
    rule = f"drop ≤ {-limit:g}"
    if item.rows < spec.min_slice_rows or item.high is None:
        detail = f"not judged: {item.rows} rows, fewer than {spec.min_slice_rows}"
        return decided(item, limit, True, detail, rule=rule)
    passed = item.high >= limit
    if passed:
        detail = f"{interval_text(item)}: not surely below {limit:+.3f}"
    else:
        detail = f"{interval_text(item)} lies below {limit:+.3f} by {limit - item.high:.3f}"
    return decided(item, limit, passed, detail, rule=rule)


def _detectable(overall: Comparison, *, spec: PromotionSpec, independent: int) -> float | None:
    """The true gain that is found with a probability of `POWER`, by the normal approximation.

    An estimate of standard error s lies above `min_gain` by z s, as the interval asks, with that
    probability if its mean lies above it by (z + z') s, where Φ(z') is the power.
    """
    from scipy.special import ndtri

    if overall.low is None or overall.high is None:
        return None
    z = float(ndtri((1 + expanded(spec.confidence, rows=independent)) / 2))
    error = (overall.high - overall.low) / (2 * z)
    return spec.min_gain + (z + float(ndtri(POWER))) * error
