"""A task at work: how its labels are read, its loss, and what a model's outputs answer.

Whoever fits or asks a model knows its task through `Task` alone. Suffixes of tensors: B this
worker's rows, N all rows, O outputs of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.batch import ABSENT
from training.data.targets import (
    Column,
    Untrainable,
    class_indices,
    classes_of,
    is_labelled,
    label_matrix,
    label_names,
    number_matrix,
)
from training.losses.task import (
    LossSum,
    absolute_error_sum,
    binary_cross_entropy_sum,
    cross_entropy_sum,
    focal_sum,
    huber_sum,
    squared_error_sum,
)
from training.task import (
    ClassificationSpec,
    MultilabelSpec,
    RegressionSpec,
    RetrievalSpec,
    TaskSpec,
)

FOCAL_GAMMA = 2.0
"""As in the paper's table 1b, where it is best."""
HUBER_DELTA = 1.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is predicted, by what loss, and what the outputs `[B, O]` mean."""

    spec: TaskSpec
    names: tuple[Any, ...]
    """What the outputs stand for, one each: the classes or labels as they stand in the table, or
    the columns of numbers."""
    temperature: float = 1.0
    """What outputs are divided by before they are probabilities; of a model that is calibrated,
    see `training.evaluation.calibration`. Without influence on a loss."""

    @property
    def outputs(self) -> int:
        return len(self.names)

    @property
    def scale(self) -> dict[str, list[float]] | None:
        """What targets were standardised by, per output: `mean` and `std`; or None."""
        return None

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        """The loss over labelled rows, as a sum and the weight that it is to be divided by."""
        raise NotImplementedError(f"a {self.spec.type} task has no loss of its own")

    def weight(self, targets_B: Tensor) -> Tensor:
        """The weight that `loss` gives, which depends on the targets of labelled rows alone."""
        return torch.tensor(float(len(targets_B))).to(targets_B.device)

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """What `validation` measures."""
        return ("loss",)

    def validation(self, outputs_BO: Tensor, targets_B: Tensor) -> dict[str, tuple[float, float]]:
        """Per metric a sum over these rows and what it is to be divided by."""
        loss = self.loss(outputs_BO, targets_B)
        return {"loss": (float(loss.total), float(loss.weight))}

    def answers(self, outputs_BO: Tensor) -> Tensor:
        """What the outputs say `[B, O]`: probabilities (float32), or numbers in their unit
        (float64).
        """
        raise NotImplementedError(f"a {self.spec.type} task has no answers")

    def class_indices(self, targets: Tensor) -> Tensor:
        """The class of each row, int64 `[N]`; -1 where there is none, as of a task without."""
        return targets.new_full((len(targets),), ABSENT, dtype=torch.int64)

    def truths(self, targets: Tensor) -> Tensor:
        """Targets of labelled rows as metrics take them: class indices int32 `[B]`, labels bool
        `[B, O]`, or numbers float64 `[B, O]` in their unit.
        """
        raise NotImplementedError(f"a {self.spec.type} task has no answers")


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class a row. Targets are class indices int64 `[B]`."""

    spec: ClassificationSpec
    weights: Tensor | None = field(default=None, compare=False)
    """float32 `[O]`: what a row of each class counts in the loss."""

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        if self.spec.loss == "focal":
            gamma = FOCAL_GAMMA if self.spec.gamma is None else self.spec.gamma
            return focal_sum(outputs_BO, targets_B=targets_B, gamma=gamma, weights_C=self.weights)
        return cross_entropy_sum(
            outputs_BO,
            targets_B=targets_B,
            weights_C=self.weights,
            smoothing=self.spec.label_smoothing,
        )

    def weight(self, targets_B: Tensor) -> Tensor:
        if self.weights is None:
            return super().weight(targets_B)
        return self.weights.to(targets_B.device)[targets_B].sum()

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        return ("loss", "accuracy")

    def validation(self, outputs_BO: Tensor, targets_B: Tensor) -> dict[str, tuple[float, float]]:
        right = (outputs_BO.argmax(dim=1) == targets_B).sum()
        found = super().validation(outputs_BO, targets_B)
        return {**found, "accuracy": (float(right), len(targets_B))}

    def answers(self, outputs_BO: Tensor) -> Tensor:
        return (outputs_BO.float() / self.temperature).softmax(dim=-1)

    def class_indices(self, targets: Tensor) -> Tensor:
        return targets

    def truths(self, targets: Tensor) -> Tensor:
        return targets.int()


