"""What is predicted: the task of a pipeline, as the YAML gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from features.by_name import spec_class
from features.fingerprint import Spec
from features.sample_rows import TargetKind
from training.spec import NotNegative, Positive, Share

Columns = str | tuple[str, ...]
Weights = Literal["none", "balanced"] | dict[str, Positive]


class TaskSpec(Spec):
    """Base of all tasks: which columns hold what is to be predicted, and by what loss."""

    target_kind: ClassVar[TargetKind] = "class"
    """What a cell of the target may hold; see `features.sample_rows`."""
    answer_column: ClassVar[str] = "probabilities"
    """What answers are called in tables of predictions."""

    type: str
    target: Columns | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns of targets; none if the task can do without."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else self.target

    @pydantic.model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if isinstance(self.target, tuple):
            if not self.target:
                raise ValueError("`target` names no column")
            if len(set(self.target)) < len(self.target):
                raise ValueError("`target` names a column twice")
        return self


class ClassificationSpec(TaskSpec):
    """One class out of those that the labels name."""

    type: Literal["classification"] = "classification"
    target: str
    """Column of labels (text, integers or booleans); a sample with null is unlabelled."""
    class_weights: Weights = "none"
    """What a row of each class counts in the loss: `balanced`, for a weight that is inverse to
    the class's share of the training rows and 1 in the mean over them, or a mapping from label
    (as text) to weight; a class that it does not name has 1."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """`focal` makes little of rows that are answered rightly already."""
    gamma: NotNegative | None = None
    """Exponent of the focal loss, 2 if it is not given; with 0 it is the cross entropy."""
    label_smoothing: Share = 0.0
    """Share of a row's target that is spread evenly over all classes."""

    @pydantic.model_validator(mode="after")
    def _options_of_the_loss(self) -> Self:
        if self.loss != "focal" and self.gamma is not None:
            raise ValueError("`gamma` belongs to `loss: focal`")
        if self.loss == "focal" and self.label_smoothing:
            raise ValueError("`label_smoothing` belongs to `loss: cross_entropy`")
        return self


class MultilabelSpec(TaskSpec):
    """Any number of labels a sample, each of which holds or does not."""

    target_kind: ClassVar[TargetKind] = "labels"

    type: Literal["multilabel"] = "multilabel"
    target: Columns
    """A column of lists of labels, or several boolean columns, one a label. A sample with null is
    unlabelled; an empty list says that no label holds."""
    positive_weights: Weights = "none"
    """What a row with a label counts in that label's loss, against one without it: `balanced`, for
    the training rows' ratio of those without to those with it, or a mapping from label to weight;
    a label that it does not name has 1."""
    threshold: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    """A label is answered where its probability is at least this."""


class RegressionSpec(TaskSpec):
    """One number or several. They are standardised by the training rows; answers are in the
    original unit.
    """

    target_kind: ClassVar[TargetKind] = "number"
    answer_column: ClassVar[str] = "values"

    type: Literal["regression"] = "regression"
    target: Columns
    """Column of numbers, or several; a sample with null or NaN in one of them is unlabelled."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    delta: Positive | None = None
    """Where `huber` goes over from a square to a line, in standard deviations of the target; 1 if
    it is not given."""

    @pydantic.model_validator(mode="after")
    def _options_of_the_loss(self) -> Self:
        if self.loss != "huber" and self.delta is not None:
            raise ValueError("`delta` belongs to `loss: huber`")
        return self


class RetrievalSpec(TaskSpec):
    """To find a sample's embedding in one modality by that in another; no label is needed.

    Candidates are alignments, judged by recall.
    """

    answer_column: ClassVar[str] = "ranks"

    type: Literal["retrieval"] = "retrieval"
    target: str | None = None
    """Column of classes, if there is one: it is told how often an answer is of the same class."""


TASKS: Mapping[str, type[TaskSpec]] = {
    spec.model_fields["type"].default: spec
    for spec in (ClassificationSpec, MultilabelSpec, RegressionSpec, RetrievalSpec)
}


def parse_task(value: object) -> TaskSpec:
    """The spec that a mapping describes, a classification if it names no `type`.

    ValueError if there is no such task.
    """
    if isinstance(value, TaskSpec):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type", ""), str):
        raise ValueError(f"a task is a mapping with `type`: one of {', '.join(TASKS)}")
    name: Any = value.get("type", "classification")
    if name not in TASKS and "." in name:
        raise ValueError(f"unknown task {name!r}; one of {', '.join(TASKS)}")
    return spec_class(name, what="task", base=TaskSpec, built_in=TASKS).model_validate(value)


TaskField = Annotated[
    pydantic.SerializeAsAny[TaskSpec],
    pydantic.BeforeValidator(parse_task),
    pydantic.WithJsonSchema(
        {
            "oneOf": [
                schema
                # What names no type is a classification, and nothing else.
                if name == "classification"
                else {**schema, "required": sorted({"type", *schema.get("required", ())})}
                for name, schema in ((n, spec.model_json_schema()) for n, spec in TASKS.items())
            ]
        }
    ),
]
"""A field of a spec that holds any task."""
