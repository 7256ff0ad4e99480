"""The task, the candidates and how they are trained: what the YAML says of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from features.by_name import spec_class
from features.fingerprint import Execution, Spec, nearest_hint
from features.spec import Name

if TYPE_CHECKING:
    import torch
    from torch import nn

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Width = Annotated[int, pydantic.Field(ge=1)]
Objective = Literal["classification", "alignment"]


class TaskSpec(Spec):
    """What is predicted."""

    type: Literal["classification"] = "classification"
    """Kind of task: one class out of those that the labels name."""
    target: str
    """Column of labels (text, integers or booleans); a sample with null is unlabelled."""


class TrainingSpec(Spec):
    """How all candidates are trained."""

    workers: Annotated[int, Execution, pydantic.Field(ge=1)] = 1
    """Training workers, one CPU or GPU each. Results agree for any number, up to rounding."""
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 256
    """Rows of a batch, over all workers together."""
    max_epochs: Annotated[int, pydantic.Field(ge=1)] = 60
    """Passes over the training rows at most."""
    patience: Annotated[int, pydantic.Field(ge=1)] = 10
    """Epochs without a lower validation loss before a candidate stops; its best epoch is kept."""
    warmup: Share = 0.1
    """Share of all steps in which the learning rate rises; it falls as a cosine after them."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient; a longer one is scaled to it."""
    checkpoint_every: Annotated[int, Execution, pydantic.Field(ge=1)] = 5
    """Epochs between checkpoints, from which a killed worker or job resumes."""
    precision: Literal["float32"] = "float32"
    """Floating-point type of weights and computing."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The embeddings that a model takes for one modality, and their statistics."""

    dim: int
    mean: torch.Tensor | None = None
    """float32 `[D]` over the present training rows; None before the weights are loaded."""
    std: torch.Tensor | None = None
    """float32 `[D]`, positive."""


class CandidateSpec(Spec):
    """Base of all candidates: a model to fit, with its hyperparameters.

    A subclass gives `type` a `Literal` (its name in YAML) and implements `build`. The model's
    `forward(embeddings, presence)` takes `{modality: [B, D]}` and `{modality: bool [B]}` and
    answers logits `[B, classes]`; what stands in rows that are not present is undefined.
    """

    objective: ClassVar[Objective] = "classification"
    """What is minimised: cross entropy, or InfoNCE between the modalities (see `Alignment`)."""
    version: ClassVar[int] = 1
    """Raised by one whenever the code changes in a way that can change a result."""
    least_modalities: ClassVar[int] = 1

    type: str
    name: Annotated[Name, Execution] = ""
    """Name in reports and runs, unique in the pipeline; the type if it is not given."""
    modalities: tuple[Name, ...] | None = None
    """The modalities that the model takes; all of the pipeline if it is not given."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Decides the first weights, the order of rows and what is dropped."""
    width: Width = 128
    """Width of the hidden layers."""
    dropout: Share = 0.1
    """Share of hidden units that are dropped while training."""
    modality_dropout: Share = 0.0
    """Probability with which a row's modality is taken away while training."""
    learning_rate: Positive = 1e-3
    """Highest learning rate of AdamW."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of matrices; vectors (biases, norms) have none."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and not value.get("name"):
            return {**value, "name": cls._default_name(value)}
        return value

    @classmethod
    def _default_name(cls, value: Mapping[str, Any]) -> str:
        kind = str(value.get("type") or cls.model_fields["type"].default)
        return kind.rpartition(".")[2]

    @pydantic.model_validator(mode="after")
    def _enough_modalities(self) -> Self:
        if self.modalities is not None:
            self._check_modalities(self.modalities)
            if len(set(self.modalities)) < len(self.modalities):
                raise ValueError("`modalities` names one of them twice")
        return self

    def _check_modalities(self, modalities: Sequence[str]) -> None:
        if len(modalities) < self.least_modalities:
            raise ValueError(
                f"{self.type!r} takes at least {self.least_modalities} modalities, "
                f"not {len(modalities)}"
            )

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The modalities that the spec names, each with its place within the spec."""
        for i, modality in enumerate(self.modalities or ()):
            yield ("modalities", i), modality

    def resolved_modalities(self, available: Sequence[str]) -> tuple[str, ...]:
        """The modalities that the model takes, sorted, out of those of the pipeline.

        ValueError for one that the pipeline lacks, or if they are too few.
        """
        for _, modality in self.named_modalities():
            if modality not in available:
                raise ValueError(
                    f"candidate {self.name!r}: there is no modality {modality!r}; "
                    f"{nearest_hint(modality, available)}features: {', '.join(available)}"
                )
        named = [modality for _, modality in self.named_modalities()]
        resolved = tuple(sorted(named or available))
        self._check_modalities(resolved)
        return resolved

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        """A new model with its first weights drawn from torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__} has no build(); a candidate needs one")


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

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        from training.fusion import SingleModality

        return SingleModality(inputs, classes=classes, width=self.width, dropout=self.dropout)


class EarlySpec(CandidateSpec):
    """Early fusion: the modalities' projections side by side, with learned tokens for missing."""

    least_modalities: ClassVar[int] = 2

    type: Literal["early"] = "early"
    modality_dropout: Share = 0.2

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        from training.fusion import EarlyFusion

        return EarlyFusion(inputs, classes=classes, width=self.width, dropout=self.dropout)