@dataclass(frozen=True, kw_only=True)
class Multilabel(Task):
    """Any number of labels a row. Targets are float32 `[B, O]` of 0 and 1."""

    spec: MultilabelSpec
    weights: Tensor | None = field(default=None, compare=False)
    """float32 `[O]`: what a row with the label counts against one without it."""

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        return binary_cross_entropy_sum(outputs_BO, targets_BK=targets_B, positive_K=self.weights)

    def answers(self, outputs_BO: Tensor) -> Tensor:
        return (outputs_BO.float() / self.temperature).sigmoid()

    def truths(self, targets: Tensor) -> Tensor:
        return targets.bool()


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Numbers. Targets are float32 `[B, O]`, standardised by the training rows."""

    spec: RegressionSpec
    mean: Tensor = field(compare=False)
    """float64 `[O]` over the labelled training rows."""
    std: Tensor = field(compare=False)

    @property
    def scale(self) -> dict[str, list[float]] | None:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        if self.spec.loss == "mse":
            return squared_error_sum(outputs_BO, targets_BK=targets_B)
        if self.spec.loss == "mae":
            return absolute_error_sum(outputs_BO, targets_BK=targets_B)
        delta = HUBER_DELTA if self.spec.delta is None else self.spec.delta
        return huber_sum(outputs_BO, targets_BK=targets_B, delta=delta)

    def answers(self, outputs_BO: Tensor) -> Tensor:
        mean, std = self.mean.to(outputs_BO.device), self.std.to(outputs_BO.device)
        return outputs_BO.double() * std + mean

    def truths(self, targets: Tensor) -> Tensor:
        return self.answers(targets)


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """No target but, if there is a column of classes, their indices, to be told of."""

    spec: RetrievalSpec

    def truths(self, targets: Tensor) -> Tensor:
        """Of no account: the right answer to a row is the row itself."""
        return torch.zeros(len(targets), dtype=torch.int32)

    def class_indices(self, targets: Tensor) -> Tensor:
        return targets


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The labels of a table, read for its task."""

    task: Task
    values: Tensor
    """int64 `[N]`, -1 for an unlabelled row, or float32 `[N, O]`, NaN for it."""


def read_targets(
    spec: TaskSpec, labels: Mapping[str, Column], *, split: Mapping[str, Tensor], rows: int
) -> Targets:
    """The task of some columns of labels, and the targets of all rows.

    `split` holds the row numbers of each split. Untrainable if a split has no labelled row (of a
    retrieval, no row) or the labelled training rows leave nothing to learn.
    """
    if isinstance(spec, RetrievalSpec):
        return _retrieval(spec, labels, split=split, rows=rows)
    readers: dict[type[TaskSpec], Callable[..., Targets]] = {
        ClassificationSpec: _classification,
        MultilabelSpec: _multilabel,
        RegressionSpec: _regression,
    }
    return readers[type(spec)](spec, labels, split=split)


def output_count(spec: TaskSpec, labels: Mapping[str, Column]) -> int:
    """How many classes, labels or numbers some columns of labels have; Untrainable as ever."""
    if isinstance(spec, MultilabelSpec):
        return len(label_names(labels))
    if isinstance(spec, ClassificationSpec):
        return len(classes_of(labels[spec.target], target=spec.target))
    return len(labels)


def _classification(
    spec: ClassificationSpec, labels: Mapping[str, Column], *, split: Mapping[str, Tensor]
) -> Targets:
    classes = classes_of(labels[spec.target], target=spec.target)
    values = class_indices(labels[spec.target], classes=classes)
    train = _labelled(values, spec=spec, split=split)
    if len(train.unique()) < 2:
        raise Untrainable(f"all labelled training rows are of one class in column {spec.target!r}")
    counts = train.bincount(minlength=len(classes)).float()
    weights = None
    if spec.class_weights == "balanced":
        met = counts > 0
        weights = torch.where(met, len(train) / (met.sum() * counts.clamp(min=1)), 1.0)
    elif spec.class_weights != "none":
        weights = _named_weights(spec.class_weights, names=classes, field="class_weights")
    return Targets(task=Classification(spec=spec, names=classes, weights=weights), values=values)


def _multilabel(
    spec: MultilabelSpec, labels: Mapping[str, Column], *, split: Mapping[str, Tensor]
) -> Targets:
    names = label_names(labels)
    values = label_matrix(labels, names=names)
    train = _labelled(values, spec=spec, split=split)
    positive = train.sum(dim=0)
    if not ((positive > 0) & (positive < len(train))).any():
        raise Untrainable(
            f"no label of {_shown(spec)} tells the labelled training rows apart: each holds for "
            "all of them or for none"
        )
    weights = None
    if spec.positive_weights == "balanced":
        weights = (len(train) - positive).clamp(min=1) / positive.clamp(min=1)
    elif spec.positive_weights != "none":
        weights = _named_weights(spec.positive_weights, names=names, field="positive_weights")
    return Targets(task=Multilabel(spec=spec, names=names, weights=weights), values=values)


