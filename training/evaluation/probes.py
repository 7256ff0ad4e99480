"""Linear probes on frozen vectors: what a space knows of a task, as far as a line can tell it.

As CLIP's linear probe (Radford et al. 2021, appendix A.3): logistic regression of classes or of
labels, ridge regression of numbers, of the strength that is best on the validation rows. A row
counts what it does in the task's loss.

Suffixes of arrays: N rows, S width of the space, O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from training.losses.task import cross_entropy_sum
from training.tasks import Classification, Multilabel, Task

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Inverse regularisation; of equal ones the strongest regularisation is taken."""
NEVER = -50.0
"""Logit of a class that no training row has: it is never answered."""

Rows = tuple[np.ndarray, np.ndarray]
"""Vectors float64 `[N, S]`, and targets as the task's loss takes them."""
Linear = tuple[np.ndarray, np.ndarray]
"""Weights `[O, S]` and biases `[O]`."""


def prior_of(task: Task, targets: torch.Tensor) -> torch.Tensor:
    """The outputs `[O]` that say what labelled training rows say on the whole: log shares of
    classes, log odds of labels (with one row added to each), the mean of numbers.
    """
    if isinstance(task, Classification):
        counts = torch.bincount(targets, minlength=task.outputs) + 1
        return (counts / counts.sum()).log()
    if isinstance(task, Multilabel):
        with_it = targets.sum(dim=0) + 1
        return with_it.log() - (len(targets) + 2 - with_it).log()
    return targets.mean(dim=0)


def best_probe(task: Task, *, train: Rows, validation: Rows) -> Linear:
    """The probe with the lowest validation loss; the least free where there is none to compare."""
    fits = [_fit(task, train=train, strength=strength) for strength in STRENGTHS]
    losses = [_loss(task, fit, rows=validation) for fit in fits]
    return fits[int(np.argmin(losses))]


def _fit(task: Task, *, train: Rows, strength: float) -> Linear:
    if isinstance(task, Classification):
        counted = None if task.weights is None else task.weights.numpy()[train[1]]
        return _of_classes(train, strength=strength, classes=task.outputs, counted=counted)
    if isinstance(task, Multilabel):
        positive = np.ones(task.outputs) if task.weights is None else task.weights.numpy()
        found = [
            _of_label(train[0], column, strength=strength, positive=float(weight))
            for column, weight in zip(train[1].T, positive, strict=True)
        ]
        return np.stack([w for w, _ in found]), np.array([b for _, b in found])
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha=1 / strength).fit(*train)
    return fitted.coef_.reshape(task.outputs, -1), np.asarray(fitted.intercept_).reshape(-1)


def _of_classes(
    train: Rows, *, strength: float, classes: int, counted: np.ndarray | None
) -> Linear:
    """Softmax weights for all classes, of a fit that has met some; of two classes it keeps one.

    `counted` `[N]` is what each row counts.
    """
    from sklearn.linear_model import LogisticRegression

    fitted: Any = LogisticRegression(C=strength, max_iter=2000).fit(*train, counted)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight, bias = np.zeros((classes, coefficients.shape[1])), np.full(classes, NEVER)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return weight, bias


def _of_label(vectors: np.ndarray, has: np.ndarray, *, strength: float, positive: float) -> Linear:
    """Weights `[S]` and bias of one label; of one that all rows have, or none, its log odds.

    A row that has it counts as `positive` without it.
    """
    from sklearn.linear_model import LogisticRegression

    with_it = int(has.sum())
    if with_it in (0, len(has)):
        return np.zeros(vectors.shape[1]), np.log((with_it + 1) / (len(has) - with_it + 1))
    counted = np.where(has, positive, 1.0)
    fitted: Any = LogisticRegression(C=strength, max_iter=2000).fit(vectors, has, counted)
    return fitted.coef_[0], fitted.intercept_[0]


def _loss(task: Task, fit: Linear, *, rows: Rows) -> float:
    """The task's loss; of classes the log loss, which a probe is fitted by whatever the task's,
    over the rows of those that it has met.
    """
    vectors, targets = rows
    if isinstance(task, Classification):
        met = fit[1][targets] > NEVER
        vectors, targets = vectors[met], targets[met]
    if not len(vectors):
        return np.inf
    outputs, truths = torch.from_numpy(vectors @ fit[0].T + fit[1]), torch.from_numpy(targets)
    if isinstance(task, Classification):
        loss = cross_entropy_sum(outputs, targets_B=truths, weights_C=task.weights)
    else:
        loss = task.loss(outputs, truths)
    return float(loss.total / loss.weight)
