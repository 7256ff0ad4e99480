"""Retrieval between two modalities: recall, rank and precision of the right answers.

Query i and gallery row i are one sample. A tie counts against the query, so a space that has
collapsed to one point finds nothing. All is done block by block: no matrix of all pairs is held.

Suffixes of tensors: N rows, S width of the space, I kinds of numbers that rows can share, Q
queries of a block, G gallery, R right answers of the query that has most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_SCORES = 2**22
"""Similarities that are held at a time."""
FEW = 4
"""Up to so many right answers of a query are ranked one by one; of more, all are sorted."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How well queries find what is right for them, and what guessing would reach."""

    queries: int
    """Queries that have a right answer: the others do not count."""
    gallery: int
    recall: Mapping[int, float]
    """By k: share of queries with any right answer among the k nearest."""
    chance: Mapping[int, float]
    median_rank: float
    """Of a query's best right answer, from 1; NaN if there are no queries. Of an even number of
    queries the mean of the middle two."""
    mean_average_precision: float
    """Mean over queries of the mean, over a query's right answers, of the share of right ones
    among all that are as near: Manning, Raghavan and Schütze 2008, section 8.4."""


def retrieve(
    queries_NS: Tensor,
    *,
    gallery_NS: Tensor,
    numbers_NI: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    block_scores: int = BLOCK_SCORES,
) -> Retrieval:
    """Rank the gallery by the dot product with each query.

    `numbers_NI` int64: gallery row j is right for query i if they share a number in any of the I
    columns; a negative number is none. A column 0..N-1 makes a row's own sample right, and a
    column of classes those of its class. ValueError if the rows do not match.
    """
    N = len(queries_NS)
    if N == 0 or len(gallery_NS) != N or len(numbers_NI) != N:
        raise ValueError(
            f"a retrieval needs rows, as many queries as gallery and numbers: "
            f"{N}, {len(gallery_NS)}, {len(numbers_NI)}"
        )
    rank_N, precision_N, count_N = ranked(
        queries_NS, gallery_NS=gallery_NS, numbers_NI=numbers_NI, block_scores=block_scores
    )
    asks_N = count_N > 0
    rank_N, precision_N, count_N = rank_N[asks_N], precision_N[asks_N], count_N[asks_N]
    return Retrieval(
        queries=len(rank_N),
        gallery=N,
        recall={k: _mean(rank_N <= k) for k in ks},
        chance={k: _chance_of_any(count_N, gallery=N, k=k) for k in ks},
        median_rank=float(rank_N.double().quantile(0.5)) if len(rank_N) else float("nan"),
        mean_average_precision=_mean(precision_N),
    )


def ranked(
    queries_NS: Tensor,
    *,
    gallery_NS: Tensor,
    numbers_NI: Tensor,
    asking: slice = slice(None),
    block_scores: int = BLOCK_SCORES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query the rank of its best right answer from 1, its average precision, and how many
    right answers there are, `[Q]` each; see `retrieve`, which asks for all.

    `asking` says which of the N queries.
    """
    N = len(gallery_NS)
    # Of none and none, neither is the other's: the two sides count it differently.
    asking_NI = torch.where(numbers_NI >= 0, _compact(numbers_NI), -1)
    asked_NI = torch.where(numbers_NI >= 0, asking_NI, -2)
    found = []
    asked_for = torch.arange(N, device=queries_NS.device)[asking]
    for rows in asked_for.split(max(1, block_scores // max(1, N))):
        right_QG = torch.zeros(len(rows), N, dtype=torch.bool, device=queries_NS.device)
        for asking_N, asked_N in zip(asking_NI.unbind(1), asked_NI.unbind(1), strict=True):
            right_QG |= asking_N[rows, None] == asked_N
        found.append(_rank(queries_NS[rows] @ gallery_NS.T, right_QG=right_QG))
    rank_Q, precision_Q, count_Q = (torch.cat(part) for part in zip(*found, strict=True))
    return rank_Q, precision_Q, count_Q


def _rank(scores_QG: Tensor, *, right_QG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each query the rank of its best right answer, its average precision, and how many.

    Wrong answers that score as high as a right one stand before it. The scores are overwritten.
    """
    Q, G = scores_QG.shape
    asking, asked = right_QG.nonzero().unbind(1)
    count_Q = torch.bincount(asking, minlength=Q)
    most = int(count_Q.max()) if Q else 0
    nth = torch.arange(len(asking), device=asking.device)
    nth -= (count_Q.cumsum(0) - count_Q)[asking]
    right_QR = scores_QG.new_full((Q, most), torch.inf)
    right_QR[asking, nth] = -scores_QG[asking, asked]
    right_QR = -_ascending(right_QR)
    wrong_QG = scores_QG.masked_fill_(right_QG, -torch.inf)
    if most <= FEW:
        before_QR = torch.zeros(Q, most, dtype=torch.int64, device=scores_QG.device)
        for place, right_Q in enumerate(right_QR.unbind(1)):
            before_QR[:, place] = (wrong_QG >= right_Q[:, None]).sum(dim=1, dtype=torch.int32)
    else:
        before_QR = G - torch.searchsorted(_ascending(wrong_QG), right_QR)
    place_R = torch.arange(1, most + 1, device=scores_QG.device)
    precision_QR = place_R.double() / (place_R + before_QR)
    precision_QR = precision_QR.masked_fill(place_R > count_Q[:, None], 0.0)
    best_Q = before_QR[:, 0] + 1 if most else count_Q
    return best_Q, precision_QR.sum(dim=1) / count_Q.clamp(min=1), count_Q


def _ascending(values_QX: Tensor) -> Tensor:
    """Each row sorted; by NumPy where it can be, which is many times as fast on a CPU."""
    if values_QX.is_cuda:
        return values_QX.sort(dim=1).values
    return torch.from_numpy(np.sort(values_QX.numpy(), axis=1))


def _compact(numbers: Tensor) -> Tensor:
    """The same numbers counted from 0, in int32: less to compare."""
    return numbers.unique(return_inverse=True)[1].int()


def _chance_of_any(right_N: Tensor, *, gallery: int, k: int) -> float:
    """Mean chance that k rows drawn without replacement hold one of so many."""
    miss_N = torch.ones_like(right_N, dtype=torch.float64)
    for i in range(min(k, gallery)):
        miss_N *= (gallery - right_N - i).clamp(min=0) / (gallery - i)
    return _mean(1 - miss_N)


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
