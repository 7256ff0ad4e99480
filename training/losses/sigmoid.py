"""The sigmoid loss as one worker's share, with the other workers' rows passed round the ring.

See `training.workers` for what a share is. Suffixes of tensors: B this worker's rows, V the rows
that visit this worker, padded to the same number everywhere, M modalities, S width of the shared
space, Q and K those of the rows that have both modalities of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.batch import ABSENT
from training.losses.contrastive import Pairs, modality_pairs
from training.losses.log_sum_exp import blocks
from training.losses.positives import Positives, positives
from training.workers import (
    Group,
    gather_sizes,
    pass_on,
    sum_over_workers,
    worker_rank,
)


def sigmoid_loss(
    embeddings_BMS: Tensor,
    *,
    presence_BM: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairs: Pairs | None = None,
    payloads_BM: Tensor | None = None,
    classes_B: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """This worker's share of the sigmoid loss over pairs of modalities.

    For modalities a, b and the n rows of all workers that have both, with unit embeddings u, v:

        L(a, b) = −1/n Σᵢ Σⱼ log σ(zᵢⱼ (s uᵢ·vⱼ + t))

    where z is 1 for a row with itself or, if `payloads_BM` int64 numbers the payloads, for rows
    with the same payload in a or in b, or if `classes_B` int64 is given, of the same class, but
    for -1, which is no class; and −1 for all others. The loss is the mean of L over the pairs (all
    of them, unless `pairs` says which) with n ≥ 2, and zero if there are none. `scale` s is the
    inverse temperature, `bias` t. Rows that are not present have no influence.

    Zhai et al. 2023 (SigLIP), https://arxiv.org/abs/2303.15343, equation 1. As in its section
    3.3, the rows of one modality go round the ring of workers, so that none holds all of them;
    and their products are made block by block. Loss and gradient come of the same pass: it is
    differentiable once.
    """
    dtype = torch.promote_types(embeddings_BMS.dtype, torch.float32)
    rows_BMS = torch.where(presence_BM[:, :, None], embeddings_BMS.to(dtype), 0.0)
    sizes = gather_sizes(len(rows_BMS), device=rows_BMS.device, group=group)
    if payloads_BM is None:  # a row is its own alone
        first = sum(sizes[: worker_rank(group)])
        own_B = torch.arange(first, first + len(rows_BMS), device=rows_BMS.device)
        payloads_BM = own_B[:, None].expand_as(presence_BM)
    numbers_BM = torch.where(presence_BM, payloads_BM, ABSENT)
    if classes_B is not None:
        numbers_BM = torch.cat([numbers_BM, classes_B[:, None]], dim=1)
    chosen = modality_pairs(presence_BM.shape[1]) if pairs is None else pairs
    both = [(presence_BM[:, a] & presence_BM[:, b]).sum() for a, b in chosen]
    counts = sum_over_workers(torch.stack(both), group=group).tolist()
    alive = [(*pair, n) for pair, n in zip(chosen, counts, strict=True) if n >= 2]
    ring = _Ring(
        numbers_BM=numbers_BM,
        kinds={pair: (*pair, *range(presence_BM.shape[1], numbers_BM.shape[1])) for pair in chosen},
        weights=[(a, b, 1.0 / (n * len(alive))) for a, b, n in alive],
        sizes=sizes,
        gradients=torch.is_grad_enabled(),
        group=group,
    )
    share: Tensor = _RingSigmoid.apply(rows_BMS, scale, bias, ring)
    return share


@dataclass(frozen=True, kw_only=True)
class _Ring:
    """What one pass round the ring has to know."""

    numbers_BM: Tensor
    """Of this worker's payloads, and of its classes, if they count, in a further column; `ABSENT`
    where there is none."""
    kinds: Mapping[tuple[int, int], Sequence[int]]
    """For each pair of modalities, the columns of numbers by which rows may belong together."""
    weights: Sequence[tuple[int, int, float]]
    """Pairs of modalities, and what the sum over their rows is multiplied by."""
    sizes: Sequence[int]
    """How many rows each worker has."""
    gradients: bool
    group: Group


@dataclass(kw_only=True)
class _Total:
    """A sum over pairs of rows, and its gradients in the scale and the bias: float64 scalars."""

    loss: Tensor
    d_scale: Tensor
    d_bias: Tensor


class _RingSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_BMS: Tensor, scale: Tensor, bias: Tensor, ring: _Ring) -> Tensor:
        total, d_own_BMS = _round(own_BMS, scale, bias, ring)
        if ring.gradients:
            ctx.save_for_backward(
                d_own_BMS,
                total.d_scale.to(scale.dtype).reshape(scale.shape),
                total.d_bias.to(bias.dtype).reshape(bias.shape),
            )
        return total.loss.to(own_BMS.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_share: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        d_own_BMS, d_scale, d_bias = ctx.saved_tensors
        return d_own_BMS * d_share, d_scale * d_share, d_bias * d_share, None


def _round(own_BMS: Tensor, scale: Tensor, bias: Tensor, ring: _Ring) -> tuple[_Total, Tensor]:
    """This worker's share with its gradients in the scale and the bias, and that in its rows.

    Each worker's rows meet those of all, as the visitors go round. What the other workers' shares
    make of the gradient of this one's rows comes home with them, once they have been all round.
    """
    padding = (0, 0) * (own_BMS.ndim - 1) + (0, max(ring.sizes) - len(own_BMS))
    rows_VMS = F.pad(own_BMS, padding)
    numbers_VM = F.pad(ring.numbers_BM, padding[2:], value=ABSENT)
    d_rows_VMS = torch.zeros_like(rows_VMS)
    d_own_BMS = torch.zeros_like(own_BMS)
    zero = own_BMS.new_zeros((), dtype=torch.float64)
    total = _Total(loss=zero, d_scale=zero, d_bias=zero)
    for hop in range(len(ring.sizes)):
        # The next visitors are on their way while these are met.
        coming = None
        if hop < len(ring.sizes) - 1:
            coming = pass_on(rows_VMS, numbers_VM, group=ring.group)
        for a, b, weight in ring.weights:
            mine, theirs = (
                (numbers[:, [a, b]] != ABSENT).all(dim=1).nonzero().squeeze(1)
                for numbers in (ring.numbers_BM, numbers_VM)
            )
            met, d_x_QS, d_y_KS = _meet(
                own_BMS[mine, a],
                rows_VMS[theirs, b],
                scale=scale,
                bias=bias,
                right=positives(
                    asking=[ring.numbers_BM[mine, kind] for kind in ring.kinds[a, b]],
                    asked=[numbers_VM[theirs, kind] for kind in ring.kinds[a, b]],
                ),
                gradients=ring.gradients,
            )
            total.loss = total.loss + weight * met.loss
            total.d_scale = total.d_scale + weight * met.d_scale
            total.d_bias = total.d_bias + weight * met.d_bias
            if ring.gradients:
                d_own_BMS[:, a].index_add_(0, mine, d_x_QS, alpha=weight)
                d_rows_VMS[:, b].index_add_(0, theirs, d_y_KS, alpha=weight)
        if ring.gradients:
            (d_rows_VMS,) = pass_on(d_rows_VMS, group=ring.group).wait()
        if coming is not None:
            rows_VMS, numbers_VM = coming.wait()
    return total, d_own_BMS + d_rows_VMS[: len(own_BMS)]


def _meet(
    x_QS: Tensor, y_KS: Tensor, *, scale: Tensor, bias: Tensor, right: Positives, gradients: bool
) -> tuple[_Total, Tensor, Tensor]:
    """−Σ log σ(z (s x·y + t)) over all pairs of rows, and its gradients, if they are wanted.

    As −log σ(l) is softplus(l) − l, and −log σ(−l) is softplus(l): the sum of softplus over all
    pairs, less the sum of l over those that belong together.
    """
    scaled_QS, offset = x_QS * scale, bias.to(x_QS.dtype)
    d_x_QS, d_y_KS = torch.zeros_like(x_QS), torch.zeros_like(y_KS)
    loss = x_QS.new_zeros((), dtype=torch.float64)
    d_bias = torch.zeros_like(loss)
    for i, j, block, _ in blocks(x_QS, y_KS):
        torch.addmm(offset, scaled_QS[i], y_KS[j].T, out=block)
        loss += F.softplus(block).sum()
        if gradients:
            block.sigmoid_()
            d_bias += block.sum()
            d_x_QS[i].addmm_(block, y_KS[j])
            d_y_KS[j].addmm_(block.T, scaled_QS[i])
    right_y_QS, count = right.sums(y_KS), right.counts().sum()
    loss -= (scaled_QS * right_y_QS).sum() + bias * count
    if gradients:
        d_x_QS -= right_y_QS
        d_y_KS -= right.swapped().sums(scaled_QS)
        d_bias -= count
    d_scale = (x_QS * d_x_QS).sum(dtype=torch.float64)
    return _Total(loss=loss, d_scale=d_scale, d_bias=d_bias), d_x_QS.mul_(scale), d_y_KS
