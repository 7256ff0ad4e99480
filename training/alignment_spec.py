"""The candidates that align modalities in one space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pydantic

from training.spec import CandidateSpec, InputSpec, Objective, Width

if TYPE_CHECKING:
    from torch import nn


class AlignmentSpec(CandidateSpec):
    """Contrastive alignment: towers into one space, judged by retrieval and a linear probe."""

    objective: ClassVar[Objective] = "own"
    least_modalities: ClassVar[int] = 2

    type: Literal["alignment"] = "alignment"
    dim: Width = 64
    """Width of the shared space."""
    temperature: Annotated[float, pydantic.Field(ge=0.01, le=10)] = 0.07
    """Temperature of the softmax at the first step; it is learned from there."""

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.alignment import Alignment

        return Alignment(
            inputs,
            outputs=outputs,
            width=self.width,
            dropout=self.dropout,
            dim=self.dim,
            temperature=self.temperature,
        )
