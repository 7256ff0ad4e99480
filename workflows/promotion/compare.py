"""Challenger and champion on the frozen rows: what both answer, compared row by row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from training.evaluation.bootstrap import drawn_units, expanded, paired_metric
from training.evaluation.metrics import Metric
from workflows.promotion.costs import Cost
from workflows.promotion.verdict import Comparison, Condition, TestSet


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

    def drawn_of(self, chosen: np.ndarray) -> np.ndarray | None:
        """The groups of some rows, bool `[N]`."""
        return None if self.drawn is None else self.drawn[chosen]

    def values_of(self, column: str) -> np.ndarray:
        """Each row's value of a slice column as text `[N]`."""
        return as_text(self.slices[column])

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every slice and every missing modality that occurs: its name, its rows as bool `[N]`."""
        for column in self.slices:
            texts = self.values_of(column)
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
class Answered:
    """What both models answer to the frozen rows."""

    challenger: Predictions
    champion: Predictions | None


@dataclass(frozen=True, kw_only=True)
class Further:
    """What the limits of a gate are judged by, beside the answers of both models."""

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The metrics of the task by name."""
    alone: Mapping[tuple[str, ...], Answered] = field(default_factory=dict)
    """Answers from some modalities alone, all others taken away, by the limit's `present`."""
    costs: Mapping[str, Cost | None] = field(default_factory=dict)
    """What the models cost, by name; None if it could not be measured."""
    test_set: TestSet | None = None


def as_text(values: Iterable[object]) -> np.ndarray:
    """The values of a slice column as they are named in limits and reports, `[N]`."""
    return np.array(["(none)" if value is None else str(value) for value in values], dtype=np.str_)


def answers_to(frozen: FrozenRows, predictions: Predictions, *, who: str) -> np.ndarray:
    """A model's answers, which must be to the frozen rows; ValueError if they are not."""
    if not np.array_equal(frozen.rows, predictions.rows):
        asked, given = set(frozen.rows.tolist()), set(predictions.rows.tolist())
        raise ValueError(
            f"the {who} must answer the {len(frozen.rows)} frozen test rows, each once and in "
            f"order; it answered {len(predictions.rows)} rows ({len(asked - given)} are missing, "
            f"{len(given - asked)} are others)"
        )
    return predictions.answers


def compared(
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
        metric,
        targets=targets,
        a=mine,
        b=theirs,
        confidence=expanded(confidence, rows=independent(len(targets), groups=groups)),
        groups=groups,
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


def independent(rows: int, *, groups: np.ndarray | None) -> int:
    """How many of some rows are independent of one another: their groups, if there are such."""
    units = drawn_units(groups)
    return rows if units is None else int(units.max()) + 1


def decided(
    item: Comparison,
    threshold: float | None,
    passed: bool,
    detail: str,
    *,
    rule: str,
    name: str | None = None,
    p: float | None = None,
) -> Condition:
    """A comparison that decides."""
    return Condition(
        **{**asdict(item), "name": name or item.name},
        threshold=threshold,
        passed=passed,
        detail=detail,
        rule=rule,
        p=p,
    )
