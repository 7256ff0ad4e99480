"""What a pipeline has to fit over a snapshot, and in which rounds. No torch, no Ray.

The rounds of its searches come first, and then its candidates with what was found. How far that has
come is read from the records in the store, and from nothing else: whoever looks, before a job, in
the middle of it or after it was killed, sees the same. A look reads one small file a candidate,
and one a trial for each rung of a search that is not over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.store import Store
from training.built_in import parse_candidate
from training.candidate import PlannedCandidate, candidate_fingerprint, plan_candidates
from training.fitting.grouping import group
from training.models.members import is_pending, with_members
from training.search.spec import SearchSpec
from training.search.walk import Search, follow, search_path
from training.spec import CandidateSpec
from training.task import TaskSpec, parse_task
from training.training_spec import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Due:
    """Candidates that are fitted in one round, those that are done among them."""

    candidates: Sequence[PlannedCandidate]
    training: TrainingSpec
    search: str | None = None
    """The search whose next round it is."""
    title: str = "candidates"

    def missing(self) -> list[PlannedCandidate]:
        """The candidates without a record, each once."""
        found: dict[str, PlannedCandidate] = {}
        for candidate in self.candidates:
            if candidate.record is None:
                found.setdefault(candidate.fingerprint, candidate)
        return list(found.values())


def grouped(
    candidates: Sequence[PlannedCandidate], *, training: TrainingSpec
) -> list[list[PlannedCandidate]]:
    """Candidates in the groups that are fitted in one pass; see `training.fitting.grouping`."""
    return group(
        candidates,
        specs=[candidate.spec for candidate in candidates],
        modalities=[candidate.modalities for candidate in candidates],
        training=training,
    )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far an agenda has come."""

    searches: Sequence[Search]
    candidates: Sequence[PlannedCandidate]
    """Those of the YAML, and what searches that are over have found. An ensemble of what is not
    found yet is not among them."""
    rounds: Sequence[Due]
    """What is to be fitted next of each search that is not over, and then the candidates."""

    def next(self, *, without: Collection[str] = ()) -> Due | None:
        """The round to fit next; None if there is nothing, but for candidates of fingerprints that
        cannot be fitted. A search that needs these goes no further.
        """
        return next(
            (r for r in self.rounds if any(c.fingerprint not in without for c in r.missing())), None
        )


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """What is to be fitted, whatever of it is done."""

    task: TaskSpec
    training: TrainingSpec
    candidates: Sequence[CandidateSpec]
    searches: Sequence[SearchSpec] = ()

    def to_json(self) -> dict[str, Any]:
        """The agenda as plain JSON values, for `from_json`."""
        return {
            "task": self.task.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
            "candidates": [spec.model_dump(mode="json") for spec in self.candidates],
            "searches": [search.model_dump(mode="json") for search in self.searches],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(
            task=parse_task(value["task"]),
            training=TrainingSpec.model_validate(value["training"]),
            candidates=[parse_candidate(spec) for spec in value["candidates"]],
            searches=[SearchSpec.model_validate(search) for search in value["searches"]],
        )

    def standing(self, store: Store, *, snapshot: Snapshot, keep: bool = False) -> Standing:
        """How far it has come; the ends of searches are written down if they are to be kept.

        ImportError if a search needs Optuna, which is not here; NothingToPropose if values of a
        search do not go together; ValueError for an ensemble of what does not stand above it.
        """
        searches = [
            follow(
                search,
                base=self.base(search),
                store=store,
                snapshot=snapshot,
                task=self.task,
                training=self.training,
                keep=keep,
            )
            for search in self.searches
        ]

        def plan(
            candidates: Sequence[CandidateSpec], training: TrainingSpec
        ) -> list[PlannedCandidate]:
            return plan_candidates(
                store, snapshot=snapshot, task=self.task, candidates=candidates, training=training
            )

        found = {s.spec.name: s.candidates for s in searches if s.round is None}
        candidates = plan(self._whole(found=found), self.training)
        rounds = []
        for search in searches:
            if search.round is None:
                # What a candidate of the YAML's has too is fitted and compared once.
                known = {candidate.fingerprint for candidate in candidates}
                more = plan(search.candidates, self.training)
                candidates += [c for c in more if c.fingerprint not in known]
            else:
                rounds.append(
                    Due(
                        candidates=plan(search.round.candidates, search.round.training),
                        training=search.round.training,
                        search=search.spec.name,
                        title=search.round.title,
                    )
                )
        rounds.append(Due(candidates=candidates, training=self.training))
        return Standing(searches=searches, candidates=candidates, rounds=rounds)

    def base(self, search: SearchSpec) -> CandidateSpec:
        """The candidate whose fields are searched."""
        return next(spec for spec in self.candidates if spec.name == search.of)

    def search_paths(self, *, snapshot: Snapshot) -> dict[str, str]:
        """By name of a search, where its end is kept once it is over."""
        return {
            search.name: search_path(
                search,
                base=self.base(search),
                snapshot=snapshot,
                task=self.task,
                training=self.training,
            )
            for search in self.searches
        }

    def name(self, *, snapshot: Snapshot) -> str:
        """The job over a snapshot: the same in any order, and however much of it is done."""
        names = {
            *(
                candidate_fingerprint(
                    spec, snapshot=snapshot, task=self.task, training=self.training
                )
                for spec in self._whole()
            ),
            *self.search_paths(snapshot=snapshot).values(),
        }
        return fingerprint(sorted(names))

    def _whole(
        self, found: Mapping[str, Sequence[CandidateSpec]] | None = None
    ) -> list[CandidateSpec]:
        """The candidates of which all members are known."""
        known = with_members(self.candidates, task=self.task, searches=self.searches, found=found)
        return [spec for spec in known if not is_pending(spec)]