class LateSpec(CandidateSpec):
    """Late fusion: one classifier a modality, averaged over those that are present."""

    least_modalities: ClassVar[int] = 2

    type: Literal["late"] = "late"
    modality_dropout: Share = 0.2

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        from training.fusion import LateFusion

        return LateFusion(inputs, classes=classes, width=self.width, dropout=self.dropout)


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

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        from training.fusion import AttentionFusion

        return AttentionFusion(
            inputs,
            classes=classes,
            width=self.width,
            dropout=self.dropout,
            layers=self.layers,
            heads=self.heads,
        )


class AlignmentSpec(CandidateSpec):
    """Contrastive alignment: towers into one space, judged by retrieval and a linear probe."""

    objective: ClassVar[Objective] = "alignment"
    least_modalities: ClassVar[int] = 2

    type: Literal["alignment"] = "alignment"
    dim: Width = 64
    """Width of the shared space."""
    temperature: Annotated[float, pydantic.Field(ge=0.01, le=10)] = 0.07
    """Temperature of the softmax at the first step; it is learned from there."""

    def build(self, *, inputs: Mapping[str, InputSpec], classes: int) -> nn.Module:
        from training.alignment import Alignment

        return Alignment(
            inputs,
            classes=classes,
            width=self.width,
            dropout=self.dropout,
            dim=self.dim,
            temperature=self.temperature,
        )


BUILT_IN: Mapping[str, type[CandidateSpec]] = {
    spec.model_fields["type"].default: spec
    for spec in (SingleSpec, EarlySpec, LateSpec, AttentionSpec, AlignmentSpec)
}


def parse_candidate(value: object) -> CandidateSpec:
    """The spec that a mapping with `type` describes; ValueError if there is no such candidate.

    `type` is the name of a built-in candidate or the dotted path of a subclass of
    `CandidateSpec`.
    """
    if isinstance(value, CandidateSpec):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"a candidate is a mapping with `type`: one of {', '.join(BUILT_IN)}")
    found = spec_class(value["type"], what="candidate", base=CandidateSpec, built_in=BUILT_IN)
    return found.model_validate(value)


CandidateField = Annotated[
    pydantic.SerializeAsAny[CandidateSpec],
    pydantic.BeforeValidator(parse_candidate),
    pydantic.WithJsonSchema(
        {
            "oneOf": [
                *(
                    {**schema, "required": sorted({"type", *schema.get("required", ())})}
                    for schema in (spec.model_json_schema() for spec in BUILT_IN.values())
                ),
                {
                    "type": "object",
                    "description": "A candidate of your own, by the dotted path of its class.",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "pattern": r"\."}},
                },
            ]
        }
    ),
]
"""A field of a spec that holds any candidate."""
