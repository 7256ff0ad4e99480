"""Logarithms of softmax denominators over all pairs of rows, without the matrix of all pairs.

The products are computed block by block, once for the sums and once more for the gradient; only
sums by row and by column are kept, as in Milakov and Gimelshein 2018
(https://arxiv.org/abs/1805.02867, algorithm 3) and FlashAttention (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, section 3.1). Memory is O(B + G), not O(B · G).

Suffixes of tensors: B this worker's rows, G the rows of all workers, S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.workers import Group, log_add_over_workers, sum_over_workers

BLOCK_ROWS = 512
"""Of a block on a CPU: 2 MB of float32, near what a core's cache holds."""
BLOCK_COLUMNS = 1024
GPU_BLOCK = 8192
"""Rows and columns of a block on an accelerator: 256 MB of float32."""


def log_sum_exps(
    x_BS: Tensor, y_GS: Tensor, *, scale: Tensor, group: Group = None
) -> tuple[Tensor, Tensor]:
    """log Σⱼ exp(s xᵢ·yⱼ) `[B]` for this worker's i, and log Σᵢ exp(s xᵢ·yⱼ) `[G]` over all i.

    `x_BS` are this worker's rows, `y_GS` the same on all workers: each computes its own rows of
    the matrix, and the sums by column are added up. Differentiable once, in x, y and the scale s;
    a worker's gradients are those of its own rows of the matrix, to be summed over the workers.
    All workers take part, forward and backward.
    """
    rows_B, columns_G = _LogSumExps.apply(x_BS, y_GS, scale, group)
    return rows_B, columns_G


class _LogSumExps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BS: Tensor, y_GS: Tensor, scale: Tensor, group: Group
    ) -> tuple[Tensor, Tensor]:
        x_BS, y_GS = x_BS.contiguous(), y_GS.contiguous()
        rows_B, columns_G = _sums(x_BS * scale, y_GS)
        columns_G = log_add_over_workers(columns_G, group=group)
        ctx.save_for_backward(x_BS, y_GS, scale, rows_B, columns_G)
        ctx.group = group
        return rows_B, columns_G

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_rows_B: Tensor, d_columns_G: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BS, y_GS, scale, rows_B, columns_G = ctx.saved_tensors
        # A column's sum went to all workers, each of which made something else of it.
        d_columns_G = sum_over_workers(d_columns_G, group=ctx.group)
        # Rows in units of the product: what is left to multiply by is the scale.
        d_x_BS, d_y_GS = _gradients(
            x_BS * scale, y_GS, rows_B, columns_G, d_rows_B.contiguous(), d_columns_G
        )
        d_scale = (x_BS * d_x_BS).sum().reshape(scale.shape)
        return d_x_BS.mul_(scale), d_y_GS, d_scale, None


def _sums(x_BS: Tensor, y_GS: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of x yᵀ by row and by column."""
    rows_B = x_BS.new_full((len(x_BS),), -torch.inf)
    columns_G = x_BS.new_full((len(y_GS),), -torch.inf)
    for i, j, block, spare in blocks(x_BS, y_GS):
        torch.mm(x_BS[i], y_GS[j].T, out=block)
        for sums, dim in ((rows_B[i], 1), (columns_G[j], 0)):
            most = block.amax(dim=dim)
            torch.sub(block, most.unsqueeze(dim), out=spare)
            most += spare.exp_().sum(dim=dim).log_()
            sums.copy_(torch.logaddexp(sums, most))
    return rows_B, columns_G


def _gradients(
    x_BS: Tensor,
    y_GS: Tensor,
    rows_B: Tensor,
    columns_G: Tensor,
    d_rows_B: Tensor,
    d_columns_G: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of x yᵀ with `_sums` rows, columns: gradients in x and y, of rows and columns given theirs.

    A sum's gradient in its addends is the softmax, from the product computed again.
    """
    d_x_BS, d_y_GS = torch.zeros_like(x_BS), torch.zeros_like(y_GS)
    for i, j, block, spare in blocks(x_BS, y_GS):
        torch.mm(x_BS[i], y_GS[j].T, out=block)
        torch.sub(block, rows_B[i, None], out=spare)
        spare.exp_().mul_(d_rows_B[i, None])
        block.sub_(columns_G[j]).exp_()
        spare.addcmul_(block, d_columns_G[j])
        d_x_BS[i].addmm_(spare, y_GS[j])
        d_y_GS[j].addmm_(spare.T, x_BS[i])
    return d_x_BS, d_y_GS


def blocks(x_BS: Tensor, y_GS: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Blocks of the matrix of all pairs: which rows, which columns, and two places to work in."""
    height, width = (GPU_BLOCK, GPU_BLOCK) if x_BS.is_cuda else (BLOCK_ROWS, BLOCK_COLUMNS)
    places = x_BS.new_empty(2, min(height, len(x_BS)) * min(width, len(y_GS)))
    for top in range(0, len(x_BS), height):
        i = slice(top, min(top + height, len(x_BS)))
        for left in range(0, len(y_GS), width):
            j = slice(left, min(left + width, len(y_GS)))
            shape = (i.stop - i.start, j.stop - j.start)
            block, spare = (place[: shape[0] * shape[1]].view(shape) for place in places)
            yield i, j, block, spare
