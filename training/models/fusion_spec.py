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

    stackable: ClassVar[bool] = True

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
        from training.models.fusion import SingleModality

        return SingleModality(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class FusionSpec(CandidateSpec):
    """Base of the candidates that fuse several modalities, any of which may be missing."""

    least_modalities: ClassVar[int] = 2
    stackable: ClassVar[bool] = True

    modality_dropout: Share = 0.2
    """Probability with which a row's modality is taken away while training."""


class TransformerSpec(FusionSpec):
    """Base of the fusions by attention; a pooled embedding is a sequence of one step."""

    stackable: ClassVar[bool] = False

    layers: Annotated[int, pydantic.Field(ge=1)] = 2
    """Transformer layers."""
    heads: Annotated[int, pydantic.Field(ge=1)] = 4
    """Attention heads; `width` must be a multiple of it."""

    @pydantic.model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`width` {self.width} is not a multiple of `heads` {self.heads}")
        return self

    @property
    def transformer(self) -> dict[str, Any]:
        """What all of them are built with."""
        return {
            "width": self.width,
            "dropout": self.dropout,
            "layers": self.layers,
            "heads": self.heads,
        }


class EarlySpec(FusionSpec):
    """Early fusion: the modalities' projections side by side, with learned tokens for missing."""

    type: Literal["early"] = "early"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.fusion import EarlyFusion

        return EarlyFusion(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class LateSpec(FusionSpec):
    """Late fusion: one classifier a modality, joined over those that are present."""

    type: Literal["late"] = "late"
    combine: Literal["mean", "learned", "stacked"] = "learned"
    """How the present classifiers' logits are joined: their mean, a mean with learned weights, or
    a linear meta-head over classifiers that learn alone."""

    @classmethod
    def _default_name(cls, value: Mapping[str, Any]) -> str:
        combine = value.get("combine", "learned")
        return "late" if combine == "learned" else f"late-{combine}"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.late import LateFusion, StackedFusion

        if self.combine == "stacked":
            return StackedFusion(inputs, outputs=outputs, width=self.width, dropout=self.dropout)
        return LateFusion(
            inputs,
            outputs=outputs,
            width=self.width,
            dropout=self.dropout,
            combine=self.combine,
        )


class GatedSpec(FusionSpec):
    """Gated multimodal units (GMU): in each hidden unit, gates weigh the present modalities."""

    type: Literal["gated"] = "gated"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.gated import GatedFusion

        return GatedFusion(inputs, outputs=outputs, width=self.width, dropout=self.dropout)


class LowRankSpec(FusionSpec):
    """Low-rank tensor fusion (LMF): products of all modalities' features, by factors."""

    type: Literal["low_rank"] = "low_rank"
    rank: Annotated[int, pydantic.Field(ge=1)] = 4
    """Rank of the tensor over the modalities."""

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.low_rank import LowRankFusion

        return LowRankFusion(
            inputs, outputs=outputs, width=self.width, dropout=self.dropout, rank=self.rank
        )


class AttentionSpec(TransformerSpec):
    """Attention over the tokens of all modalities together, those that are missing masked out."""

    version: ClassVar[int] = 2

    type: Literal["attention"] = "attention"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.fusion import AttentionFusion

        return AttentionFusion(inputs, outputs=outputs, **self.transformer)


class CoAttentionSpec(TransformerSpec):
    """Co-attention (ViLBERT): in each layer every modality's tokens ask those of the others."""

    type: Literal["co_attention"] = "co_attention"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.co_attention import CoAttentionFusion

        return CoAttentionFusion(inputs, outputs=outputs, **self.transformer)


class CrossModalSpec(TransformerSpec):
    """Cross-modal transformer (MulT): one of `layers` layers for each ordered pair."""

    type: Literal["cross_modal"] = "cross_modal"
    self_layers: Annotated[int, pydantic.Field(ge=1)] = 1
    """Layers of self-attention over what the others have told a modality."""

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.cross_modal import CrossModalFusion

        return CrossModalFusion(
            inputs, outputs=outputs, self_layers=self.self_layers, **self.transformer
        )


class BottleneckSpec(TransformerSpec):
    """Bottleneck transformer (MBT): modalities that exchange through a few common tokens."""

    type: Literal["bottleneck"] = "bottleneck"
    layers: Annotated[int, pydantic.Field(ge=2)] = 4
    """Transformer layers."""
    fusion_layer: Annotated[int, pydantic.Field(ge=0)] = 2
    """The first layer with bottleneck tokens, counted from 0. What it writes to them is read from
    the next layer on, so it is `layers` - 2 at most."""
    bottlenecks: Annotated[int, pydantic.Field(ge=1)] = 4
    """Bottleneck tokens."""

    @pydantic.model_validator(mode="after")
    def _read_after_written(self) -> Self:
        if self.fusion_layer > self.layers - 2:
            raise ValueError(
                f"`fusion_layer` {self.fusion_layer} leaves no layer that reads what another has "
                f"written to the bottleneck; of {self.layers} `layers` it is 0 to {self.layers - 2}"
            )
        return self

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.bottleneck import BottleneckFusion

        return BottleneckFusion(
            inputs,
            outputs=outputs,
            fusion_layer=self.fusion_layer,
            bottlenecks=self.bottlenecks,
            **self.transformer,
        )
