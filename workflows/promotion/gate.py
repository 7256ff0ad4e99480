"""The gate: the written conditions under which a challenger becomes champion.

Both models answer the same frozen rows, and every difference between them is paired: it is
taken row by row, before anything is averaged. What counts is the interval of a difference, not
the difference, since on a few hundred rows a better number is often no better model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Self

import numpy as np
import pydantic

from features.fingerprint import Spec, nearest_hint
from training.evaluation.bootstrap import metric_interval, paired_metric
from training.evaluation.metrics import Metric, metrics_of
from training.task import TaskSpec

Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]


class PromotionSpec(Spec):
    """When a challenger takes the champion's place: the `promotion` of the YAML."""

    metric: str | None = None
    """What candidates and champions are compared by; if it is not given, the task's own: accuracy
    (the share of rows whose predicted class is the true one), of a multilabel task the average
    precision, of a regression the mean absolute error."""
    min_gain: Finite = 0.0
    """The lower end of the interval of (challenger − champion) must lie above this; of an error,
    of which less is better, (champion − challenger).

    A challenger that is no better than `min_gain` passes with a probability of about
    (1 − confidence) / 2. A negative value lets a challenger in that is no worse than that."""
    confidence: Annotated[float, pydantic.Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    """Confidence of every interval."""
    floor: Finite | None = None
    """What the metric must at least be on the test rows, for the first champion too; of an error,
    what it may be at most."""
    max_slice_drop: Annotated[Finite, pydantic.Field(ge=0)] | None = None
    """How much worse a slice, or the rows that lack a modality, may become.

    A slice fails if its whole interval of (challenger − champion) lies below −max_slice_drop:
    if it is sure, at this confidence, that the slice lost more. Not given: slices are shown
    and decide nothing."""
    min_slice_rows: Annotated[int, pydantic.Field(ge=2)] = 20
    """A slice of fewer rows is shown and decides nothing: its interval means little."""

    def metric_of(self, task: TaskSpec) -> Metric:
        """The metric that decides for a task; ValueError if it has none by that name."""
        known = metrics_of(task)
        name = self.metric or next(iter(known))
        if name not in known:
            raise ValueError(
                f"there is no metric {name!r} of a {task.type} task; {nearest_hint(name, known)}"
                f"its metrics: {', '.join(known)}"
            )
        return known[name]

    def out_of_range(self, metric: Metric) -> tuple[str, str] | None:
        """A field whose value a metric between 0 and 1 cannot have, and what is allowed."""
        if not metric.share:
            return None
        if not -1 <= self.min_gain < 1:
            return "min_gain", f"{metric.title} is a share: at least -1 and less than 1"
        for name in ("floor", "max_slice_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                return name, f"{metric.title} is a share: at least 0 and at most 1"
        return None


@dataclass(frozen=True, kw_only=True)
class FrozenRows:
    """The rows on which challenger and champion are compared: the labelled test rows."""

    rows: np.ndarray
    """Row numbers in the snapshot, int64 `[N]`, ascending."""
    targets: np.ndarray
    """The true labels as `training.evaluation.metrics` takes them: class indices `[N]`, labels bool
    `[N, K]`, or numbers `[N, K]`."""
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per slice column, each row's value, text `[N]`."""
    missing: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Per modality, whether a row lacks it (no payload, or a bad one), bool `[N]`."""
    drawn: np.ndarray | None = None
    """The group of the split that a row is of, int64 `[N]`, if there are such: they are resampled
    as a whole."""

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
    answers: np.ndarray
    """Probabilities `[N, C]`, in the order of the classes of the true labels, or numbers
    `[N, K]`."""

    def as_wide_as(self, other: Predictions) -> Predictions:
        """The same with a class more that is never answered, if the other has one."""
        if self.answers.shape[1] >= other.answers.shape[1]:
            return self
        return replace(self, answers=np.pad(self.answers, [(0, 0), (0, 1)]))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Challenger and champion on some of the frozen rows; the champion may be none."""

    name: str
    rows: int
    challenger: float
    champion: float | None = None
    difference: float | None = None
    """By how much the challenger is better: challenger − champion, or, of an error, the other way
    round; paired by row."""
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
    score: float
    """The challenger's metric on the frozen rows, with its interval below."""
    low: float
    high: float
    conditions: tuple[Condition, ...]
    """The conditions of the gate; it passes if all of them do."""
    breakdown: tuple[Comparison, ...]
    """Every slice and every missing modality, whether they decide or not; one whose rows do not
    define the metric (of one class alone, say) is left out."""
    metric: str = "accuracy"
    """What the numbers are."""

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
        for name, before in (
            ("score", "accuracy"),
            ("low", "accuracy_low"),
            ("high", "accuracy_high"),
        ):
            if before in value:  # as it was written while accuracy was the only metric
                value[name] = value.pop(before)
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
    metric: Metric,
) -> Verdict:
    """Compare challenger and champion on the frozen rows by a metric, condition by condition.

    Raises ValueError if there are no rows, or if a model did not answer exactly these rows.
    The first champion (`champion=None`) has only the floor to pass.
    """
    if len(frozen.rows) == 0:
        raise ValueError("there is no labelled test row, so nothing can be compared or promoted")
    mine = _answers(frozen, challenger, who="challenger")
    theirs = None if champion is None else _answers(frozen, champion, who="champion")

    def compare(name: str, chosen: np.ndarray) -> Comparison | None:
        return _compare(
            name,
            targets=frozen.targets[chosen],
            mine=mine[chosen],
            theirs=None if theirs is None else theirs[chosen],
            metric=metric,
            confidence=spec.confidence,
            groups=None if frozen.drawn is None else frozen.drawn[chosen],
        )

    overall = compare(metric.name, np.ones(len(mine), dtype=bool))
    if overall is None:
        raise ValueError(
            f"the {len(mine)} labelled test rows do not define {metric.title}: it asks for rows "
            "that differ in what is to be predicted"
        )
    found = (compare(name, chosen) for name, chosen in frozen.groups())
    breakdown = tuple(item for item in found if item is not None)
    conditions = [_gain(overall, spec=spec)]
    if spec.floor is not None:
        conditions.append(_floor(overall, floor=spec.floor, metric=metric))
    if spec.max_slice_drop is not None and theirs is not None:
        conditions += [_drop(item, spec=spec) for item in breakdown]
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
        score=overall.challenger,
        low=own.low,
        high=own.high,
        conditions=tuple(conditions),
        breakdown=breakdown,
        metric=metric.name,
    )


