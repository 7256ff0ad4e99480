"""The gate: the written conditions under which a challenger becomes champion.

Both models answer the same frozen rows, and every difference between them is paired: it is
taken row by row, before anything is averaged. What counts is the interval of a difference, not
the difference, since on a few hundred rows a better number is often no better model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic

from features.fingerprint import Spec
from training.bootstrap import bootstrap_interval, paired_bootstrap

Share = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


class PromotionSpec(Spec):
    """When a challenger takes the champion's place: the `promotion` of the YAML."""

    metric: Literal["accuracy"] = "accuracy"
    """What is compared: the share of test rows whose predicted class is the true one."""
    min_gain: Annotated[float, pydantic.Field(ge=-1, lt=1, allow_inf_nan=False)] = 0.0
    """The lower end of the interval of (challenger − champion) must lie above this.

    A challenger that is no better than `min_gain` passes with a probability of about
    (1 − confidence) / 2. A negative value lets a challenger in that is no worse than that."""
    confidence: Annotated[float, pydantic.Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    """Confidence of every interval."""
    floor: Share | None = None
    """Least accuracy on the test rows, for the first champion too."""
    max_slice_drop: Share | None = None
    """Largest drop in accuracy on a slice, or on the rows that lack a modality.

    A slice fails if its whole interval of (challenger − champion) lies below −max_slice_drop:
    if it is sure, at this confidence, that the slice lost more. Not given: slices are shown
    and decide nothing."""
    min_slice_rows: Annotated[int, pydantic.Field(ge=2)] = 20
    """A slice of fewer rows is shown and decides nothing: its interval means little."""


@dataclass(frozen=True, kw_only=True)
class FrozenRows:
    """The rows on which challenger and champion are compared: the labelled test rows."""

    rows: np.ndarray
    """Row numbers in the snapshot, int64 `[N]`, ascending."""
    targets: np.ndarray
    """True classes as they stand in the table, `[N]`."""
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per slice column, each row's value, text `[N]`."""
    missing: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per modality, whether a row lacks it (no payload, or a bad one), bool `[N]`."""

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every slice and every missing modality that occurs: its name, its rows as bool `[N]`."""
        for column, values in self.slices.items():
            texts = np.array(["(none)" if value is None else str(value) for value in values])
            for value in np.unique(texts):
                yield f"{column}: {value}", texts == value
        for modality, lacking in self.missing.items():
            if lacking.any():
                yield f"{modality} missing", np.asarray(lacking, dtype=bool)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model's answers to the frozen rows."""

    rows: np.ndarray
    """Row numbers in the snapshot, int64 `[N]`, ascending."""
    labels: np.ndarray
    """Predicted classes as they stand in the table, `[N]`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Challenger and champion on some of the frozen rows; the champion may be none."""

    name: str
    rows: int
    challenger: float
    champion: float | None = None
    difference: float | None = None
    """challenger − champion, the mean over rows of the paired difference."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Condition(Comparison):
    """A comparison that decides: its threshold, whether it holds, and by how much."""

    threshold: float | None
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate decided, and on what grounds."""

    passed: bool
    confidence: float
    rows: int
    accuracy: float
    """The challenger's accuracy on the frozen rows, with its interval below."""
    accuracy_low: float
    accuracy_high: float
    conditions: tuple[Condition, ...]
    """The conditions of the gate; it passes if all of them do."""
    breakdown: tuple[Comparison, ...]
    """Every slice and every missing modality, whether they decide or not."""

    @property
    def sentence(self) -> str:
        """The verdict in one sentence: the first condition that failed, or why it passed."""
        failed = [condition for condition in self.conditions if not condition.passed]
        if not failed:
            return f"passed: {self.conditions[0].detail}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"refused: {failed[0].name}: {failed[0].detail}{more}"

    def to_json(self) -> str:
        """The verdict as JSON."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The verdict that `to_json` wrote."""
        value: dict[str, Any] = json.loads(text)
        conditions = tuple(Condition(**item) for item in value.pop("conditions"))
        breakdown = tuple(Comparison(**item) for item in value.pop("breakdown"))
        return cls(conditions=conditions, breakdown=breakdown, **value)

    def table(self) -> list[dict[str, str]]:
        """Conditions, then slices that decide nothing, as rows of text for a terminal or a page."""
        rows = [
            {**_texts(item), "verdict": "pass" if item.passed else "FAIL", "detail": item.detail}
            for item in self.conditions
        ]
        judged = {item.name for item in self.conditions}
        rows += [
            {**_texts(item), "verdict": "", "detail": ""}
            for item in self.breakdown
            if item.name not in judged
        ]
        return rows


def judge(
    *,
    frozen: FrozenRows,
    challenger: Predictions,
    champion: Predictions | None,
    spec: PromotionSpec,
) -> Verdict:
    """Compare challenger and champion on the frozen rows, condition by condition.

    Raises ValueError if there are no rows, or if a model did not answer exactly these rows.
    The first champion (`champion=None`) has only the floor to pass.
    """
    if len(frozen.rows) == 0:
        raise ValueError("there is no labelled test row, so nothing can be compared or promoted")
    mine = _right(frozen, challenger, who="challenger")
    theirs = None if champion is None else _right(frozen, champion, who="champion")

    everything = np.ones(len(mine), dtype=bool)
    overall = _compare("accuracy", everything, mine=mine, theirs=theirs, spec=spec)
    breakdown = tuple(
        _compare(name, chosen, mine=mine, theirs=theirs, spec=spec)
        for name, chosen in frozen.groups()
    )
    conditions = [_gain(overall, spec=spec)]
    if spec.floor is not None:
        conditions.append(_floor(overall, floor=spec.floor))
    if spec.max_slice_drop is not None and theirs is not None:
        conditions += [_drop(item, spec=spec) for item in breakdown]
    own = bootstrap_interval(mine, confidence=spec.confidence)
    return Verdict(
        passed=all(condition.passed for condition in conditions),
        confidence=spec.confidence,
        rows=len(mine),
        accuracy=overall.challenger,
        accuracy_low=own.low,
        accuracy_high=own.high,
        conditions=tuple(conditions),
        breakdown=breakdown,
    )


def _right(frozen: FrozenRows, predictions: Predictions, *, who: str) -> np.ndarray:
    """Whether each frozen row was answered rightly, float64 `[N]` of 0 and 1."""
    if not np.array_equal(frozen.rows, predictions.rows):
        asked, given = set(frozen.rows.tolist()), set(predictions.rows.tolist())
        raise ValueError(
            f"the {who} must answer the {len(frozen.rows)} frozen test rows, each once and in "
            f"order; it answered {len(predictions.rows)} rows ({len(asked - given)} are missing, "
            f"{len(given - asked)} are others)"
        )
    pairs = zip(frozen.targets.tolist(), predictions.labels.tolist(), strict=True)
    return np.array([target == label for target, label in pairs], dtype=np.float64)


def _compare(
    name: str,
    chosen: np.ndarray,
    *,
    mine: np.ndarray,
    theirs: np.ndarray | None,
    spec: PromotionSpec,
) -> Comparison:
    count, accuracy = int(chosen.sum()), float(mine[chosen].mean())
    if theirs is None:
        return Comparison(name=name, rows=count, challenger=accuracy)
    interval = paired_bootstrap(mine[chosen], theirs[chosen], confidence=spec.confidence)
    return Comparison(
        name=name,
        rows=count,
        challenger=accuracy,
        champion=float(theirs[chosen].mean()),
        difference=float(np.mean(mine[chosen] - theirs[chosen])),
        low=float(interval.low),
        high=float(interval.high),
    )


def _gain(overall: Comparison, *, spec: PromotionSpec) -> Condition:
    if overall.low is None:
        return _decided(overall, None, True, "there was no champion before")
    passed = overall.low > spec.min_gain
    what = f"{_interval(overall)} against the champion: the lower end "
    amount = abs(overall.low - spec.min_gain)
    if passed:
        detail = f"{what}is above {spec.min_gain:+.3f} by {amount:.3f}"
    else:
        detail = f"{what}must be above {spec.min_gain:+.3f} and falls short by {amount:.3f}"
    return _decided(overall, spec.min_gain, passed, detail)


def _floor(overall: Comparison, *, floor: float) -> Condition:
    passed = overall.challenger >= floor
    amount = abs(overall.challenger - floor)
    detail = (
        f"{overall.challenger:.3f} is {amount:.3f} {'above' if passed else 'below'} {floor:.3f}"
    )
    return _decided(overall, floor, passed, detail, name="floor")


def _drop(item: Comparison, *, spec: PromotionSpec) -> Condition:
    limit = -(spec.max_slice_drop or 0.0)
    if item.rows < spec.min_slice_rows or item.high is None:
        detail = f"not judged: {item.rows} rows, fewer than {spec.min_slice_rows}"
        return _decided(item, limit, True, detail)
    passed = item.high >= limit
    if passed:
        detail = f"{_interval(item)}: not surely below {limit:+.3f}"
    else:
        detail = f"{_interval(item)} lies below {limit:+.3f} by {limit - item.high:.3f}"
    return _decided(item, limit, passed, detail)


def _decided(
    item: Comparison, threshold: float | None, passed: bool, detail: str, *, name: str | None = None
) -> Condition:
    return Condition(
        **{**asdict(item), "name": name or item.name},
        threshold=threshold,
        passed=passed,
        detail=detail,
    )


def _texts(item: Comparison) -> dict[str, str]:
    return {
        "name": item.name,
        "rows": str(item.rows),
        "challenger": f"{item.challenger:.3f}",
        "champion": "–" if item.champion is None else f"{item.champion:.3f}",
        "difference": _interval(item),
    }


def _interval(item: Comparison) -> str:
    if item.difference is None:
        return "–"
    return f"{item.difference:+.3f} [{item.low:+.3f}, {item.high:+.3f}]"
