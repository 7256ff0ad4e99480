from __future__ import annotations

from typing import Any

from training.agenda import Due
from training.built_in import parse_candidate
from training.candidate import PlannedCandidate
from training.training_spec import TrainingSpec
from workflows.train import passes, planned_groups


def planned(name: str, **options: Any) -> PlannedCandidate:
    spec = parse_candidate({"type": "late", "width": 64, "name": name, **options})
    return PlannedCandidate(spec=spec, fingerprint=name, modalities=("a", "b"), record=None)


def said(*candidates: PlannedCandidate, **training: Any) -> list[str]:
    due = Due(candidates=candidates, training=TrainingSpec(**training))
    return list(passes(planned_groups(due)))


def test_what_shares_a_pass_is_said_before_anything_is_fitted() -> None:
    assert said(planned("a"), planned("wide", width=128), planned("b", seed=1)) == [
        "together, in one pass: a, b",
        "in turn, each on all workers: wide",
    ]


def test_nothing_is_said_where_every_candidate_has_a_pass_of_its_own() -> None:
    assert said(planned("a"), planned("b", seed=1), together=1) == []