def _answers(frozen: FrozenRows, predictions: Predictions, *, who: str) -> np.ndarray:
    """A model's answers, which must be to the frozen rows."""
    if not np.array_equal(frozen.rows, predictions.rows):
        asked, given = set(frozen.rows.tolist()), set(predictions.rows.tolist())
        raise ValueError(
            f"the {who} must answer the {len(frozen.rows)} frozen test rows, each once and in "
            f"order; it answered {len(predictions.rows)} rows ({len(asked - given)} are missing, "
            f"{len(given - asked)} are others)"
        )
    return predictions.answers


def _compare(
    name: str,
    *,
    targets: np.ndarray,
    mine: np.ndarray,
    theirs: np.ndarray | None,
    metric: Metric,
    confidence: float,
    groups: np.ndarray | None,
) -> Comparison | None:
    """Both models on some rows; None if these do not define the metric or its interval."""
    reached = metric.value(targets, mine)
    if theirs is None:
        found = Comparison(name=name, rows=len(targets), challenger=reached)
        return found if math.isfinite(reached) else None
    gain = paired_metric(
        metric, targets=targets, a=mine, b=theirs, confidence=confidence, groups=groups
    )
    if not (math.isfinite(gain.mean) and math.isfinite(gain.low)):
        return None
    return Comparison(
        name=name,
        rows=len(targets),
        challenger=reached,
        champion=metric.value(targets, theirs),
        difference=gain.mean,
        low=gain.low,
        high=gain.high,
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


def _floor(overall: Comparison, *, floor: float, metric: Metric) -> Condition:
    passed = metric.gain(overall.challenger, floor) >= 0
    amount = abs(overall.challenger - floor)
    side = "above" if overall.challenger >= floor else "below"
    detail = f"{overall.challenger:.3f} is {amount:.3f} {side} {floor:.3f}"
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
