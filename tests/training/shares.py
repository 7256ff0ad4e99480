"""A worker's share of a task's loss, as a training step computes it."""

from __future__ import annotations

from torch import Tensor

from training.fitting.step import TaskLoss, total_weight


def share_of(task: TaskLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the loss over the rows of all workers; the shares sum to it."""
    return task.loss(outputs, targets).total / total_weight(task.weight(targets))
