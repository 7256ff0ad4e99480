"""A model's answers with some of the modalities present: all subsets, and exact Shapley values.

A modality that is not of a subset is masked, as one that is missing; nothing is filled in.
Suffixes of tensors: B rows, O outputs, S subsets of the modalities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.tasks import Task

MOST_MODALITIES = 6
"""Of more, not every subset is tried: there are 2 to the power of their number."""
Subset = tuple[str, ...]


def every_subset(modalities: Sequence[str]) -> list[Subset]:
    """All subsets, the empty one first and the whole last, each in the order given."""
    return [
        subset for size in range(len(modalities) + 1) for subset in combinations(modalities, size)
    ]


def tried_subsets(modalities: Sequence[str]) -> list[Subset]:
    """The subsets by which a model is judged: all but the empty one, or, of more than
    `MOST_MODALITIES`, those of one modality, those that lack one, and the whole.
    """
    if len(modalities) <= MOST_MODALITIES:
        return every_subset(modalities)[1:]
    sizes = (1, len(modalities) - 1, len(modalities))
    return [subset for size in sizes for subset in combinations(modalities, size)]


def answers_of_subsets(
    model: nn.Module,
    *,
    task: Task,
    subsets: Sequence[Subset],
    inputs: tuple[Tensors, Tensors, Tensors],
) -> Tensor:
    """What a model answers `[B, S, O]` if of each row's modalities those of a subset are there.

    `inputs` are embeddings, presence and masks.
    """
    embeddings, presence, masks = inputs
    found = []
    for subset in subsets:
        there = {m: p if m in subset else torch.zeros_like(p) for m, p in presence.items()}
        found.append(task.answers(model(embeddings, there, masks)))
    return torch.stack(found, dim=1)


def shapley_values(
    answers_BSO: Tensor, *, subsets: Sequence[Subset], modalities: Sequence[str]
) -> dict[str, Tensor]:
    """By modality, what it adds to an answer, float64 `[B, O]`, from the answers of all subsets.

    The mean, over the orders in which modalities may come in, of the change that one makes:
    Shapley 1953, exact over the subsets as in Lundberg and Lee 2017,
    https://arxiv.org/abs/1705.07874, equation 4. They sum to the answer with all minus that with
    none.
    """
    place = {frozenset(subset): s for s, subset in enumerate(subsets)}
    count = len(modalities)
    found: dict[str, Tensor] = {}
    for modality in modalities:
        total = torch.zeros_like(answers_BSO[:, 0], dtype=torch.float64)
        for subset in subsets:
            if modality in subset:
                continue
            size = len(subset)
            weight = 1 / (count * math.comb(count - 1, size))
            joined = place[frozenset((*subset, modality))]
            change = answers_BSO[:, joined].double() - answers_BSO[:, place[frozenset(subset)]]
            total += weight * change
        found[modality] = total
    return found
