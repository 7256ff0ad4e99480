"""Contrastive losses, each as one worker's share of the loss over the rows of all workers.

See `training.workers` for what a share is. Suffixes of tensors: B this worker's rows, G the rows
of all workers, M modalities, S width of the shared space.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.workers import Group, gather_rows


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
