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
    """Class indices int64 `[B]`, -1 where there is no label, or numbers float32 `[B, O]`, NaN where
    there is none."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Of the modalities that are sequences, whose embeddings are `[B, T, D]`, bool `[B, T]`: true
    where a step is."""

    @property
    def inputs(
        self,
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What a model takes: embeddings, presence, masks."""
        return self.embeddings, self.presence, self.masks

    @property
    def rows(self) -> int:
        return len(self.targets)
