"""The gate as it is written: the `promotion` of the YAML, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import pydantic

from features.fingerprint import Execution, Spec, nearest_hint
from training.evaluation.metrics import Metric, metrics_of
from training.task import TaskSpec

Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
NotNegative = Annotated[Finite, pydantic.Field(ge=0)]

COSTS: Mapping[str, str] = {
    "latency_ms": "p95 latency of one row, in milliseconds",
    "model_mb": "size of the registered model's files, in megabytes",
}
"""What a limit may be set to beside the metrics of a task; of each, less is better."""


def _slice(value: object) -> object:
    """`column: value` as a mapping, with every value as text."""
    if isinstance(value, str):
        column, mark, wanted = value.partition(":")
        if not (mark and column.strip() and wanted.strip()):
            raise ValueError(
                f'a slice is written "column: value", as in "language: ja"; not {value!r}'
            )
        return {column.strip(): wanted.strip()}
    if isinstance(value, Mapping):
        for column, wanted in value.items():
            if isinstance(wanted, bool):
                raise ValueError(
                    f"YAML reads the value of {column} as {str(wanted).lower()}; put it in quotes"
                )
        return {str(column): str(wanted) for column, wanted in value.items()}
    return value


class LimitSpec(Spec):
    """A further condition: how good or costly the challenger must be, and on which rows."""

    metric: str | None = None
    """Any metric of the task, `latency_ms` (the 95th percentile of the time that the registered
    model takes for one row, both models asked in turn) or `model_mb` (the registered model's
    files). Not given: the metric that decides."""
    slice: Annotated[
        Mapping[str, str] | None,
        pydantic.BeforeValidator(_slice, json_schema_input_type=str | dict[str, Any] | None),
    ] = None
    """Rows of this slice alone: `"language: ja"`, or a mapping of several columns."""
    missing: tuple[str, ...] = ()
    """Rows alone that lack all of these modalities, as they are in the test set."""
    present: tuple[str, ...] = ()
    """All rows that have any of these modalities, and both models answer them from these alone:
    every other modality is taken away."""
    floor: Finite | None = None
    """What the challenger must at least reach; of a metric of which more is better."""
    ceiling: Finite | None = None
    """What the challenger may reach at most; of a metric of which less is better."""
    max_drop: NotNegative | None = None
    """How much worse than the champion the challenger may be: it fails if it surely is worse by
    more, that is, if the whole interval lies beyond."""
    proven: bool = False
    """Whether `max_drop` asks for proof: it then passes only if it surely is not worse by more
    (non-inferiority), that is, if no part of the interval lies beyond."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.floor is None and self.ceiling is None and self.max_drop is None:
            raise ValueError("a limit needs a `floor`, a `ceiling` or a `max_drop`")
        if self.floor is not None and self.ceiling is not None:
            raise ValueError("a metric has either a `floor` (more is better) or a `ceiling` (less)")
        if self.proven and self.max_drop is None:
            raise ValueError("`proven` is of a `max_drop`, which is not given")
        if self.missing and self.present:
            raise ValueError(
                "give either `missing` (rows that lack modalities) or `present` (rows answered "
                "from some modalities alone)"
            )
        if self.metric in COSTS and (self.slice or self.missing or self.present):
            raise ValueError(f"{self.metric} is of the whole model: no slice, missing or present")
        return self

    @property
    def where(self) -> str:
        """On which rows, in words; empty for all."""
        parts = [f"{column}: {value}" for column, value in (self.slice or {}).items()]
        if self.missing:
            parts.append(f"{' and '.join(self.missing)} missing")
        if self.present:
            parts.append(f"{' and '.join(self.present)} alone")
        return ", ".join(parts)

    def problems(
        self,
        *,
        deciding: Metric,
        task: TaskSpec,
        features: Collection[str],
        slices: Collection[str],
    ) -> Iterator[tuple[str, str]]:
        """The fields that do not fit a pipeline, each with what is allowed."""
        known = {**metrics_of(task), **dict.fromkeys(COSTS)}
        name = self.metric or deciding.name
        if name not in known:
            yield (
                "metric",
                f"there is no metric {name!r} of a {task.type} task; {nearest_hint(name, known)}"
                f"a limit is of one of {', '.join(known)}",
            )
            return
        metric = known[name]
        more = metric is not None and metric.higher_is_better
        if self.floor is not None and not more:
            yield "floor", f"of {name} less is better: give a `ceiling`"
        if self.ceiling is not None and more:
            yield "ceiling", f"of {name} more is better: give a `floor`"
        if metric is not None and metric.share:
            for field in ("floor", "ceiling", "max_drop"):
                value = getattr(self, field)
                if value is not None and not 0 <= value <= 1:
                    yield field, f"{metric.title} is a share: at least 0 and at most 1"
        for column in self.slice or {}:
            if column not in slices:
                there = ", ".join(slices) or "none"
                yield (
                    "slice",
                    f"{column!r} is no slice; {nearest_hint(column, slices)}"
                    f"dataset.slices: {there}",
                )
        for field in ("missing", "present"):
            for modality in getattr(self, field):
                if modality not in features:
                    yield (
                        field,
                        f"there is no modality {modality!r}; {nearest_hint(modality, features)}"
                        f"features: {', '.join(features)}",
                    )
        if self.present and task.type == "retrieval":
            yield "present", "a retrieval is from one modality to another; take this limit out"
        if self.present and set(self.present) >= set(features):
            yield "present", "these are all modalities: nothing is taken away; name fewer"


