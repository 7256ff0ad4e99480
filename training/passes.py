"""Which passes over the data a round takes: on all workers in turn, or side by side. No Ray.

A step of a small candidate is over before workers could agree on its gradients. So small ones are
divided: each worker fits its part of them by itself, over the table that it holds anyway, while the
others do theirs; and what is large, or learns from all rows of a batch together, takes all workers.
What a candidate comes to is the same either way, up to rounding.

How a round is divided, and how far a worker has come with its part, is kept beside the checkpoints
of the job: one that goes on after it was killed ends in the same bits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.fingerprint import fingerprint
from features.storage import Storage
from training.agenda import Due, grouped
from training.candidate import PlannedCandidate
from training.fitting.checkpoint import PROGRESS_FILE, FitState, read_checkpoints, write_checkpoint
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
    place = f"{folder}/{FOLDER}/{_key([c.fingerprint for c in due.candidates])}.json"
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


class Progress:
    """The checkpoints of a pass that one worker makes by itself."""

    def __init__(self, storage: Storage, *, folder: str, group: Group) -> None:
        self._storage = storage
        self._names = [candidate.fingerprint for candidate in group]
        self._folder = f"{folder}/{FOLDER}/{_key(self._names)}"

    def read(self) -> list[FitState] | None:
        """The last whole checkpoint, if there is one."""
        found = self._numbers(whole=True)
        if not found:
            return None
        with tempfile.TemporaryDirectory() as local:
            place = f"{self._folder}/{max(found):06d}"
            for name in self._storage.list(place):
                Path(local, name).write_bytes(self._storage.read(f"{place}/{name}"))
            return read_checkpoints(local)

    def save(self, states: Sequence[FitState]) -> None:
        """Write a checkpoint, and delete those before it."""
        before = self._numbers(whole=False)
        place = f"{self._folder}/{max(before, default=0) + 1:06d}"
        with tempfile.TemporaryDirectory() as local:
            write_checkpoint(*states, folder=local, about={"candidates": self._names})
            # The one that makes it whole comes last.
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == PROGRESS_FILE):
                self._storage.replace(f"{place}/{path.name}", path.read_bytes())
        self._storage.delete(
            [
                entry.path
                for entry in self._storage.walk(self._folder)
                if not entry.path.startswith(f"{place}/")
            ]
        )

    def _numbers(self, *, whole: bool) -> list[int]:
        return [
            int(entry.path.split("/")[-2])
            for entry in self._storage.walk(self._folder)
            if not whole or entry.path.endswith(f"/{PROGRESS_FILE}")
        ]


def _key(names: Sequence[str]) -> str:
    value: list[Any] = sorted(names)
    return fingerprint(value)
