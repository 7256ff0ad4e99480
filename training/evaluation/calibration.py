"""Probabilities that say how often they are right: the temperature of a fitted model.

Suffixes of tensors: R rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from training.batch import Batch
from training.data.table import EmbeddingTable
from training.evaluation.answers import map_rows
from training.tasks import Classification, Multilabel, Task
from training.training_spec import TrainingSpec

LOWEST, HIGHEST = 0.05, 20.0
"""Between which temperatures one is looked for."""
MOST_STEPS = 100
EXACT = 1e-9
"""Relative change of the temperature at which it is found."""
BLOCK = 2**22
"""Numbers that are held in float64 at once."""


def calibrated(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    training: TrainingSpec,
    device: torch.device | str = "cpu",
) -> EmbeddingTable:
    """The table, its task with the temperature that suits a fitted model; all workers take part.

    As it is, if `training` wants none or the task has no probabilities.
    """
    task = table.task
    if training.calibration == "none" or not isinstance(task, Classification | Multilabel):
        return table
    rows = table.labelled("validation")

    def outputs(batch: Batch) -> Tensor:
        found: Tensor = model(*batch.inputs)
        return found

    outputs_RO = map_rows(
        outputs, model=model, table=table, rows=rows, modalities=modalities, device=device
    )
    return table.with_temperature(best_temperature(task, outputs_RO, targets_R=table.targets[rows]))


def best_temperature(task: Task, outputs_RO: Tensor, *, targets_R: Tensor) -> float:
    """The temperature with the least log loss over some rows: Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, section 4.2; of labels, one for all of them.

    Where every row (every label of every row) is answered rightly, the loss has no least value,
    since the surest probabilities would be the best: 1 then, and where there are no rows or an
    output is not finite.
    """
    outputs_RO, targets_R = outputs_RO.cpu(), targets_R.cpu()
    if not len(outputs_RO) or not bool(outputs_RO.isfinite().all()):
        return 1.0
    if _all_right(task, outputs_RO, targets_R):
        return 1.0
    # The loss is convex in 1 / temperature: Newton's steps, kept within a bracket.
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slope(task, outputs_RO, targets_R, at=low)[0] >= 0:
        return HIGHEST
    if _slope(task, outputs_RO, targets_R, at=high)[0] <= 0:
        return LOWEST
    at = 1.0
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(task, outputs_RO, targets_R, at=at)
        low, high = (at, high) if slope < 0 else (low, at)
        further = at - slope / curvature if curvature > 0 else 0.0
        if not low < further < high:
            further = (low + high) / 2
        done = abs(further - at) <= EXACT * at
        at = further
        if done:
            break
    return 1 / at


def _all_right(task: Task, outputs_RO: Tensor, targets_R: Tensor) -> bool:
    if isinstance(task, Multilabel):
        return bool(((outputs_RO > 0) == (targets_R > 0.5)).all())
    return bool((outputs_RO.argmax(dim=1) == targets_R).all())


def _slope(task: Task, outputs_RO: Tensor, targets_R: Tensor, *, at: float) -> tuple[float, float]:
    """First and second derivative of the summed log loss with respect to 1 / temperature."""
    slope = curvature = 0.0
    for z, y in _blocks(outputs_RO, targets_R):
        if isinstance(task, Multilabel):
            p = (z * at).sigmoid()
            slope += float(((p - y) * z).sum())
            curvature += float((p * (1 - p) * z.square()).sum())
        else:
            p = (z * at).softmax(dim=1)
            mean = (p * z).sum(dim=1)
            slope += float((mean - z.gather(1, y.long()[:, None])[:, 0]).sum())
            curvature += float(((p * z.square()).sum(dim=1) - mean.square()).sum())
    return slope, curvature


def _blocks(outputs_RO: Tensor, targets_R: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, BLOCK // outputs_RO.shape[1])
    for outputs, targets in zip(outputs_RO.split(rows), targets_R.split(rows), strict=True):
        yield outputs.double(), targets.double()
