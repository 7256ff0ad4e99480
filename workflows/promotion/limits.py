"""The limits of a gate: a metric, some of the rows or modalities, or a cost; each a condition."""

from __future__ import annotations

import math

import numpy as np

from features.fingerprint import nearest_hint
from training.evaluation.metrics import Metric
from workflows.promotion.compare import Answered, FrozenRows, Further, answers_to, compared, decided
from workflows.promotion.spec import COSTS, LimitSpec, PromotionSpec
from workflows.promotion.verdict import Comparison, Condition, interval_text


def judge_limit(
    limit: LimitSpec,
    *,
    frozen: FrozenRows,
    whole: Answered,
    spec: PromotionSpec,
    deciding: Metric,
    further: Further,
) -> list[Condition]:
    """The conditions of one limit: its floor or ceiling, and that it drops no further.

    What cannot be judged fails and says why: too few rows, or rows that do not define the metric.
    Against no champion a `max_drop` holds.
    """
    name = limit.metric or deciding.name
    if name in COSTS:
        return _costs(limit, name=name, further=further)
    metric = deciding if name == deciding.name else further.metrics[name]
    title = f"{name}, {limit.where}" if limit.where else name
    chosen = _rows(limit, frozen=frozen)
    count = int(chosen.sum())
    if limit.where and count < spec.min_slice_rows:
        return [_unjudged(limit, title=title, frozen=frozen, rows=count, spec=spec)]
    answered = further.alone[limit.present] if limit.present else whole
    mine = answers_to(frozen, answered.challenger, who="challenger")[chosen]
    theirs = None
    if answered.champion is not None:
        theirs = answers_to(frozen, answered.champion, who="champion")[chosen]
    item = compared(
        title,
        targets=frozen.targets[chosen],
        mine=mine,
        theirs=theirs,
        metric=metric,
        confidence=spec.confidence,
        groups=frozen.drawn_of(chosen),
    )
    if item is None:
        item = Comparison(name=title, rows=count, challenger=None)
        detail = f"cannot be judged: these {count} rows do not define {metric.title}"
        return [decided(item, _threshold(limit), False, detail, rule=_rule(limit))]
    return _conditions(limit, item=item, more_is_better=metric.higher_is_better)


def _rows(limit: LimitSpec, *, frozen: FrozenRows) -> np.ndarray:
    """The rows that a limit is of, bool `[N]`."""
    chosen = np.ones(len(frozen.rows), dtype=bool)
    for column, value in (limit.slice or {}).items():
        chosen &= frozen.values_of(column) == value
    for modality in limit.missing:
        chosen &= frozen.missing[modality]
    if limit.present:
        chosen &= ~np.all([frozen.missing[modality] for modality in limit.present], axis=0)
    return chosen


def _conditions(limit: LimitSpec, *, item: Comparison, more_is_better: bool) -> list[Condition]:
    assert item.challenger is not None
    made = []
    bound = limit.floor if more_is_better else limit.ceiling
    if bound is not None:
        gap = item.challenger - bound if more_is_better else bound - item.challenger
        sign = "≥" if more_is_better else "≤"
        side = "above" if item.challenger >= bound else "below"
        amount = abs(item.challenger - bound)
        detail = f"{item.challenger:.3f} is {amount:.3f} {side} {bound:.3f}"
        rule = f"{sign} {bound:g}"
        made.append(decided(item, bound, gap >= 0, detail, rule=rule))
    if limit.max_drop is not None:
        made.append(_drop(limit, item=item, most=-limit.max_drop))
    return made


def _drop(limit: LimitSpec, *, item: Comparison, most: float) -> Condition:
    rule = _drop_rule(limit)
    if item.low is None or item.high is None:
        return decided(item, most, True, "there was no champion before", rule=rule)
    told = interval_text(item)
    if limit.proven:
        passed, gap = item.low >= most, abs(item.low - most)
        text = "no part of it lies" if passed else f"it reaches {gap:.3f}"
        detail = f"{told}: {text} below {most:+.3f}"
    else:
        passed, gap = item.high >= most, abs(item.high - most)
        text = "not surely" if passed else f"all of it lies {gap:.3f}"
        detail = f"{told}: {text} below {most:+.3f}"
    return decided(item, most, passed, detail, rule=rule)


def _costs(limit: LimitSpec, *, name: str, further: Further) -> list[Condition]:
    cost = further.costs.get(name)
    if cost is None:
        item = Comparison(name=name, rows=0, challenger=None)
        detail = "not measured: it is of a registered model, and a trial run registers none"
        return [decided(item, _threshold(limit), True, detail, rule=_rule(limit))]
    item = Comparison(
        name=name,
        rows=cost.rows,
        challenger=cost.challenger,
        champion=cost.champion,
        difference=cost.difference,
        low=cost.low,
        high=cost.high,
    )
    return _conditions(limit, item=item, more_is_better=False)


def _unjudged(
    limit: LimitSpec, *, title: str, frozen: FrozenRows, rows: int, spec: PromotionSpec
) -> Condition:
    """A limit on rows that are too few to judge it: it fails."""
    least = spec.min_slice_rows
    detail = f"cannot be judged: {rows} test rows, fewer than min_slice_rows ({least})"
    for column, value in (limit.slice or {}).items():
        there = frozen.values_of(column)
        if value not in there:
            values = sorted(set(there.tolist()))
            shown = ", ".join(values[:8]) + (" …" if len(values) > 8 else "")
            detail = (
                f"cannot be judged: no test row is of {column}: {value}; "
                f"{nearest_hint(value, values)}there are {shown}"
            )
    item = Comparison(name=title, rows=rows, challenger=None)
    return decided(item, _threshold(limit), False, detail, rule=_rule(limit))


def _threshold(limit: LimitSpec) -> float | None:
    values = (limit.floor, limit.ceiling, None if limit.max_drop is None else -limit.max_drop)
    return next((value for value in values if value is not None and math.isfinite(value)), None)


def _rule(limit: LimitSpec) -> str:
    if limit.floor is not None:
        return f"≥ {limit.floor:g}"
    if limit.ceiling is not None:
        return f"≤ {limit.ceiling:g}"
    return _drop_rule(limit)


def _drop_rule(limit: LimitSpec) -> str:
    return f"drop ≤ {limit.max_drop:g}{', proven' if limit.proven else ''}"
