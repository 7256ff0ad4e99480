"""Ranks of a retrieval: in which place the true counterpart of a row comes, modality to modality.

What a retrieval task answers. Suffixes of tensors: N rows, M modalities, P directed pairs of them,
S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from training.evaluation.retrieval import BLOCK_SCORES, ranked


def pairs_of(modalities: Sequence[str]) -> list[tuple[str, str]]:
    """Query and answer of each pair, in the order in which ranks hold them."""
    return list(permutations(modalities, 2))


def ranks_of(
    vectors_NMS: Tensor,
    *,
    presence_NM: Tensor,
    payloads_NM: Tensor | None = None,
    asking: slice = slice(None),
    block_scores: int = BLOCK_SCORES,
) -> Tensor:
    """Per row and directed pair, how many wrong rows are as near to the query as a right one, or
    nearer.

    float32 `[N, P]`, counted from 0, NaN where a row lacks one of the two; of the rows `asking`
    alone, if they are some of the N. The gallery of a pair is all the rows that have both. Right
    are the row itself and, if payloads are numbered, int64 `[N, M]` with a negative number for
    none, those that hold the same one in either modality. The ranks are those of
    `training.evaluation.retrieval`, and so is the memory.
    """
    first, stop, _ = asking.indices(len(vectors_NMS))
    columns = []
    for query, answer in permutations(range(vectors_NMS.shape[1]), 2):
        both_N = presence_NM[:, query] & presence_NM[:, answer]
        rows = both_N.nonzero()[:, 0]
        before, own = int(both_N[:first].sum()), int(both_N[first:stop].sum())
        numbers = [torch.arange(len(rows), device=rows.device)]
        if payloads_NM is not None:
            there = rows.to(payloads_NM.device)
            numbers += [payloads_NM[there, m].to(rows.device) for m in (query, answer)]
        ranks_A = torch.full((stop - first,), torch.nan)
        rank_Q, _, _ = ranked(
            vectors_NMS[rows, query].float(),
            gallery_NS=vectors_NMS[rows, answer].float(),
            numbers_NI=torch.stack(numbers, dim=1),
            asking=slice(before, before + own),
            block_scores=block_scores,
        )
        ranks_A[both_N[first:stop].cpu()] = (rank_Q - 1).float().cpu()
        columns.append(ranks_A)
    return torch.stack(columns, dim=1)
