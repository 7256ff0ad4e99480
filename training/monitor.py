"""What a validation finds, and when a fit has not become better for too long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from training.spec import Objective
from training.targets import Untrainable
from training.tasks import Task
from training.training_spec import TrainingSpec


def validation_metrics(task: Task, outputs_RO: Tensor, *, targets_R: Tensor) -> dict[str, float]:
    """What a task measures of the outputs for all validation rows, `loss` among it."""
    found = task.validation(outputs_RO.float(), targets_R)
    return {name: total / weight if weight else 0.0 for name, (total, weight) in found.items()}


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

        Untrainable if there is no such metric.
        """
        name, lower = self.training.monitor, self.training.lower_is_better
        if name not in metrics and objective == "own":
            name, lower = "loss", True
        if name not in metrics:
            raise Untrainable(
                f"training.monitor: there is no metric {name!r}; it is one of {', '.join(metrics)}"
            )
        value = metrics[name]
        better = not math.isnan(value) and (
            self.best is None or (value < self.best if lower else value > self.best)
        )
        if better:
            self.best_epoch, self.best, self.waited = epoch, value, 0
        else:
            self.waited += 1
        return better
