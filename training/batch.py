"""What a model is given at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

ABSENT = -1
"""In the place of a number: of no embedding in an index, no payload, or no label among classes."""
Tensors = Mapping[str, Tensor]
"""A tensor a modality: embeddings, presence or masks, as the models take them."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a table, modality by modality."""

    embeddings: Tensors
    """Per modality float32 `[B, D]`; rows that are not present hold anything. (Of a modality that
    is embedded anew at each step, its `training.tuning.model.PreparedPayloads`.)"""
    presence: Tensors
    """Per modality bool `[B]`."""
    targets: Tensor
    """Class indices int64 `[B]`, -1 where there is no label, or numbers float32 `[B, O]`, NaN where
    there is none."""
    masks: Tensors = field(default_factory=dict)
    """Of the modalities that are sequences, whose embeddings are `[B, T, D]`, bool `[B, T]`: true
    where a step is."""

    payloads: Tensors = field(default_factory=dict)
    """Per modality int64 `[B]`, where payloads are told apart: equal numbers, not negative, for
    rows that hold the same payload. A contrastive loss counts such rows as belonging together."""

    @property
    def inputs(
        self,
    ) -> tuple[Tensors, Tensors, Tensors]:
        """What a model takes: embeddings, presence, masks."""
        return self.embeddings, self.presence, self.masks

    @property
    def rows(self) -> int:
        return len(self.targets)
