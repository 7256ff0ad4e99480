"""Which candidates are fitted in one pass: those of one architecture, as many as pay. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from training.spec import CandidateSpec
from training.training_spec import TrainingSpec

OWN = ("name", "seed", "learning_rate", "weight_decay", "dropout", "modality_dropout")
"""What candidates of one architecture may differ in."""
LARGEST = 16
"""Candidates in a stack, if `training.together` does not say: more gain nothing on a CPU."""
LARGEST_BATCH = 2**15
"""Hidden numbers of one (batch size × width) beyond which a step is all computing, and a stack
gains nothing on a CPU."""

Item = TypeVar("Item")


def architecture(spec: CandidateSpec, *, modalities: Sequence[str]) -> str | None:
    """What is equal in candidates that can be fitted in one pass; None if this one cannot be."""
    if not spec.stackable or spec.objective != "task":
        return None
    rest = spec.model_dump(mode="json", exclude=set(OWN))
    kind = f"{type(spec).__module__}.{type(spec).__qualname__}"
    return json.dumps([kind, rest, list(modalities)], sort_keys=True)


def group(
    items: Sequence[Item],
    *,
    specs: Sequence[CandidateSpec],
    modalities: Sequence[Sequence[str]],
    training: TrainingSpec,
) -> list[list[Item]]:
    """The items, one a spec, in the groups that are fitted in one pass, in order.

    A group stands where its first member does. What is compiled is fitted alone.
    """
    groups: list[list[Item]] = []
    open_groups: dict[str, list[Item]] = {}
    for item, spec, own in zip(items, specs, modalities, strict=True):
        key = None if training.compile else architecture(spec, modalities=own)
        found = open_groups.get(key) if key is not None else None
        if found is None or len(found) >= most_together(spec, training=training):
            found = []
            groups.append(found)
            if key is not None:
                open_groups[key] = found
        found.append(item)
    return groups


def most_together(spec: CandidateSpec, *, training: TrainingSpec) -> int:
    """Candidates as this one that are fitted in one pass at most."""
    if training.together is not None:
        return training.together
    numbers = training.batch_size // training.accumulate * spec.width
    return LARGEST if numbers <= LARGEST_BATCH else 1
