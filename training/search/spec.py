"""A search: what the YAML says of hyperparameters that are to be found.

    search:
      of: early
      trials: 24
      space:
        learning_rate: {low: 1e-4, high: 1e-2, log: true}
        dropout: {low: 0.0, high: 0.5}
        width: [64, 128, 256]

Trials are the candidate `of` with other values of its fields. They are proposed in generations, and
stopped by successive halving (Jamieson & Talwalkar 2016, https://arxiv.org/abs/1502.07943): all are
fitted for a few epochs, the best of them for more, and the best of those for as many as any other
candidate; see `training.search.walk`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import pydantic

from features.fingerprint import Spec, nearest_hint
from training.models.ensemble_spec import EnsembleSpec
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.tuning.spec import FinetuneSpec

Count = Annotated[int, pydantic.Field(ge=1)]
Value = bool | int | float | str
FIXED = ("type", "name", "modalities", "modality", "seed")
"""Fields that are what a candidate is, and not how it is fitted."""


class RangeSpec(Spec):
    """Numbers from one to another; whole ones if the candidate's field takes these."""

    low: Annotated[float, pydantic.Field(allow_inf_nan=False)]
    high: Annotated[float, pydantic.Field(allow_inf_nan=False)]
    log: bool = False
    """Whether it is the logarithm that is drawn evenly."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"`low` {self.low:g} is not below `high` {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low` {self.low:g} has no logarithm; it must be above 0")
        return self


def _parse_dimension(value: object) -> object:
    if isinstance(value, RangeSpec):
        return value
    if isinstance(value, Mapping):
        return RangeSpec.model_validate(value)
    if isinstance(value, list | tuple):
        if len(value) < 2 or not all(isinstance(item, Value) for item in value):
            raise ValueError("a list of choices has two values or more, of text or numbers")
        if len(set(value)) < len(value):
            raise ValueError("a choice stands in the list twice")
        return tuple(value)
    raise ValueError("a field is searched in a range, {low: 0.1, high: 0.5}, or a list of choices")


Dimension = Annotated[RangeSpec | tuple[Value, ...], pydantic.BeforeValidator(_parse_dimension)]


class SearchSpec(Spec):
    """Which fields of a candidate are searched, and how long."""

    of: str
    """Name of the candidate whose fields are searched."""
    space: Annotated[dict[str, Dimension], pydantic.Field(min_length=1)]
    """Per field a range `{low, high, log}` or a list of choices."""
    trials: Annotated[int, pydantic.Field(ge=2)] = 24
    """Values that are tried."""
    generation: Count = 8
    """Trials that are proposed at once, and fitted beside one another. Those of the first are drawn
    at random, the others from what all before them have come to."""
    rungs: Count = 3
    """How often trials are compared. Those of the last rung take all of `training.max_epochs`."""
    reduction: Annotated[int, pydantic.Field(ge=2)] = 3
    """From rung to rung one trial of so many goes on, for so many times the epochs."""
    finalists: Count = 2
    """Trials of the last rung that are fitted again with other seeds."""
    seeds: Count = 3
    """Fits of each finalist, of which the first is the trial itself."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Decides what is proposed."""

    @pydantic.model_validator(mode="after")
    def _enough_trials(self) -> Self:
        if self.finalists > self.trials:
            raise ValueError(f"`finalists` {self.finalists} are more than `trials` {self.trials}")
        return self

    @property
    def name(self) -> str:
        """What its trials' names begin with."""
        return f"{self.of}-search"

    def survivors(self, rung: int) -> int:
        """How many trials come to a rung, counted from 0."""
        return max(self.finalists, math.ceil(self.trials / self.reduction**rung))

    def fits(self, base: CandidateSpec) -> int:
        """How often a finalist is fitted: by `seeds`, if there is something to draw."""
        return 1 if "seed" in base.unused else self.seeds

    def training(self, training: TrainingSpec, *, rung: int) -> TrainingSpec:
        """How the trials of a rung are trained: the pipeline's way, with fewer epochs."""
        share: int = self.reduction ** (self.rungs - 1 - rung)
        return training.model_copy(update={"max_epochs": math.ceil(training.max_epochs / share)})

    def trial(
        self, base: CandidateSpec, *, number: int, values: Mapping[str, Value]
    ) -> CandidateSpec:
        """A candidate with these values; pydantic.ValidationError if it takes them not together."""
        name = f"{self.name}-{number:02}"
        return _changed(base, {**values, "name": name})

    def repeated(self, trial: CandidateSpec, *, number: int) -> CandidateSpec:
        """A trial with another seed, counted from 1; 0 is the trial itself."""
        if number == 0:
            return trial
        seed = trial.seed + number
        return _changed(trial, {"seed": seed, "name": f"{trial.name}-seed-{seed}"})

    def problems(
        self, base: CandidateSpec, *, training: TrainingSpec
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What is wrong of it for this candidate: place in the spec, text."""
        if isinstance(base, EnsembleSpec | FinetuneSpec):
            yield ("of",), f"{base.name!r} is {base.type!r}, which has no fields to search"
            return
        least = self.reduction ** (self.rungs - 1)
        if training.max_epochs < least:
            yield (
                ("rungs",),
                f"the first of {self.rungs} rungs would have less than one of the "
                f"{training.max_epochs} `training.max_epochs`; give fewer `rungs`, or {least} "
                "epochs or more",
            )
        allowed = sorted(set(type(base).model_fields) - {*FIXED, *base.unused})
        for field, dimension in self.space.items():
            if field not in allowed:
                yield (
                    ("space", field),
                    f"{base.type!r} has no field {field!r} that can be searched; "
                    f"{nearest_hint(field, allowed)}allowed: {', '.join(allowed)}",
                )
                continue
            if isinstance(dimension, RangeSpec):
                problem = _not_a_range(dimension, of=getattr(base, field))
                if problem is not None:
                    yield ("space", field), problem
                    continue
            for key, value in _ends(dimension, whole=is_whole(base, field)):
                try:
                    self.trial(base, number=self.trials, values={field: value})
                except pydantic.ValidationError as error:
                    first = error.errors()[0]
                    # What depends on another field is told of the combinations, as they come.
                    if first["loc"] == (field,):
                        text = first["msg"].removeprefix("Value error, ")
                        yield ("space", field, key), f"{text} (value: {value!r})"


def is_whole(base: CandidateSpec, field: str) -> bool:
    """Whether a field of a candidate takes whole numbers."""
    value = getattr(base, field)
    return isinstance(value, int) and not isinstance(value, bool)


def _not_a_range(dimension: RangeSpec, *, of: object) -> str | None:
    if not isinstance(of, int | float) or isinstance(of, bool):
        return f"it holds {of!r}, which is no number; give a list of choices"
    if isinstance(of, int) and not (dimension.low.is_integer() and dimension.high.is_integer()):
        return f"it takes whole numbers, not {dimension.low:g} to {dimension.high:g}"
    return None


def _ends(dimension: Dimension, *, whole: bool) -> Iterator[tuple[str | int, Value]]:
    if isinstance(dimension, RangeSpec):
        for key in ("low", "high"):
            value: float = getattr(dimension, key)
            yield key, int(value) if whole else value
    else:
        yield from enumerate(dimension)


def _changed(spec: CandidateSpec, values: Mapping[str, Any]) -> CandidateSpec:
    return type(spec).model_validate({**spec.model_dump(), **values})


def search_problems(
    searches: Sequence[SearchSpec],
    *,
    candidates: Sequence[CandidateSpec],
    training: TrainingSpec,
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the searches of a pipeline: place in its YAML, text."""
    by_name = {candidate.name: candidate for candidate in candidates}
    for i, search in enumerate(searches):
        if search.of not in by_name:
            yield (
                ("search", i, "of"),
                f"there is no candidate {search.of!r}; {nearest_hint(search.of, by_name)}"
                f"candidates: {', '.join(by_name)}",
            )
            continue
        if search.of in [other.of for other in searches[:i]]:
            yield (
                ("search", i, "of"),
                f"{search.of!r} is searched already; put all its fields into one `space`, or give "
                "the candidate twice, by two names",
            )
        for where, text in search.problems(by_name[search.of], training=training):
            yield ("search", i, *where), text
        for number, candidate in enumerate(candidates):
            if candidate.name == search.name or candidate.name.startswith(f"{search.name}-"):
                yield (
                    ("candidates", number, "name"),
                    f"{candidate.name!r} is what the search of {search.of!r} or a trial of it is "
                    "called; take another name",
                )
