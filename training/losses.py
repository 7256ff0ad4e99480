"""Losses of tasks, each as one worker's share of the loss over the rows of all workers.

See `training.workers` for what a share is. Suffixes of tensors: B this worker's rows, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.workers import Group, sum_over_workers


def cross_entropy(logits_BC: Tensor, *, targets_B: Tensor, group: Group = None) -> Tensor:
    """This worker's share of the mean cross entropy over the rows of all workers."""
    count = sum_over_workers(torch.tensor(float(len(targets_B))).to(logits_BC), group=group)
    return F.cross_entropy(logits_BC, targets_B, reduction="sum") / count.clamp(min=1)
