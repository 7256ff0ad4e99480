"""A candidate: what the YAML says of a model to fit, and what such a model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from features.fingerprint import Execution, Spec, nearest_hint
from features.spec import Name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from features.encoders import EncoderSpec
    from training.task import TaskSpec

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Width = Annotated[int, pydantic.Field(ge=1)]
Objective = Literal["task", "own"]
OWN = ("name", "seed", "learning_rate", "weight_decay", "dropout", "modality_dropout")
"""What candidates of one architecture may differ in."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The embeddings that a model takes for one modality, and their statistics."""

    dim: int
    mean: torch.Tensor | None = None
    """float32 `[D]` over the present training rows; None before the weights are loaded."""
    std: torch.Tensor | None = None
    """float32 `[D]`, positive."""
    sequence: bool = False
    """Whether a row's embedding is `[T, D]`, and not `[D]`."""


class CandidateSpec(Spec):
    """Base of all candidates: a model to fit, with its hyperparameters.

    A subclass gives `type` a `Literal` (its name in YAML) and implements `build`. The model's
    `forward(embeddings, presence, masks)` takes `{modality: [B, D]}`, or `[B, T, D]` of sequences,
    `{modality: bool [B]}` and, of sequences alone, `{modality: bool [B, T]}`, and answers
    `[B, outputs]`; what stands in rows and steps that are not present is undefined.
    """

    objective: ClassVar[Objective] = "task"
    """What is minimised: the task's loss of the outputs, over the labelled rows, or the model's
    own `loss_share(batch)`, over the rows that have two of the modalities."""
    untunable: ClassVar[str | None] = None
    """Why encoders cannot be tuned by what is minimised; None if they can."""
    version: ClassVar[int] = 1
    """Raised by one whenever the code changes in a way that can change a result."""
    least_modalities: ClassVar[int] = 1
    unused: ClassVar[tuple[str, ...]] = ()
    """Fields of all candidates of which such a model makes nothing: no part of its identity, and
    refused if they are given."""
    tunes_encoders: ClassVar[bool] = False
    """Whether it is fitted to the payloads, with encoders of its own."""
    trained_by: ClassVar[tuple[str, ...] | None] = None
    """Fields of `training` that can change what it comes to; all, if None."""
    stackable: ClassVar[bool] = False
    """Whether several models that differ in seed, rates, decay or dropout may be fitted in one
    pass, by `torch.func.vmap`: the forward pass has no shape or branch that depends on values, its
    dropout is `RowDropout`, and there is no state but the weights."""

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

    def identity(self) -> dict[str, Any]:
        """As ever, without what is `unused`."""
        return {name: x for name, x in super().identity().items() if name not in self.unused}

    def check_encoders(
        self, encoders: Mapping[str, EncoderSpec]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What keeps the model from taking these modalities' encoders: place in the spec, text."""
        return iter(())

    def check_task(self, task: TaskSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What keeps the model from being fitted for a task: place in the spec, text."""
        for name in self.unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                yield (name,), f"{self.type!r} makes nothing of it; leave it out"

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        """A new model with its first weights drawn from torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__} has no build(); a candidate needs one")
