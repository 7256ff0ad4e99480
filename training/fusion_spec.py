"""The candidates that fuse modalities into one answer, and the single one that they must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from features.spec import Name
from training.spec import CandidateSpec, InputSpec, Share

if TYPE_CHECKING:
    from torch import nn


class SingleSpec(CandidateSpec):
    """One modality alone: the baseline that a fusion has to beat."""

    type: Literal["single"] = "single"
    modality: Name
    """The modality that the model takes."""

    @classmethod
    def _default_name(cls, value: Mapping[str, Any]) -> str:
        return f"single-{value.get('modality')}"

    @pydantic.model_validator(mode="after")
    def _one_modality(self) -> Self:
        if self.modalities is not None:
            raise ValueError("`single` takes `modality` (one name), not `modalities`")
        return self

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield ("modality",), self.modality

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.fusion import SingleModality

        return SingleModality(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class EarlySpec(CandidateSpec):
    """Early fusion: the modalities' projections side by side, with learned tokens for missing."""

    least_modalities: ClassVar[int] = 2

    type: Literal["early"] = "early"
    modality_dropout: Share = 0.2

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.fusion import EarlyFusion

        return EarlyFusion(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class LateSpec(CandidateSpec):
    """Late fusion: one classifier a modality, averaged over those that are present."""

    least_modalities: ClassVar[int] = 2

    type: Literal["late"] = "late"
    modality_dropout: Share = 0.2

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.fusion import LateFusion

        return LateFusion(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class AttentionSpec(CandidateSpec):
    """Attention over one token a modality, those that are missing masked out."""

    least_modalities: ClassVar[int] = 2

    type: Literal["attention"] = "attention"
    modality_dropout: Share = 0.2
    layers: Annotated[int, pydantic.Field(ge=1)] = 2
    """Transformer layers."""
    heads: Annotated[int, pydantic.Field(ge=1)] = 4
    """Attention heads; `width` must be a multiple of it."""

    @pydantic.model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`width` {self.width} is not a multiple of `heads` {self.heads}")
        return self

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.fusion import AttentionFusion

        return AttentionFusion(
            inputs,
            outputs=outputs,
            width=self.width,
            dropout=self.dropout,
            layers=self.layers,
            heads=self.heads,
        )
