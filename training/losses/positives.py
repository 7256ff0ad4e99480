"""Which rows of two modalities belong together, where several do: counted without their matrix.

Row i of one modality and row j of another are a positive pair if they hold the same payload in
either of the two: with two captions of one image, both captions are right for both rows. Where
classes count, so are rows of one class. Sums over a row's positives are sums over groups (those of
one modality, plus those of the other, less those of both at once, and so on by inclusion and
exclusion), so no matrix of all pairs is made.

Suffixes of tensors: Q rows that ask, K rows that are asked, S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from training.batch import ABSENT


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Rows grouped by some number, those that ask and those that are asked alike."""

    asking_Q: Tensor
    """int64: the group of a row."""
    asked_K: Tensor
    count: int

    def swapped(self) -> Groups:
        """Those asked ask."""
        return Groups(asking_Q=self.asked_K, asked_K=self.asking_Q, count=self.count)

    def sums(self, values_KS: Tensor) -> Tensor:
        """Sum over the rows asked that are of an asking row's group `[Q, S]`."""
        total = values_KS.new_zeros(self.count, values_KS.shape[1])
        return total.index_add(0, self.asked_K, values_KS)[self.asking_Q]


@dataclass(frozen=True, kw_only=True)
class Positives:
    """The positives among K rows of each of Q rows."""

    added: Sequence[Groups]
    """By each number alone, and by any three together."""
    taken: Sequence[Groups]
    """By any two together: counted with either, so once too often."""

    def sums(self, values_KS: Tensor) -> Tensor:
        """Sum over each asking row's positives `[Q, S]`; differentiable."""
        total_QS, *others = (groups.sums(values_KS) for groups in self.added)
        for sum_QS in others:
            total_QS = total_QS + sum_QS
        for groups in self.taken:
            total_QS = total_QS - groups.sums(values_KS)
        return total_QS

    def swapped(self) -> Positives:
        """The positives among the Q rows of each of the K."""
        return Positives(
            added=[groups.swapped() for groups in self.added],
            taken=[groups.swapped() for groups in self.taken],
        )

    def counts(self) -> Tensor:
        """How many positives each asking row has, int64 `[Q]`."""
        ones_K1 = torch.ones_like(self.added[0].asked_K)[:, None]
        return self.sums(ones_K1).squeeze(1)


def positives(*, asking: Sequence[Tensor], asked: Sequence[Tensor]) -> Positives:
    """The positives of rows that bear these numbers: of payloads in two modalities, of classes.

    `asking` int64 `[Q]` each, `asked` `[K]` each, of one, two or three kinds of number: rows are a
    positive pair if their numbers of any kind are equal. `ABSENT` equals nothing.
    """
    alone = [_groups(q, k) for q, k in zip(asking, asked, strict=True)]
    assert 1 <= len(alone) <= 3
    added, taken = list(alone), [_together(*two) for two in combinations(alone, 2)]
    if len(alone) == 3:
        added.append(_together(taken[0], alone[2]))
    return Positives(added=added, taken=taken)


def _groups(asking_Q: Tensor, asked_K: Tensor) -> Groups:
    found, places = torch.cat([asking_Q, asked_K]).unique(return_inverse=True)
    asking, asked = places.split([len(asking_Q), len(asked_K)])
    count = len(found)
    # Two groups that no row of the other side is in.
    return Groups(
        asking_Q=torch.where(asking_Q == ABSENT, count, asking),
        asked_K=torch.where(asked_K == ABSENT, count + 1, asked),
        count=count + 2,
    )


def _together(first: Groups, second: Groups) -> Groups:
    """Rows grouped by two numbers at once."""
    return _groups(
        first.asking_Q * second.count + second.asking_Q,
        first.asked_K * second.count + second.asked_K,
    )
