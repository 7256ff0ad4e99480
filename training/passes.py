"""Which passes over the data a round takes: on all workers in turn, or side by side. No torch.

A step of a small candidate is over before workers could agree on its gradients. So small ones are
divided: each worker fits its part of them by itself, over the table that it holds anyway, while the
others do theirs; and what is large, or learns from all rows of a batch together, takes all workers.
What a candidate comes to is the same either way, up to rounding.

How a round is divided, and how far a worker has come with its part, is kept beside the checkpoints
of the job: one that goes on after it was killed ends in the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from features.fingerprint import fingerprint
from features.storage import Storage
from training.agenda import Due, grouped
from training.candidate import PlannedCandidate
from training.fitting.grouping import is_small
from training.training_spec import TrainingSpec

RUNS_FOLDER = "train-runs"
"""Where a store keeps what jobs that are not done would go on from."""
FOLDER = "apart"
Group = Sequence[PlannedCandidate]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Groups of candidates, each fitted in one pass over the data."""

    apart: Sequence[Group]
    """Each by one worker, side by side: the first by the first, and so on in turn."""
    together: Sequence[Group]
    """Each by all workers, one after another, when those are done."""

    def of_worker(self, rank: int, *, workers: int) -> Sequence[Group]:
        """What one worker fits by itself."""
        return self.apart[rank::workers]


def names_of(groups: Sequence[Group]) -> list[list[str]]:
    """The names of the candidates of each group."""
    return [[candidate.spec.name for candidate in group] for group in groups]


def divide(
    candidates: Sequence[PlannedCandidate], *, training: TrainingSpec, in_memory: bool = True
) -> Passes:
    """The passes in which some candidates are fitted.

    Side by side only if all embeddings are in memory and every worker gets some.
    """
    groups = grouped(candidates, training=training)
    small = [group for group in groups if is_small(group[0].spec, training=training)]
    if training.workers == 1 or len(small) < training.workers or not in_memory:
        return Passes(apart=[], together=groups)
    return Passes(apart=small, together=[group for group in groups if group not in small])


def settled(
    storage: Storage, *, folder: str, due: Due, pending: Sequence[PlannedCandidate], passes: Passes
) -> Passes:
    """The passes of a round: as they were settled before it was interrupted, if it was.

    Of those that are settled now a file is left in the job's `folder`, for the next attempt. A pass
    of which all are done is left out; one of which some are done is gone through once more.
    """
    place = f"{folder}/{FOLDER}/{key_of([c.fingerprint for c in due.candidates])}.json"
    by_name = {candidate.fingerprint: candidate for candidate in reversed(due.candidates)}
    waiting = {candidate.fingerprint for candidate in pending}
    try:
        kept = json.loads(storage.read(place))
    except FileNotFoundError:
        if passes.apart:
            names = [[candidate.fingerprint for candidate in group] for group in passes.apart]
            storage.replace(place, json.dumps(names).encode())
        return passes
    apart = [[by_name[name] for name in names] for names in kept if waiting & set(names)]
    of_those = {name for names in kept for name in names}
    rest = [
        [candidate for candidate in group if candidate.fingerprint not in of_those]
        for group in (*passes.apart, *passes.together)
    ]
    return Passes(apart=apart, together=[group for group in rest if group])


def key_of(names: Sequence[str]) -> str:
    """What some candidates are kept under, in any order."""
    value: list[Any] = sorted(names)
    return fingerprint(value)
