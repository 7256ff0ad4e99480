"""The candidates that align modalities in one space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic

from features.fingerprint import Execution, Spec, nearest_hint
from features.spec import Name
from training.spec import OWN, CandidateSpec, InputSpec, Objective, Width

if TYPE_CHECKING:
    from torch import nn

    from training.task import TaskSpec


class ClassNames(Spec):
    """Texts for the classes, by which a space tells them without having learned from a label."""

    modality: Name
    """The modality of texts whose encoder and tower the names go through."""
    templates: tuple[str, ...] = ("{}",)
    """Wordings, in which `{}` stands for a class's name; of several, the mean is taken."""

    @pydantic.field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [text for text in templates if text.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(f"each has one `{{}}` where the name stands, unlike {wrong}")
        return templates


class SpaceSpec(CandidateSpec):
    """Base of the candidates that align modalities, judged by retrieval and by probes."""

    objective: ClassVar[Objective] = "own"
    least_modalities: ClassVar[int] = 2

    class_names: ClassNames | None = None
    """If given, it is told too how often a row's nearest class name is its own (zero-shot)."""

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from super().named_modalities()
        yield from self._roles()

    def _roles(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Modalities that have a part of their own, with their place within the spec."""
        if self.class_names is not None:
            yield ("class_names", "modality"), self.class_names.modality

    def resolved_modalities(self, available: Sequence[str]) -> tuple[str, ...]:
        # One with a part of its own is named, but not instead of the others.
        parts = {where[0]: None for where, _ in self._roles()}
        others = self.model_copy(update=parts)
        resolved = super(SpaceSpec, others).resolved_modalities(available)
        self._check_modalities(resolved)
        return resolved

    def _check_modalities(self, modalities: Sequence[str]) -> None:
        super()._check_modalities(modalities)
        for where, modality in self._roles():
            if modality not in modalities:
                raise ValueError(
                    f"`{'.'.join(where)}` {modality!r} is none of the candidate's modalities; "
                    f"{nearest_hint(modality, modalities)}modalities: {', '.join(modalities)}"
                )


class AlignmentSpec(SpaceSpec):
    """Contrastive alignment: towers into one space that learn which rows belong together."""

    version: ClassVar[int] = 2

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
    positives: Literal["payload", "class"] = "payload"
    """Which further rows of a batch are right for a row: those that hold the same payload, or by
    `class` those with the same label too, in place of counting as wrong (SupCon). Rows without a
    label are as ever. For classification."""
    learn_temperature: bool = True
    """Whether the temperature is learned from there, within 0.01 to 1, or stays as it is."""
    cache_rows: Annotated[int | None, Execution, pydantic.Field(ge=1)] = None
    """Rows of a worker that the towers take at once, and the encoders that are tuned with them
    (GradCache), if they are not to hold a whole batch's activations; it changes no result."""

    def identity(self) -> dict[str, Any]:
        """As it was before there were positives by class, if there are none."""
        found = super().identity()
        if self.positives == "payload":
            del found["positives"]
        return found

    def check_task(self, task: TaskSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from super().check_task(task)
        if self.positives == "class" and task.type != "classification":
            yield (
                ("positives",),
                f"a {task.type} task has no classes to count as belonging together; leave it out",
            )

    def _roles(self) -> Iterator[tuple[tuple[str, ...], str]]:
        yield from super()._roles()
        if self.anchor is not None:
            yield ("anchor",), self.anchor

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.alignment import Alignment

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
            by_class=self.positives == "class",
            cache_rows=self.cache_rows,
        )


class CorrelationSpec(SpaceSpec):
    """Linear canonical correlation: the classical baseline of an alignment, in closed form.

    Nothing is drawn and nothing iterated, so there is no seed, dropout, learning rate or decay.
    """

    untunable: ClassVar[str | None] = "which is solved in closed form, without a gradient"
    unused: ClassVar[tuple[str, ...]] = (*OWN[1:], "width")
    # Its validation loss is a mean over batches, computed as precisely as they are.
    trained_by: ClassVar[tuple[str, ...] | None] = ("batch_size", "precision")

    type: Literal["cca"] = "cca"
    dim: Width = 64
    """Width of the shared space: the number of canonical variates."""
    regularisation: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.01
    """What is added to each modality's variances, as a share of their mean."""

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.correlation import CanonicalCorrelation

        return CanonicalCorrelation(
            inputs, outputs=outputs, dim=self.dim, regularisation=self.regularisation
        )
