"""Which rows of two modalities belong together, where several do: counted without their matrix.

Row i of one modality and row j of another are a positive pair if they hold the same payload in
either of the two: with two captions of one image, both captions are right for both rows. Sums
over a row's positives are sums over groups (those of one modality, plus those of the other, less
those of both at once), so no matrix of all pairs is made.

Suffixes of tensors: Q rows that ask, K rows that are asked, S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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

    either: Sequence[Groups]
    """By the payload of the one modality, and by that of the other."""
    both: Groups
    """By the two together: counted with either, so once too often."""

    def sums(self, values_KS: Tensor) -> Tensor:
        """Sum over each asking row's positives `[Q, S]`; differentiable."""
        first, second = self.either
        return first.sums(values_KS) + second.sums(values_KS) - self.both.sums(values_KS)

    def swapped(self) -> Positives:
        """The positives among the Q rows of each of the K."""
        first, second = self.either
        return Positives(either=(first.swapped(), second.swapped()), both=self.both.swapped())

    def counts(self) -> Tensor:
        """How many positives each asking row has, int64 `[Q]`."""
        ones_K1 = torch.ones_like(self.both.asked_K)[:, None]
        return self.sums(ones_K1).squeeze(1)


def positives(*, asking: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> Positives:
    """The positives of rows whose payloads bear these numbers, in the two modalities.

    `asking` int64 `[Q]` and `[Q]`, `asked` `[K]` and `[K]`: rows are a positive pair if their
    numbers are equal in either place.
    """
    first, second = (_groups(q, k) for q, k in zip(asking, asked, strict=True))
    both = _groups(
        first.asking_Q * second.count + second.asking_Q,
        first.asked_K * second.count + second.asked_K,
    )
    return Positives(either=(first, second), both=both)


def _groups(asking_Q: Tensor, asked_K: Tensor) -> Groups:
    found, places = torch.cat([asking_Q, asked_K]).unique(return_inverse=True)
    asking, asked = places.split([len(asking_Q), len(asked_K)])
    return Groups(asking_Q=asking, asked_K=asked, count=len(found))
