"""The candidates that align modalities in one space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pydantic

from features.fingerprint import Execution, nearest_hint
from features.spec import Name
from training.spec import CandidateSpec, InputSpec, Objective, Width

if TYPE_CHECKING:
    from torch import nn


class AlignmentSpec(CandidateSpec):
    """Contrastive alignment: towers into one space, judged by retrieval and a linear probe."""

    objective: ClassVar[Objective] = "own"
    version: ClassVar[int] = 2
    least_modalities: ClassVar[int] = 2

    type: Literal["alignment"] = "alignment"
    loss: Literal["infonce", "sigmoid"] = "infonce"
    """A softmax over the batch (CLIP), or a sigmoid for each pair of rows (SigLIP)."""
    anchor: Name | None = None
    """The modality that each of the others is aligned with (ImageBind); every pair of modalities
    if it is not given."""
    dim: Width = 64
    """Width of the shared space."""
    temperature: Annotated[float, pydantic.Field(ge=0.01, le=10)] = 0.07
    """What similarities are divided by, at the first step."""
    learn_temperature: bool = True
    """Whether the temperature is learned from there, within 0.01 to 1, or stays as it is."""
    cache_rows: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Rows of a worker that the towers take at once (GradCache), if they are not to hold a whole
    batch's activations; it changes no result."""

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from super().named_modalities()
        if self.anchor is not None:
            yield ("anchor",), self.anchor

    def resolved_modalities(self, available: Sequence[str]) -> tuple[str, ...]:
        # The anchor is named, but not instead of the others.
        others = self.model_copy(update={"anchor": None})
        resolved = super(AlignmentSpec, others).resolved_modalities(available)
        self._check_modalities(resolved)
        return resolved

    def _check_modalities(self, modalities: Sequence[str]) -> None:
        super()._check_modalities(modalities)
        if self.anchor is not None and self.anchor not in modalities:
            raise ValueError(
                f"`anchor` {self.anchor!r} is none of the candidate's modalities; "
                f"{nearest_hint(self.anchor, modalities)}modalities: {', '.join(modalities)}"
            )

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.alignment import Alignment

        return Alignment(
            inputs,
            outputs=outputs,
            width=self.width,
            dropout=self.dropout,
            dim=self.dim,
            temperature=self.temperature,
            learn_temperature=self.learn_temperature,
            loss=self.loss,
            anchor=self.anchor,
            cache_rows=self.cache_rows,
        )


class CorrelationSpec(CandidateSpec):
    """Linear canonical correlation: the classical baseline of an alignment, in closed form.

    Nothing is iterated, so what is said of dropout, learning rate and weight decay has no effect.
    """

    objective: ClassVar[Objective] = "own"
    least_modalities: ClassVar[int] = 2

    type: Literal["cca"] = "cca"
    dim: Width = 64
    """Width of the shared space: the number of canonical variates."""
    regularisation: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.01
    """What is added to each modality's variances, as a share of their mean."""

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.correlation import CanonicalCorrelation

        return CanonicalCorrelation(
            inputs, outputs=outputs, dim=self.dim, regularisation=self.regularisation
        )
