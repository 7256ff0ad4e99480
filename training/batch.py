"""What a model is given at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a table, modality by modality."""

    embeddings: Mapping[str, Tensor]
    """Per modality float32 `[B, D]`; rows that are not present hold anything."""
    presence: Mapping[str, Tensor]
    """Per modality bool `[B]`."""
    targets: Tensor
    """int64 `[B]`, -1 where there is no label."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the modalities that are sequences, whose embeddings are `[B, T, D]`, bool `[B, T]`: true
    where a step is."""

    payloads: Mapping[str, Tensor] = field(default_factory=dict)
    """Per modality int64 `[B]`, where payloads are told apart: equal numbers, not negative, for
    rows that hold the same payload. A contrastive loss counts such rows as belonging together."""

    @property
    def inputs(
        self,
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What a model takes: embeddings, presence, masks."""
        return self.embeddings, self.presence, self.masks

    @property
    def rows(self) -> int:
        return len(self.targets)
