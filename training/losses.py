"""The losses, each as one worker's share of the loss over the joined batch of all workers.

The workers' shares sum to the loss of the whole batch, and the sum over workers of the shares'
gradients is its gradient, however unevenly the rows are divided. So gradients are added up over
workers (not averaged), and the number of workers changes nothing but rounding.

Suffixes of tensors: B this worker's rows, G the rows of all workers, M modalities, S width of
the shared space, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

Group = dist.ProcessGroup | None
"""The workers that share a batch; None for all there are."""


def worker_rank(group: Group = None) -> int:
    """This worker's number; 0 outside of a process group."""
    return dist.get_rank(group) if _distributed() else 0


def worker_count(group: Group = None) -> int:
    """How many workers share a batch; 1 outside of a process group."""
    return dist.get_world_size(group) if _distributed() else 1


def sum_over_workers(x: Tensor, *, group: Group = None) -> Tensor:
    """Sum of a tensor over the workers; not differentiated."""
    total = x.detach().clone()
    if worker_count(group) > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The rows of all workers, in the workers' order, and where one's own stand."""

    rows: Tensor
    """`[G, ...]`"""
    first: int
    """Number of this worker's first row."""


def gather_rows(x_B: Tensor, *, group: Group = None) -> Gathered:
    """The rows `[B, ...]` of all workers joined; B may differ, the rest of the shape may not.

    Differentiable: a row's gradient is the sum over what all workers made of it. Every worker
    must take part in the forward pass, and, if gradients are wanted, in the backward pass.
    """
    if worker_count(group) == 1:
        return Gathered(rows=x_B, first=0)
    sizes = _gather_sizes(len(x_B), device=x_B.device, group=group)
    first = sum(sizes[: worker_rank(group)])
    return Gathered(rows=_GatherRows.apply(x_B, sizes, first, group), first=first)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], first: int, group: Group) -> Tensor:
        ctx.first, ctx.rows, ctx.group = first, len(x), group
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=ctx.group)
        return total[ctx.first : ctx.first + ctx.rows], None, None, None


def cross_entropy(logits_BC: Tensor, *, targets_B: Tensor, group: Group = None) -> Tensor:
    """This worker's share of the mean cross entropy over the rows of all workers."""
    count = sum_over_workers(torch.tensor(float(len(targets_B))).to(logits_BC), group=group)
    return F.cross_entropy(logits_BC, targets_B, reduction="sum") / count.clamp(min=1)


def info_nce(
    embeddings_BMS: Tensor, *, presence_BM: Tensor, scale: Tensor, group: Group = None
) -> Tensor:
    """This worker's share of the symmetric InfoNCE over every pair of modalities.

    For modalities a, b and the n rows of all workers that have both, with unit embeddings u, v:

        L(a, b) = −1/2n Σᵢ [log exp(s uᵢ·vᵢ) / Σⱼ exp(s uᵢ·vⱼ) + log exp(s uᵢ·vᵢ) / Σⱼ exp(s uⱼ·vᵢ)]

    The loss is the mean of L over the pairs with n ≥ 2 (one row has nothing to be told from),
    and zero if there are none. `scale` s is the inverse temperature. Rows that are not present
    have no influence. Each worker computes its own rows against all: `[B, G]` at a time.

    Oord, Li and Vinyals 2018, https://arxiv.org/abs/1807.03748, equation 4; both directions as
    in CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3.
    """
    B, M, _ = embeddings_BMS.shape
    masked = torch.where(presence_BM[:, :, None], embeddings_BMS, 0.0)
    # One gather for all modalities: the workers' backward passes meet exactly once.
    gathered = gather_rows(masked, group=group)
    all_GMS = gathered.rows
    present_GM = gather_rows(presence_BM.to(torch.uint8), group=group).rows.bool()
    own = slice(gathered.first, gathered.first + B)
    shares = []
    for a, b in combinations(range(M), 2):
        both_G = present_GM[:, a] & present_GM[:, b]
        count = int(both_G.sum())
        if count < 2:
            continue
        both_B = both_G[own]
        targets = (both_G.cumsum(0) - 1)[own][both_B]
        for x, y in ((a, b), (b, a)):
            logits = scale * all_GMS[own, x][both_B] @ all_GMS[both_G, y].T
            shares.append(F.cross_entropy(logits, targets, reduction="sum") / (2 * count))
    if not shares:
        return (all_GMS.sum() + scale) * 0.0
    return 2 * torch.stack(shares).sum() / len(shares)


def _gather_sizes(size: int, *, device: torch.device, group: Group) -> list[int]:
    own = torch.tensor([size], device=device)
    sizes = [torch.empty_like(own) for _ in range(worker_count(group))]
    dist.all_gather(sizes, own, group=group)
    return [int(value) for value in sizes]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