class PromotionSpec(Spec):
    """When a challenger takes the champion's place: the `promotion` of the YAML.

    Both models answer the labelled test rows of today. Where those are not the rows on which the
    champion was judged, the verdict says how many came, went or have another label; what the
    champion reached then is of no account.
    """

    metric: str | None = None
    """What candidates and champions are compared by; if it is not given, the task's own: accuracy
    (the share of rows whose predicted class is the true one), of a multilabel task the average
    precision, of a regression the mean absolute error."""
    min_gain: Finite = 0.0
    """The lower end of the interval of (challenger − champion) must lie above this; of an error,
    of which less is better, (champion − challenger).

    A challenger that is no better than `min_gain` passes with a probability of about
    (1 − confidence) / 2 at most. A negative value lets a challenger in that is no worse than
    that."""
    confidence: Annotated[float, pydantic.Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    """Confidence of every interval."""
    floor: Finite | None = None
    """What the metric must at least be on the test rows, for the first champion too; of an error,
    what it may be at most."""
    max_slice_drop: NotNegative | None = None
    """How much worse a slice, or the rows that lack a modality, may become.

    A slice fails if its whole interval of (challenger − champion) lies below −max_slice_drop:
    if it is sure, at this confidence, that the slice lost more. Not given: slices are shown
    and decide nothing."""
    min_slice_rows: Annotated[int, pydantic.Field(ge=2)] = 20
    """A slice of fewer rows is shown and decides nothing: its interval means little. A slice that
    `limits` names must have as many, or the limit fails."""
    limits: tuple[LimitSpec, ...] = ()
    """Further conditions, on any metric, slice or set of modalities, and on what a model costs."""
    require: Annotated[Literal["gate", "human"], Execution] = "gate"
    """Who makes a challenger champion: the gate that it passed, or a person, who approves it by
    `sensorium approve`; until then it bears the alias `challenger`."""

    def identity(self) -> dict[str, Any]:
        """As ever while there are no limits."""
        found = super().identity()
        if not self.limits:
            del found["limits"]
        return found

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

    def problems(
        self, *, task: TaskSpec, features: Collection[str], slices: Collection[str]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The fields that do not fit a pipeline, each with its place and what is allowed."""
        try:
            metric = self.metric_of(task)
        except ValueError as error:
            yield ("metric",), str(error)
            return
        problem = self.out_of_range(metric)
        if problem is not None:
            yield (problem[0],), problem[1]
        for i, limit in enumerate(self.limits):
            found = limit.problems(deciding=metric, task=task, features=features, slices=slices)
            for field, text in found:
                yield ("limits", i, field), text
