"""Ensembles: candidates made of candidates that are fitted already, with no step of their own.

    candidates:
      - {type: early, name: a}
      - {type: early, name: b, learning_rate: 3e-4}
      - {type: gated}
      - {type: soup, of: [a, b]}
      - {type: average, of: [soup, gated]}
      - {type: translation}
      - {type: filled, of: [gated, translation]}

`of` names candidates that stand above, or a search (`early-search`, of a search `of: early`), which
stands for all that it finds. `members.with_members` puts what they are in the place of their
names, so that an ensemble's spec is whole by itself: what it is does not depend on what its
members are called, and its record alone tells how its model is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic

from training.models.translation_spec import TranslationSpec
from training.spec import OWN, CandidateSpec, InputSpec
from training.task import TaskSpec

if TYPE_CHECKING:
    from torch import nn

Link = Literal["softmax", "sigmoid", "identity"]
LINKS: Mapping[str, Link] = {
    "classification": "softmax",
    "multilabel": "sigmoid",
    "regression": "identity",
}
"""By type of task, what makes answers of a model's outputs."""
Place = tuple[str | int, ...]


def _parse_member(value: object) -> str | CandidateSpec:
    from training.built_in import parse_candidate

    if isinstance(value, str):
        return value
    return parse_candidate(value)


Member = Annotated[
    str | pydantic.SerializeAsAny[CandidateSpec],
    pydantic.BeforeValidator(_parse_member),
    pydantic.WithJsonSchema({"type": "string"}),
]


class EnsembleSpec(CandidateSpec):
    """Base of the candidates that are made of others."""

    untunable: ClassVar[str | None] = "which is made of candidates that are fitted already"
    unused: ClassVar[tuple[str, ...]] = (*OWN[1:], "width")

    of: Annotated[tuple[Member, ...], pydantic.Field(min_length=1)]
    """Names of the candidates that it is made of, which stand above it; or of a search, as
    `early-search`, for all that it finds."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _only_members(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for name in (*OWN[2:], "width", "modalities"):
                default = cls.model_fields[name].default
                if name in value and value[name] != default:
                    raise ValueError(
                        f"`{name}` is a matter of the candidates that an ensemble is made of; "
                        "leave it out here"
                    )
        return value

    @property
    def members(self) -> tuple[CandidateSpec, ...]:
        """What it is made of; ValueError while it knows no more of them than their names."""
        names = [member for member in self.of if isinstance(member, str)]
        if names:
            raise ValueError(
                f"candidate {self.name!r} is made of {', '.join(names)}, which are names alone; "
                "plan it together with the candidates of these names"
            )
        return tuple(member for member in self.of if isinstance(member, CandidateSpec))

    def with_members(
        self, members: Sequence[CandidateSpec | str], *, task: TaskSpec
    ) -> EnsembleSpec:
        """The same with candidates in the place of their names."""
        return self.model_copy(update={"of": tuple(members)})

    def problems(self, *, task: TaskSpec) -> Iterator[tuple[Place, str]]:
        """What is wrong with its members, each with its place in the spec."""
        for i, member in enumerate(self.members):
            if member.tunes_encoders:
                yield (
                    ("of", i),
                    f"{member.name!r} tunes its encoders, so it sees other embeddings than the "
                    "others; leave it out",
                )
        if task.type not in LINKS:
            yield ("type",), f"a {task.type} task has no answers that could be joined"

    def identity(self) -> dict[str, Any]:
        """As ever, with the versions of the members' code."""
        return {
            **super().identity(),
            "member_versions": [m.version for m in self.of if isinstance(m, CandidateSpec)],
        }

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for i, member in enumerate(self.of):
            if isinstance(member, CandidateSpec):
                for where, modality in member.named_modalities():
                    yield ("of", i, *where), modality

    def resolved_modalities(self, available: Sequence[str]) -> tuple[str, ...]:
        found = {m for member in self.members for m in member.resolved_modalities(available)}
        return tuple(sorted(found))


