"""Ranks of a retrieval: in which place the true counterpart of a row comes, modality to modality.

What a retrieval task answers. Suffixes of tensors: N rows, M modalities, P directed pairs of them,
S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

BLOCK = 1024


def pairs_of(modalities: Sequence[str]) -> list[tuple[str, str]]:
    """Query and answer of each pair, in the order in which ranks hold them."""
    return list(permutations(modalities, 2))


def ranks_of(
    vectors_NMS: Tensor, *, presence_NM: Tensor, payloads_NM: Tensor | None = None
) -> Tensor:
    """Per row and directed pair, how many wrong rows are as near to the query as a right one, or
    nearer.

    float32 `[N, P]`, counted from 0, NaN where a row lacks one of the two. The gallery of a pair is
    all the rows that have both. Right are the row itself and, if payloads are numbered, int64 `[N,
    M]` with a negative number for none, those that hold the same one in either modality: as
    `training.evaluation.retrieval.retrieve` has it. A tie counts against the query, so that a space
    which has collapsed to one point finds nothing. Memory is `BLOCK` × N at a time.
    """
    columns = []
    for query, answer in permutations(range(vectors_NMS.shape[1]), 2):
        rows = (presence_NM[:, query] & presence_NM[:, answer]).nonzero()[:, 0]
        ranks_N = torch.full((len(vectors_NMS),), torch.nan)
        gallery = vectors_NMS[rows, answer].float()
        held = [torch.arange(len(rows), device=rows.device)]
        if payloads_NM is not None:
            held += [
                payloads_NM[rows.to(payloads_NM.device), m].to(rows.device) for m in (query, answer)
            ]
        for start in range(0, len(rows), BLOCK):
            own = torch.arange(start, min(start + BLOCK, len(rows)), device=rows.device)
            scores = vectors_NMS[rows[own], query].float() @ gallery.T
            right = torch.zeros_like(scores, dtype=torch.bool)
            for numbers in held:
                right |= (numbers[own, None] == numbers) & (numbers[own, None] >= 0)
            best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
            ranks_N[rows[own].cpu()] = ((scores >= best) & ~right).sum(dim=1).float().cpu()
        columns.append(ranks_N)
    return torch.stack(columns, dim=1)
