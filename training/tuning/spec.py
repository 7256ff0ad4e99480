"""A candidate on live encoders: what the YAML says of which weights are tuned, and how.

    - type: finetune
      head: {type: early, modalities: [caption, photo], learning_rate: 1e-3}
      encoders: {caption: {tune: lora, rank: 8}}
      encoder_learning_rate: 1e-4

The head is any fusion, which learns from the task's loss, or a contrastive alignment, which has
one of its own; not a translation, nor what is solved in closed form. Of its modalities those under
`encoders` are embedded anew at each step, from their payloads, by the encoder that the features
name; the others come from the store, as ever. What the loop and the step see is a model like any
other, and a batch whose embeddings of a live modality are its prepared payloads
(`training.tuning.model`), which threads read ahead of the step (`training.tuning.table`).

Before the first step the embeddings are those of the store, by whose statistics the head scales
them. The encoders' own dropout stays off and so do the statistics of batch norms: a step draws
nothing but what belongs to rows of the global batch, so that the number of workers changes
nothing. Payloads, encoders and weights are in the snapshot's identity already, so a candidate's
fingerprint needs nothing else.

A contrastive loss wants all rows of a large batch at once. With the alignment's `cache_rows` an
encoder holds the activations of so many rows alone, and computes them again in the backward pass
(`training.models.grad_cache`). What is fitted is judged as it will be used: its encoders embed the
rows that are told of once, as stage 1 would store them, and the head is evaluated over those
(`training.tuning.embedded`).

What is stored (`training.tuning.files`) is two things that exist already: the head, a model over
embeddings, and a folder for each tuned encoder, as the hub has them, LoRA merged into its
weights. Stage 1 takes the folder as `model:`, with a fingerprint of its own, and a registered
model scores through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from features.fingerprint import Execution, Spec
from features.spec import Name
from training.spec import CandidateSpec, InputSpec, Objective, Positive

if TYPE_CHECKING:
    from torch import nn

    from features.encoders import EncoderSpec
    from training.task import TaskSpec

Count = Annotated[int, pydantic.Field(ge=1)]


class TuningSpec(Spec):
    """Which weights of an encoder are tuned."""

    tune: Literal["full", "last", "lora"]
    """All that its embeddings depend on (`full`); its last `layers`, and what follows them
    (`last`); or matrices of a low `rank` that are added to those of its linear layers, which stay
    as they are (`lora`: Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""
    layers: Count | None = None
    """Layers that are tuned, counted from the end (of `last`)."""
    rank: Count | None = None
    """Rank of the matrices (of `lora`); 8 if it is not given."""
    alpha: Positive | None = None
    """Their product is multiplied by `alpha` / `rank` (of `lora`); twice the rank if it is not
    given."""

    @pydantic.model_validator(mode="after")
    def _options_fit(self) -> Self:
        options = {"last": ("layers",), "lora": ("rank", "alpha"), "full": ()}[self.tune]
        for name in ("layers", "rank", "alpha"):
            if getattr(self, name) is not None and name not in options:
                raise ValueError(f"`{name}` is not an option of `tune: {self.tune}`; leave it out")
        if self.tune == "last" and self.layers is None:
            raise ValueError("`tune: last` needs `layers`: how many of the last layers are tuned")
        return self


OF_THE_HEAD = ("modalities", "seed", "width", "dropout", "modality_dropout", "weight_decay")
"""What a candidate has and a head says for it; and its learning rate."""


def _long_tuning(value: object) -> object:
    return {"tune": value} if isinstance(value, str) else value


def _parse_head(value: object) -> CandidateSpec:
    from training.built_in import parse_candidate

    return parse_candidate(value)


class FinetuneSpec(CandidateSpec):
    """A fusion or an alignment whose encoders are tuned with it, from the payloads."""

    tunes_encoders: ClassVar[bool] = True

    type: Literal["finetune"] = "finetune"
    head: Annotated[
        pydantic.SerializeAsAny[CandidateSpec],
        pydantic.BeforeValidator(_parse_head),
        pydantic.WithJsonSchema({"type": "object", "required": ["type"]}),
    ]
    """A fusion or an alignment; its modalities, seed, dropout, learning rate and
    weight decay are those of the whole."""
    encoders: Annotated[
        dict[Name, Annotated[TuningSpec, pydantic.BeforeValidator(_long_tuning)]],
        pydantic.Field(min_length=1),
        # Written out, since a candidate's schema is put into that of a pipeline as it is.
        pydantic.WithJsonSchema(
            {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {
                    "anyOf": [
                        {"enum": ["full", "lora"]},
                        TuningSpec.model_json_schema(),
                    ]
                },
            }
        ),
    ]
    """Per modality that is embedded anew, what is tuned of its encoder; `full` alone stands for
    `{tune: full}`. The other modalities' embeddings come from the store."""
    encoder_learning_rate: Positive = 2e-5
    """Highest learning rate of the encoders; the head has its own. Low-rank matrices want about
    ten times as much as whole weights."""
    gradient_checkpointing: Annotated[bool, Execution] = False
    """Whether an encoder's layers are computed again in the backward pass, instead of what they
    have computed being kept: less memory, a third more time. It changes no result."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_the_head_says(cls, value: Any) -> Any:
        """Take from the head what the two have in common; refuse it beside the head."""
        if not isinstance(value, Mapping) or "head" not in value:
            return value
        head = _parse_head(value["head"])
        common = {name: getattr(head, name) for name in (*OF_THE_HEAD, "learning_rate")}
        for name, of_head in common.items():
            if name in value and _plain(value[name]) != _plain(of_head):
                raise ValueError(f"`{name}` belongs into `head`, which says {of_head!r}")
        return {**value, "head": head, **common}

    @classmethod
    def _default_name(cls, value: Mapping[str, Any]) -> str:
        head = value.get("head")
        return f"finetune-{head.name}" if isinstance(head, CandidateSpec) else "finetune"

    @pydantic.model_validator(mode="after")
    def _head_fits(self) -> Self:
        if isinstance(self.head, FinetuneSpec):
            raise ValueError("`head` is itself a `finetune`; name the fusion alone")
        if self.head.untunable is not None:
            raise ValueError(
                f"`head` is {self.head.type!r}, {self.head.untunable}; encoders are tuned under a "
                "fusion, `single` or `alignment`"
            )
        return self

    @property
    def objective(self) -> Objective:  # type: ignore[override]
        """The head's."""
        return self.head.objective

    def identity(self) -> dict[str, Any]:
        """As ever, with the version of the head's code."""
        return {**super().identity(), "head_version": self.head.version}

    def named_modalities(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for where, modality in self.head.named_modalities():
            yield ("head", *where), modality
        for modality in self.encoders:
            yield ("encoders", modality), modality

    def resolved_modalities(self, available: Sequence[str]) -> tuple[str, ...]:
        resolved = self.head.resolved_modalities(available)
        for modality in self.encoders:
            if modality not in resolved:
                raise ValueError(
                    f"candidate {self.name!r}: `encoders` names {modality!r}, and the head takes "
                    f"{', '.join(resolved)}"
                )
        return resolved

    def check_encoders(
        self, encoders: Mapping[str, EncoderSpec]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if any(modality not in encoders for _, modality in self.head.named_modalities()):
            return  # which is told where it is named
        try:
            taken = self.head.resolved_modalities(tuple(encoders))
        except ValueError as error:
            yield ("head",), str(error)
            return
        for modality in self.encoders:
            if modality not in taken:
                yield (
                    ("encoders", modality),
                    f"the head does not take {modality!r}; it takes {', '.join(taken)}",
                )
            elif modality in encoders and not encoders[modality].trainable:
                able = [m for m in taken if m in encoders and encoders[m].trainable]
                yield (
                    ("encoders", modality),
                    f"the encoder {encoders[modality].type!r} of {modality!r} has no weights that "
                    f"can be tuned; those that have: {', '.join(able) or 'none of this file'}",
                )

    def check_task(self, task: TaskSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for where, text in self.head.check_task(task):
            yield ("head", *where), text

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        """The head on live encoders; of inputs that know no encoders, the head alone."""
        from training.tuning.model import LiveInput, LiveModel, TunedEncoder

        head = self.head.build(inputs=inputs, outputs=outputs)
        live = {m: source for m, source in inputs.items() if isinstance(source, LiveInput)}
        if not live:
            return head
        return LiveModel(
            head,
            encoders={
                m: TunedEncoder(
                    source.encoder,
                    spec=source.spec,
                    tuning=self.encoders[m],
                    gradient_checkpointing=self.gradient_checkpointing,
                    cache_rows=getattr(self.head, "cache_rows", None),
                )
                for m, source in live.items()
            },
            encoder_learning_rate=self.encoder_learning_rate,
        )


def head_of(spec: CandidateSpec) -> CandidateSpec:
    """The candidate whose model is over embeddings: the head, of one that tunes encoders."""
    return spec.head if isinstance(spec, FinetuneSpec) else spec


def _plain(value: object) -> object:
    """A value as JSON would have it, in which a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value