def _regression(
    spec: RegressionSpec, labels: Mapping[str, Column], *, split: Mapping[str, Tensor]
) -> Targets:
    numbers = number_matrix(labels)
    std, mean = torch.std_mean(_labelled(numbers, spec=spec, split=split), dim=0, correction=0)
    for name, deviation, middle in zip(labels, std.tolist(), mean.tolist(), strict=True):
        if not deviation > 0:
            raise Untrainable(
                f"all labelled training rows have the same number, {middle:g}, in column {name!r}"
            )
    task = Regression(spec=spec, names=tuple(labels), mean=mean, std=std)
    return Targets(task=task, values=((numbers - mean) / std).float())


def _retrieval(
    spec: RetrievalSpec,
    labels: Mapping[str, Column],
    *,
    split: Mapping[str, Tensor],
    rows: int,
) -> Targets:
    for name, own in split.items():
        if not len(own):
            raise Untrainable(f"the {name} split has no row; all of {', '.join(split)} need some")
    if spec.target is None:
        return Targets(task=Retrieval(spec=spec, names=()), values=torch.full((rows,), ABSENT))
    classes = classes_of(labels[spec.target], target=spec.target)
    values = class_indices(labels[spec.target], classes=classes)
    return Targets(task=Retrieval(spec=spec, names=classes), values=values)


@dataclass(frozen=True, kw_only=True)
class Known:
    """Labels as metrics take them."""

    known: np.ndarray
    """Whether a row has a label, bool `[N]`."""
    values: np.ndarray
    """Class indices int64 `[N]`, labels bool `[N, O]`, or numbers float64 `[N, O]`; of no meaning
    in the other rows."""


def known_targets(
    spec: TaskSpec, labels: Mapping[str, Column], *, names: tuple[Any, ...], rows: int
) -> Known:
    """Some columns of labels of so many rows, for a model whose outputs are called `names`."""
    if isinstance(spec, RetrievalSpec):
        return Known(known=np.ones(rows, bool), values=np.zeros(rows, np.int64))
    if isinstance(spec, MultilabelSpec):
        values = label_matrix(labels, names=names)
    elif isinstance(spec, RegressionSpec):
        values = number_matrix(labels)
    else:
        values = class_indices(labels[spec.targets[0]], classes=names)
    shown = values == 1 if isinstance(spec, MultilabelSpec) else values
    return Known(known=is_labelled(values).numpy(), values=shown.numpy())


def restored_task(
    spec: TaskSpec,
    *,
    names: tuple[Any, ...],
    scale: Mapping[str, Any] | None,
    temperature: float = 1.0,
) -> Task:
    """The task of a model that is fitted already, as its record describes it; to answer, not to
    learn: it knows no weights of classes.
    """
    if isinstance(spec, ClassificationSpec):
        return Classification(spec=spec, names=names, temperature=temperature)
    if isinstance(spec, MultilabelSpec):
        return Multilabel(spec=spec, names=names, temperature=temperature)
    if isinstance(spec, RegressionSpec):
        assert scale is not None, "a regression's record holds what its targets were scaled by"
        mean, std = (torch.tensor(scale[key], dtype=torch.float64) for key in ("mean", "std"))
        return Regression(spec=spec, names=names, mean=mean, std=std)
    assert isinstance(spec, RetrievalSpec)
    return Retrieval(spec=spec, names=names)


def _labelled(values: Tensor, *, spec: TaskSpec, split: Mapping[str, Tensor]) -> Tensor:
    """The targets of the labelled training rows; Untrainable if a split has no labelled row."""
    for name, rows in split.items():
        if not is_labelled(values[rows]).any():
            raise Untrainable(
                f"the {name} split has no row with a label in {_shown(spec)} "
                f"({len(rows)} rows without); all of {', '.join(split)} need some"
            )
    train = values[split["train"]]
    return train[is_labelled(train)]


def _named_weights(weights: Mapping[str, float], *, names: tuple[Any, ...], field: str) -> Tensor:
    texts = [_text(name) for name in names]
    for name in weights:
        if name not in texts:
            raise Untrainable(
                f"task.{field} names {name!r}, which is none of the labels: {', '.join(texts)}"
            )
    return torch.tensor([float(weights.get(text, 1.0)) for text in texts])


def _text(name: Any) -> str:
    return str(name).lower() if isinstance(name, bool) else str(name)


def _shown(spec: TaskSpec) -> str:
    one, *more = (repr(name) for name in spec.targets)
    return f"columns {', '.join([one, *more])}" if more else f"column {one}"
