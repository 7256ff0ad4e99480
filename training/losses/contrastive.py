"""InfoNCE as one worker's share of the loss over the rows of all workers.

See `training.workers` for what a share is. Suffixes of tensors: B this worker's rows, G the rows
of all workers, M modalities, S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from training.losses.log_sum_exp import log_sum_exps
from training.losses.positives import positives
from training.workers import Group, gather_rows

Pairs = Sequence[tuple[int, int]]
"""Which modalities are held against each other, by their places."""


def modality_pairs(count: int, *, anchor: int | None = None) -> Pairs:
    """All pairs of `count` modalities; if there is an anchor, it with each of the others."""
    if anchor is None:
        return list(combinations(range(count), 2))
    return [(anchor, m) for m in range(count) if m != anchor]


def info_nce(
    embeddings_BMS: Tensor,
    *,
    presence_BM: Tensor,
    scale: Tensor,
    pairs: Pairs | None = None,
    payloads_BM: Tensor | None = None,
    classes_B: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """This worker's share of the symmetric InfoNCE over pairs of modalities.

    For modalities a, b and the n rows of all workers that have both, with unit embeddings u, v,
    and P(i) the rows that are right for row i:

        L(a, b) = −1/2n Σᵢ 1/|P(i)| Σ_{p in P(i)} [log exp(s uᵢ·vₚ) / Σⱼ exp(s uᵢ·vⱼ)
                                               + log exp(s uₚ·vᵢ) / Σⱼ exp(s uⱼ·vᵢ)]

    P(i) is the row alone or, if `payloads_BM` int64 numbers the payloads, all rows with the same
    payload in a or in b; and, if `classes_B` int64 is given, all rows of its class too, but for
    -1, which is no class. The loss is the mean of L over the pairs (all of them, unless `pairs`
    says which) with n ≥ 2, since one row has nothing to be told from, and zero if there are
    none. `scale` s is the inverse temperature. Rows that are not present have no influence.

    No matrix of all pairs of rows is held (see `training.losses.log_sum_exp`), and each worker
    computes its own rows of it alone.

    Oord, Li and Vinyals 2018, https://arxiv.org/abs/1807.03748, equation 4; both directions as
    in CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3; one anchor as in
    ImageBind, Girdhar et al. 2023, https://arxiv.org/abs/2305.05665, equation 1; several
    positives as in UniCL, Yang et al. 2022, https://arxiv.org/abs/2204.03610, equations 2 to 4
    (SupCon's mean outside of the logarithm, Khosla et al. 2020,
    https://arxiv.org/abs/2004.11362, equation 2, which with classes it is, from one modality to
    another).
    """
    B, M, _ = embeddings_BMS.shape
    # Half precision is too coarse for sums over thousands of rows.
    embeddings_BMS = embeddings_BMS.to(torch.promote_types(embeddings_BMS.dtype, torch.float32))
    masked = torch.where(presence_BM[:, :, None], embeddings_BMS, 0.0)
    # One gather for all modalities: the workers' backward passes meet exactly once.
    gathered = gather_rows(masked, group=group)
    all_GMS = gathered.rows
    present_GM = gather_rows(presence_BM.to(torch.uint8), group=group).rows.bool()
    payloads_GM = None if payloads_BM is None else gather_rows(payloads_BM, group=group).rows
    classes_G = None if classes_B is None else gather_rows(classes_B, group=group).rows
    own = slice(gathered.first, gathered.first + B)
    # Apart, so that a pair's gradient is as large as its rows and not as all that was gathered.
    modalities = all_GMS.unbind(dim=1)
    losses = []
    for a, b in modality_pairs(M) if pairs is None else pairs:
        both_G = present_GM[:, a] & present_GM[:, b]
        count = int(both_G.sum())
        if count < 2:
            continue
        first = int(both_G[: own.start].sum())
        mine = slice(first, first + int(both_G[own].sum()))
        x_GS, y_GS = (_rows(modalities[m], chosen_G=both_G, count=count) for m in (a, b))
        rows, columns = log_sum_exps(x_GS[mine], y_GS, scale=scale, group=group)
        right_x, right_y = x_GS[mine], y_GS[mine]
        numbers: list[Tensor] = []
        if payloads_GM is not None:
            numbers += [payloads_GM[both_G, a], payloads_GM[both_G, b]]
        if classes_G is not None:
            # A row without a class is its own still.
            numbers += [] if numbers else [torch.arange(count, device=x_GS.device)]
            numbers.append(classes_G[both_G])
        if numbers:
            found = positives(asking=[x[mine] for x in numbers], asked=numbers)
            counts_B1 = found.counts()[:, None]
            right_x, right_y = found.sums(x_GS) / counts_B1, found.sums(y_GS) / counts_B1
        right = (x_GS[mine] * right_y + y_GS[mine] * right_x).sum()
        losses.append((rows.sum() + columns[mine].sum() - scale * right) / (2 * count))
    if not losses:
        return (all_GMS.sum() + scale) * 0.0
    return torch.stack(losses).mean()


def _rows(x_GS: Tensor, *, chosen_G: Tensor, count: int) -> Tensor:
    """The chosen rows, `count` of them; all of them as they are, without a copy."""
    return x_GS if count == len(x_GS) else x_GS.index_select(0, chosen_G.nonzero()[:, 0])
