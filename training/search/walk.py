"""How far a search has come, as the records in the store tell; and its end, kept there too.

    searches/<search>.json      trials with their values, what each came to on which rung, and
                                where it was stopped; written once, when the search is over

A search has no state of its own: each round of it (a generation of trials, the trials of a further
rung, the finalists with other seeds) follows from the spec and from the records of the rounds
before. So it is resumed by looking again, and a job that was killed in the middle of a round
proposes the same round, of which a part is done. Only validation decides. No torch, no Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord, PlannedCandidate, plan_candidates
from training.search.spec import SearchSpec, Value
from training.settings import settle
from training.spec import CandidateSpec
from training.task import TaskSpec
from training.training_spec import Monitored, TrainingSpec

FORMAT = 1
"""Raised by one whenever the code changes what is proposed, or which trials go on."""
FORMAT_OF_OWN = 2
"""The same of candidates with a loss of their own."""


@dataclass(kw_only=True)
class Trial:
    """Values that are tried, and what they have come to."""

    number: int
    values: Mapping[str, Value]
    spec: CandidateSpec
    reached: list[float | None] = field(default_factory=list)
    """Per rung that it came to, the best `TrainingSpec.ranking` of its fit; None if that failed."""
    fingerprints: list[str] = field(default_factory=list)
    """Per rung, the candidate of its fit."""
    by_seed: list[float | None] = field(default_factory=list)
    """Of a finalist, what the last rung came to with each seed, its own first; None if one failed.
    """

    @property
    def settled(self) -> float | None:
        """What these values come to: the mean over the seeds of a finalist, of any other trial its
        one fit on the last rung; None if fewer than half of these were fitted.
        """
        found = settle(self.by_seed or self.reached[-1:])
        return found.mean if found is not None and found.sound else None


@dataclass(frozen=True, kw_only=True)
class Round:
    """Candidates that have to be fitted before a search goes on."""

    title: str
    candidates: tuple[CandidateSpec, ...]
    training: TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search as it stands."""

    spec: SearchSpec
    trials: Sequence[Trial]
    round: Round | None
    """What is to be fitted next; None if it is over."""
    candidates: tuple[CandidateSpec, ...] = ()
    """When it is over: the finalists, the best over all their seeds first, each followed by its
    fits with other seeds, and then the other trials of the last rung. They are candidates like any
    others."""

    @property
    def best(self) -> Trial:
        """The finalist that is best over all its seeds, of a search that is over: one lucky seed
        makes no best trial.
        """
        name = self.candidates[0].name
        return next(trial for trial in self.trials if trial.spec.name == name)


def follow(
    search: SearchSpec,
    *,
    base: CandidateSpec,
    store: Store,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    keep: bool = False,
) -> Search:
    """How far a search has come over a snapshot; its end is written down if it is to be kept.

    ImportError if Optuna is needed and not here, NothingToPropose if no values go together.
    """
    walk = _Walk(
        search=search, base=base, store=store, snapshot=snapshot, task=task, training=training
    )
    found = walk.remembered()
    if found is None:
        found = walk.walk()
        if keep and found.round is None:
            walk.remember(found)
    return found


