"""What a validation finds, and when a fit has not become better for too long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from training.data.targets import Untrainable
from training.evaluation.metrics import metrics_of
from training.spec import Objective
from training.tasks import Task
from training.training_spec import TrainingSpec


def validation_metrics(
    task: Task, outputs_RO: Tensor, *, targets_R: Tensor, monitor: str = "loss"
) -> dict[str, float]:
    """What a task measures of the outputs for all validation rows: `loss`, and `monitor` too.

    `monitor` is left out if it is these outputs that do not define it, as a correlation of answers
    that are all alike. Untrainable if there is no such metric, or no outputs could define it.
    """
    sums = task.validation(outputs_RO.float(), targets_R)
    found = {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()}
    if monitor in found:
        return found
    known = {n: m for n, m in metrics_of(task.spec).items() if m.applies(task.outputs)}
    if monitor not in known:
        raise Untrainable(
            f"training.monitor: there is no metric {monitor!r}; it is one of "
            f"{', '.join(dict.fromkeys([*found, *known]))}"
        )
    answers = task.answers(outputs_RO).cpu().numpy()
    truths = task.truths(targets_R).cpu().numpy()
    metric = known[monitor]
    value = metric.value(truths, answers) if np.isfinite(answers).all() else math.nan
    if math.isfinite(value):
        found[monitor] = value
    elif not math.isfinite(metric.value(truths, _perfect(truths, outputs=task.outputs))):
        raise Untrainable(
            f"training.monitor: the validation rows do not define {monitor!r}: they are all of "
            "one class, or of one value"
        )
    return found


def _perfect(truths: np.ndarray, *, outputs: int) -> np.ndarray:
    """The answers to rows `[R, O]` that are right."""
    if truths.ndim == 1:
        return np.eye(outputs, dtype=np.float32)[truths]
    return truths.astype(np.float64)


@dataclass(kw_only=True)
class Monitor:
    """The best epoch so far, by the metric that `training.monitor` names, and the wait since."""

    training: TrainingSpec
    best_epoch: int | None = None
    best: float | None = None
    waited: int = 0
    """Epochs since the best one."""

    @property
    def out_of_patience(self) -> bool:
        return self.waited >= self.training.patience

    def is_best(self, metrics: Mapping[str, float], *, epoch: int, objective: Objective) -> bool:
        """Take account of an epoch; whether it is better than all before.

        One whose answers do not define the metric is not.
        """
        name, lower = self.training.monitored(objective)
        value = metrics.get(name, math.nan)
        better = not math.isnan(value) and (
            self.best is None or (value < self.best if lower else value > self.best)
        )
        if better:
            self.best_epoch, self.best, self.waited = epoch, value, 0
        else:
            self.waited += 1
        return better
