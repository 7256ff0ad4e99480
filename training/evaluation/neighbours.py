"""A classifier on frozen vectors: the votes of the nearest neighbours.

Suffixes of tensors: N rows that are known, Q rows that are asked, C classes, S width.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 20
BLOCK_SCORES = 2**22
"""Similarities that are held at a time."""


def nearest_neighbours(
    queries_QS: Tensor,
    *,
    known_NS: Tensor,
    classes_N: Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = 0.07,
    block_scores: int = BLOCK_SCORES,
) -> Tensor:
    """Shares of the votes of each query's nearest known rows for each class, float `[Q, C]`.

    A row votes for its class with the weight exp(cosine / temperature): Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4; vectors are of length one. ValueError if no
    rows are known.
    """
    if not len(known_NS):
        raise ValueError("the nearest neighbours of nothing: there are no known rows")
    votes = []
    for block_QS in queries_QS.split(max(1, block_scores // len(known_NS))):
        near = (block_QS @ known_NS.T).topk(min(neighbours, len(known_NS)), dim=1)
        weight_QK = (near.values / temperature).softmax(dim=1)
        vote_QC = weight_QK.new_zeros(len(block_QS), classes)
        votes.append(vote_QC.scatter_add(1, classes_N[near.indices], weight_QK))
    return torch.cat(votes) if votes else queries_QS.new_zeros(0, classes)
