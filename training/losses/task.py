"""Losses of tasks, as sums over rows with the weights that they are divided by.

A loss over the rows of all workers is a sum over the rows divided by the sum of their weights:
a step divides by that of all workers (see `training.fitting.step`), which is exact however unevenly
rows and weights are divided. The losses themselves know of no workers, so that they can be mapped
over several models at once.

Suffixes of tensors: B this worker's rows, C classes, K labels or numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossSum:
    """A loss over this worker's rows, not yet divided."""

    total: Tensor
    """Sum of the rows' losses, each times its weight; a scalar with a gradient."""
    weight: Tensor
    """Sum of the rows' weights; a scalar that depends on the targets alone."""


def cross_entropy_sum(
    logits_BC: Tensor,
    *,
    targets_B: Tensor,
    weights_C: Tensor | None = None,
    smoothing: float = 0.0,
) -> LossSum:
    """Cross entropy, in which a row counts as the weight of its class.

    With smoothing ε the target is 1 − ε on the class and ε / C on every class, and each class's
    part counts as its own weight: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7,
    weighted as `torch.nn.CrossEntropyLoss` does it.
    """
    total = F.cross_entropy(
        logits_BC,
        targets_B,
        weight=None if weights_C is None else weights_C.to(logits_BC),
        reduction="sum",
        label_smoothing=smoothing,
    )
    return LossSum(total=total, weight=_weights(logits_BC, targets_B, weights_C).sum())


def focal_sum(
    logits_BC: Tensor, *, targets_B: Tensor, gamma: float, weights_C: Tensor | None = None
) -> LossSum:
    """Focal loss −α (1 − p)^γ log p of the class's probability p.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, equation 5, over a softmax; α is the class's
    weight, and the mean is over the weights, as of the cross entropy that γ = 0 gives.
    """
    log_p_B = logits_BC.log_softmax(dim=1).gather(1, targets_B[:, None]).squeeze(1)
    weights_B = _weights(logits_BC, targets_B, weights_C)
    # 1 − p would lose all digits of a p near 1, and its power's gradient is not finite at 0.
    miss_B = -torch.expm1(log_p_B)
    tiny = torch.finfo(miss_B.dtype).tiny
    losses_B = -(miss_B.clamp(min=tiny) ** gamma) * log_p_B
    return LossSum(total=(weights_B * losses_B).sum(), weight=weights_B.sum())


def _weights(logits_BC: Tensor, targets_B: Tensor, weights_C: Tensor | None) -> Tensor:
    if weights_C is None:
        return torch.ones_like(targets_B, dtype=logits_BC.dtype)
    return weights_C.to(logits_BC)[targets_B]


def binary_cross_entropy_sum(
    logits_BK: Tensor, *, targets_BK: Tensor, positive_K: Tensor | None = None
) -> LossSum:
    """Mean over the labels of each label's binary cross entropy, a row that has it counting as
    `positive_K`. A row weighs 1.
    """
    total = F.binary_cross_entropy_with_logits(
        logits_BK,
        targets_BK.to(logits_BK),
        pos_weight=None if positive_K is None else positive_K.to(logits_BK),
        reduction="sum",
    )
    return LossSum(total=total / logits_BK.shape[1], weight=_rows(logits_BK))


def squared_error_sum(outputs_BK: Tensor, *, targets_BK: Tensor) -> LossSum:
    """Mean over the numbers of the squared error."""
    total = F.mse_loss(outputs_BK, targets_BK.to(outputs_BK), reduction="sum")
    return LossSum(total=total / outputs_BK.shape[1], weight=_rows(outputs_BK))


def absolute_error_sum(outputs_BK: Tensor, *, targets_BK: Tensor) -> LossSum:
    """Mean over the numbers of the absolute error."""
    total = F.l1_loss(outputs_BK, targets_BK.to(outputs_BK), reduction="sum")
    return LossSum(total=total / outputs_BK.shape[1], weight=_rows(outputs_BK))


def huber_sum(outputs_BK: Tensor, *, targets_BK: Tensor, delta: float) -> LossSum:
    """Mean over the numbers of Huber's loss: Huber 1964, https://doi.org/10.1214/aoms/1177703732.

    e² / 2 up to an error of `delta`, then delta (|e| − delta / 2).
    """
    total = F.huber_loss(outputs_BK, targets_BK.to(outputs_BK), delta=delta, reduction="sum")
    return LossSum(total=total / outputs_BK.shape[1], weight=_rows(outputs_BK))


def _rows(outputs_BK: Tensor) -> Tensor:
    return torch.tensor(float(len(outputs_BK))).to(outputs_BK)