def search_path(
    search: SearchSpec,
    *,
    base: CandidateSpec,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
) -> str:
    """Where the end of a search over a snapshot is kept: its identity."""
    modalities = base.resolved_modalities(tuple(snapshot.modalities))
    name = fingerprint(
        {
            "format": FORMAT if base.objective == "task" else FORMAT_OF_OWN,
            # By what it is of, and not by what that is called.
            "search": {**search.identity(), "of": ""},
            "version": base.version,
            "candidate": base.model_copy(update={"modalities": modalities}),
            "task": task,
            "training": training,
            "data": snapshot.part(modalities=modalities),
        }
    )
    return f"searches/{name}.json"


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """The rounds of a search, one after another, as far as they are fitted."""

    search: SearchSpec
    base: CandidateSpec
    store: Store
    snapshot: Snapshot
    task: TaskSpec
    training: TrainingSpec

    def walk(self) -> Search:
        trials: list[Trial] = []
        waiting = self._generations(trials)
        alive = self._distinct(trials)
        for rung in range(1, self.search.rungs):
            if waiting is not None:
                break
            alive = self._best(alive)[: self.search.survivors(rung)]
            waiting = self._fit(alive, rung=rung)
        if waiting is not None:
            return Search(spec=self.search, trials=trials, round=waiting)
        last = self._best(alive)
        candidates = self._with_seeds(last)
        again = self._plan(candidates, training=self.training)
        if any(candidate.record is None for candidate in again):
            title = f"{_the_best(min(self.search.finalists, len(last)))} with other seeds"
            waiting = Round(title=title, candidates=candidates, training=self.training)
            return Search(spec=self.search, trials=trials, round=waiting)
        reached = {
            candidate.spec.name: self._reached(candidate.record)
            for candidate in again
            if candidate.record is not None
        }
        finalists, others = last[: self.search.finalists], last[self.search.finalists :]
        for trial in finalists:
            trial.by_seed = [reached[spec.name] for spec in self._fits_of(trial)]
        best = self._best(finalists)
        ranked = [*best, *(trial for trial in finalists if trial not in best)]
        candidates = self._with_seeds([*ranked, *others])
        return Search(spec=self.search, trials=trials, round=None, candidates=candidates)

    def remembered(self) -> Search | None:
        """A search that is over, as it was written down."""
        try:
            kept = json.loads(self.store.storage.read(self._path))
        except FileNotFoundError:
            return None
        if any("by_seed" not in item for item in kept["trials"]):
            return None  # of a version that took the best seed for the best trial: look again
        trials = [
            Trial(
                number=item["number"],
                values=item["values"],
                spec=self.search.trial(self.base, number=item["number"], values=item["values"]),
                reached=[rung["reached"] for rung in item["rungs"]],
                fingerprints=[rung["candidate"] for rung in item["rungs"]],
                by_seed=item["by_seed"],
            )
            for item in kept["trials"]
        ]
        candidates = tuple(
            self.search.repeated(trials[item["trial"]].spec, number=item["repetition"])
            for item in kept["candidates"]
        )
        return Search(spec=self.search, trials=trials, round=None, candidates=candidates)

    def remember(self, over: Search) -> None:
        """Write down a search that is over."""
        places = {
            self.search.repeated(trial.spec, number=n).name: (trial.number, n)
            for trial in over.trials
            for n in range(self.search.seeds)
        }
        kept = {
            "format": FORMAT,
            "name": self.search.name,
            "snapshot": self.snapshot.id,
            "search": self.search.model_dump(mode="json"),
            "of": self.base.model_dump(mode="json"),
            "monitor": self._monitored.name,
            "trials": [
                {
                    "number": trial.number,
                    "values": dict(trial.values),
                    "rungs": [
                        {
                            "max_epochs": self._of_rung(rung).max_epochs,
                            "reached": reached,
                            "candidate": name,
                        }
                        for rung, (reached, name) in enumerate(
                            zip(trial.reached, trial.fingerprints, strict=True)
                        )
                    ],
                    "stopped": len(trial.reached) < self.search.rungs,
                    "by_seed": trial.by_seed,
                }
                for trial in over.trials
            ],
            "candidates": [
                {"trial": trial, "repetition": repetition}
                for trial, repetition in (places[spec.name] for spec in over.candidates)
            ],
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False)
        self.store.storage.write_once(self._path, (text + "\n").encode())

    @property
    def _path(self) -> str:
        return search_path(
            self.search,
            base=self.base,
            snapshot=self.snapshot,
            task=self.task,
            training=self.training,
        )

    @property
    def _monitored(self) -> Monitored:
        return self.training.ranking(self.base.objective, task=self.task)

    def _generations(self, trials: list[Trial]) -> Round | None:
        """The first rung, into `trials`; the generation that is to be fitted, if one is."""
        from training.search.proposals import Proposals

        proposals = Proposals(
            self.search, base=self.base, lower_is_better=self._monitored.lower_is_better
        )
        while len(trials) < self.search.trials:
            count = min(self.search.generation, self.search.trials - len(trials))
            first = len(trials)
            generation = [
                Trial(number=first + i, values=values, spec=spec)
                for i, (values, spec) in enumerate(proposals.ask(count))
            ]
            trials.extend(generation)
            waiting = self._fit(generation, rung=0)
            if waiting is not None:
                return waiting
            proposals.tell([trial.reached[0] for trial in generation])
        return None

    def _fit(self, trials: Sequence[Trial], *, rung: int) -> Round | None:
        """Note what trials came to on a rung, or return what is to be fitted first."""
        training = self._of_rung(rung)
        planned = self._plan([trial.spec for trial in trials], training=training)
        if any(candidate.record is None for candidate in planned):
            numbers = f"{trials[0].number + 1} to {trials[-1].number + 1} of {self.search.trials}"
            which = f"trials {numbers}" if rung == 0 else _the_best(len(trials))
            return Round(
                title=f"{which}, {training.max_epochs} epochs",
                candidates=tuple(trial.spec for trial in trials),
                training=training,
            )
        for trial, candidate in zip(trials, planned, strict=True):
            assert candidate.record is not None
            trial.reached.append(self._reached(candidate.record))
            trial.fingerprints.append(candidate.fingerprint)
        return None

    def _of_rung(self, rung: int) -> TrainingSpec:
        return self.search.training(self.training, rung=rung)

    def _plan(
        self, candidates: Sequence[CandidateSpec], *, training: TrainingSpec
    ) -> list[PlannedCandidate]:
        return plan_candidates(
            self.store,
            snapshot=self.snapshot,
            task=self.task,
            candidates=candidates,
            training=training,
        )

    def _reached(self, record: CandidateRecord) -> float | None:
        """What a fit's best epoch came to on validation; None if there is nothing."""
        if record.status != "fitted" or record.best_epoch is None:
            return None
        epoch = next(e for e in record.epochs if e["epoch"] == record.best_epoch)
        found = epoch["validation_metrics"]
        if self.base.objective == "own":
            found = (record.metrics or {}).get("validation", {})
        value = found.get(self._monitored.name)
        return float(value) if value is not None and math.isfinite(value) else None

    def _best(self, trials: Sequence[Trial]) -> list[Trial]:
        """Trials by what they came to last, the best first; of equal ones the earlier first.

        Those that failed are left out, but for one if all did: that it failed is to be told.
        """
        sign = 1 if self._monitored.lower_is_better else -1
        known = [(trial.settled, trial) for trial in trials]
        good = [(sign * value, trial.number, trial) for value, trial in known if value is not None]
        return [trial for _, _, trial in sorted(good, key=lambda item: item[:2])] or [trials[0]]

    def _distinct(self, trials: Sequence[Trial]) -> list[Trial]:
        """The first trial of each candidate: the same values may be proposed again."""
        found: dict[str, Trial] = {}
        for trial in trials:
            if trial.fingerprints:
                found.setdefault(trial.fingerprints[0], trial)
        return list(found.values())

    def _with_seeds(self, last: Sequence[Trial]) -> tuple[CandidateSpec, ...]:
        """The trials of the last rung, and the finalists among them with other seeds."""
        return tuple(
            spec
            for place, trial in enumerate(last)
            for spec in (self._fits_of(trial) if place < self.search.finalists else [trial.spec])
        )

    def _fits_of(self, finalist: Trial) -> list[CandidateSpec]:
        """A finalist with each of its seeds, its own first."""
        return [
            self.search.repeated(finalist.spec, number=number)
            for number in range(self.search.fits(self.base))
        ]


def _the_best(count: int) -> str:
    return "the best trial" if count == 1 else f"the best {count} trials"
