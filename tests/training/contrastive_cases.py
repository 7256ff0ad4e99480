"""Batches for the contrastive losses, and the losses written out over the matrix of all pairs."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 23


def batch(*, rows: int = ROWS, modalities: int = 3, missing: float = 0.3, seed: int = 0):
    """Unit vectors `[rows, modalities, 5]`, presence, and payloads of which several are alike."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, modalities, 5, generator=generator, dtype=torch.float64)
    presence = torch.rand(rows, modalities, generator=generator) >= missing
    payloads = torch.randint(rows // 2, (rows, modalities), generator=generator)
    return F.normalize(x, dim=-1), presence, payloads


def labels(*, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Four classes int64 `[rows]`; about a fifth of the rows has none."""
    return torch.randint(-1, 4, (rows,), generator=torch.Generator().manual_seed(seed))


def belong(
    payloads: Tensor | None, classes: Tensor | None, *, rows: Tensor, a: int, b: int
) -> Tensor:
    """bool `[n, n]`: which rows are right for which, one by one."""
    n = len(rows)
    found = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            alike = payloads is not None and any(
                payloads[rows[i], m] == payloads[rows[j], m] for m in (a, b)
            )
            one_class = classes is not None and classes[rows[i]] == classes[rows[j]] != -1
            found[i, j] = i == j or bool(alike) or bool(one_class)
    return found


def pairwise(x: Tensor, presence: Tensor, *, pairs, loss) -> Tensor:
    """The mean of `loss(u, v, rows, a, b)` over the pairs of modalities that two rows have."""
    found = []
    for a, b in pairs or combinations(range(x.shape[1]), 2):
        rows = (presence[:, a] & presence[:, b]).nonzero().squeeze(1)
        if len(rows) >= 2:
            found.append(loss(x[rows, a], x[rows, b], rows, a, b))
    return torch.stack(found).mean() if found else x.sum() * 0


def naive_info_nce(x, presence, scale, *, pairs=None, payloads=None, classes=None) -> Tensor:
    """UniCL, equations 2 to 4: soft targets, equal for all that are right, in both directions."""

    def loss(u, v, rows, a, b):
        right = belong(payloads, classes, rows=rows, a=a, b=b).to(x.dtype)
        logits = scale * u @ v.T
        forward = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
        return (forward + F.cross_entropy(logits.T, (right / right.sum(0)).T)) / 2

    return pairwise(x, presence, pairs=pairs, loss=loss)


def naive_sigmoid(x, presence, scale, bias, *, pairs=None, payloads=None, classes=None) -> Tensor:
    """SigLIP, algorithm 1, with the labels of all that are right set to 1."""

    def loss(u, v, rows, a, b):
        signs = 2 * belong(payloads, classes, rows=rows, a=a, b=b).to(x.dtype) - 1
        return -F.logsigmoid(signs * (scale * u @ v.T + bias)).sum() / len(u)

    return pairwise(x, presence, pairs=pairs, loss=loss)
