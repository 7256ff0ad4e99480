"""Recall of a retrieval, without a library that decides what ties mean.

Suffixes of tensors: N rows, Q queries, G gallery, S width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Recall@k of a retrieval, by k, with what guessing would reach."""

    queries: int
    gallery: int
    recall: Mapping[int, float]
    """Share of queries whose own sample is among the k nearest."""
    chance: Mapping[int, float]
    class_queries: int
    """Queries with a class, of which the next two are shares."""
    class_recall: Mapping[int, float]
    """Share of queries with any sample of their class among the k nearest."""
    class_chance: Mapping[int, float]


def retrieval_recall(
    queries_NS: Tensor,
    *,
    gallery_NS: Tensor,
    classes_N: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    block: int = 1024,
) -> Recall:
    """Recall@k where query i and gallery i are one sample, by the dot product.

    `classes_N` holds each sample's class, -1 for none. A tie counts against the query, so
    a space that has collapsed to one point finds nothing. Memory is `block` × N at a time.
    """
    N = len(queries_NS)
    if N == 0 or len(gallery_NS) != N or len(classes_N) != N:
        raise ValueError(
            f"a retrieval needs rows, as many queries as gallery and classes: "
            f"{N}, {len(gallery_NS)}, {len(classes_N)}"
        )
    own_rank, class_rank = [], []
    for start in range(0, N, block):
        rows = torch.arange(start, min(start + block, N), device=queries_NS.device)
        scores_QG = queries_NS[rows] @ gallery_NS.T
        own_Q1 = scores_QG[torch.arange(len(rows)), rows][:, None]
        own_rank.append((scores_QG >= own_Q1).sum(dim=1) - 1)
        same_QG = classes_N[rows, None] == classes_N[None, :]
        best_Q1 = scores_QG.masked_fill(~same_QG, -torch.inf).amax(dim=1, keepdim=True)
        class_rank.append(((scores_QG >= best_Q1) & ~same_QG).sum(dim=1))
    rank_N, class_rank_N = torch.cat(own_rank), torch.cat(class_rank)
    known_N = classes_N >= 0
    sizes_N = (classes_N[known_N].unique(return_inverse=True, return_counts=True))[1:]
    mates_N = sizes_N[1][sizes_N[0]]
    return Recall(
        queries=N,
        gallery=N,
        recall={k: _share(rank_N < k) for k in ks},
        chance={k: min(k, N) / N for k in ks},
        class_queries=int(known_N.sum()),
        class_recall={k: _share(class_rank_N[known_N] < k) for k in ks},
        class_chance={k: _chance_of_any(mates_N, gallery=N, k=k) for k in ks},
    )


def _chance_of_any(mates_N: Tensor, *, gallery: int, k: int) -> float:
    """Mean chance that k rows drawn without replacement hold one of so many."""
    if not len(mates_N):
        return 0.0
    miss_N = torch.ones_like(mates_N, dtype=torch.float64)
    for i in range(min(k, gallery)):
        miss_N *= (gallery - mates_N - i).clamp(min=0) / (gallery - i)
    return float((1 - miss_N).mean())


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if len(hits) else 0.0
