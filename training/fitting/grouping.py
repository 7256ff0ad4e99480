"""Which candidates are fitted in one pass: those of one architecture, as many as pay. No torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from training.spec import OWN, CandidateSpec
from training.training_spec import TrainingSpec

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

    A group stands where its first member does. What is compiled is fitted alone. Of what is small
    there are as many groups as workers, since each can fit some of them by itself.
    """
    groups: list[list[Item]] = []
    open_groups: dict[str, list[Item]] = {}
    keys = [
        None if training.compile else architecture(spec, modalities=own)
        for spec, own in zip(specs, modalities, strict=True)
    ]
    alike = Counter(keys)
    for item, spec, key in zip(items, specs, keys, strict=True):
        most = most_together(spec, training=training)
        if is_small(spec, training=training):
            most = min(most, math.ceil(alike[key] / training.workers))
        found = open_groups.get(key) if key is not None else None
        if found is None or len(found) >= most:
            found = []
            groups.append(found)
            if key is not None:
                open_groups[key] = found
        found.append(item)
    return groups


def is_small(spec: CandidateSpec, *, training: TrainingSpec) -> bool:
    """Whether a step is so short that workers gain nothing by taking it together.

    Those that cannot be stacked are not counted among them: most work on sequences.
    """
    numbers = training.batch_size // training.accumulate * spec.width
    return spec.stackable and spec.objective == "task" and numbers <= LARGEST_BATCH


def most_together(spec: CandidateSpec, *, training: TrainingSpec) -> int:
    """Candidates as this one that are fitted in one pass at most."""
    if training.together is not None:
        return training.together
    return LARGEST if is_small(spec, training=training) else 1