class AverageSpec(EnsembleSpec):
    """The mean of several candidates' answers: of probabilities, or of numbers."""

    type: Literal["average"] = "average"
    link: Link | None = None
    """What makes answers of the outputs, as the task has it; filled in."""

    def with_members(
        self, members: Sequence[CandidateSpec | str], *, task: TaskSpec
    ) -> EnsembleSpec:
        link = self.link or LINKS.get(task.type)
        return self.model_copy(update={"of": tuple(members), "link": link})

    def problems(self, *, task: TaskSpec) -> Iterator[tuple[Place, str]]:
        yield from super().problems(task=task)
        if task.type in LINKS and self.link != LINKS[task.type]:
            yield (
                ("link",),
                f"the answers of a {task.type} task are by {LINKS[task.type]!r}, not "
                f"{self.link!r}; leave it out",
            )

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.ensemble import Averaged

        assert self.link is not None, "the task's link was filled in when it was planned"
        taken = [member.resolved_modalities(tuple(inputs)) for member in self.members]
        models = [
            member.build(inputs={m: inputs[m] for m in modalities}, outputs=outputs)
            for member, modalities in zip(self.members, taken, strict=True)
        ]
        return Averaged(models, modalities=taken, link=self.link)


class SoupSpec(EnsembleSpec):
    """The mean of the weights of several fits of one architecture, chosen by greedy search.

    Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1: from the best on, a fit is
    added if the validation does not get worse by it. Fits average well if they started from the
    same weights, and so have the same `seed`; of others the soup is as a rule the best one alone.
    """

    type: Literal["soup"] = "soup"

    def problems(self, *, task: TaskSpec) -> Iterator[tuple[Place, str]]:
        yield from super().problems(task=task)
        for i, member in enumerate(self.members):
            if isinstance(member, EnsembleSpec) or member.objective != "task":
                yield (
                    ("of", i),
                    f"{member.name!r} is {member.type!r}, which is not fitted by the task's loss "
                    "alone, so its weights are not averaged; join its answers by an `average`",
                )
            elif (different := _difference(member, self.members[0])) is not None:
                yield (
                    ("of", i),
                    f"{member.name!r} differs from {self.members[0].name!r} in `{different}`; the "
                    f"fits of a soup may differ in {', '.join(OWN[1:])} alone",
                )

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        return self.members[0].build(inputs=inputs, outputs=outputs)


class FilledSpec(EnsembleSpec):
    """A candidate that is given what is missing, as a translation draws it from what is there.

    `of` names the candidate and the translation. Beside the candidate itself in the table it tells
    what filling gains over leaving out: both are the same weights, on the same rows. What was
    filled in is told in its answers.
    """

    type: Literal["filled"] = "filled"

    def problems(self, *, task: TaskSpec) -> Iterator[tuple[Place, str]]:
        yield from super().problems(task=task)
        if len(self.of) != 2:
            yield ("of",), "it is made of two, a candidate and a translation: [early, translation]"
            return
        answering, filling = self.members
        if isinstance(answering, EnsembleSpec) or answering.objective != "task":
            yield (
                ("of", 0),
                f"{answering.name!r} is {answering.type!r}; name a candidate that is fitted by the "
                "task's loss",
            )
        if not isinstance(filling, TranslationSpec):
            yield (
                ("of", 1),
                f"{filling.name!r} is {filling.type!r}, which draws no modality from another; name "
                "a `translation`",
            )

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.ensemble import Filled

        taken = [member.resolved_modalities(tuple(inputs)) for member in self.members]
        answering, filling = (
            member.build(inputs={m: inputs[m] for m in modalities}, outputs=outputs)
            for member, modalities in zip(self.members, taken, strict=True)
        )
        return Filled(answering, filling, modalities=taken[0])


def _difference(one: CandidateSpec, other: CandidateSpec) -> str | None:
    """A field in which two candidates are not of one architecture."""
    if type(one) is not type(other):
        return "type"
    fields = sorted(set(type(one).model_fields) - set(OWN))
    return next((name for name in fields if getattr(one, name) != getattr(other, name)), None)
