from __future__ import annotations

from typing import Any

from training.agenda import Due
from training.built_in import parse_candidate
from training.candidate import PlannedCandidate
from training.training_spec import TrainingSpec
from workflows.train import planned_passes


def planned(name: str, **options: Any) -> PlannedCandidate:
    spec = parse_candidate({"type": "late", "width": 64, "name": name, **options})
    return PlannedCandidate(spec=spec, fingerprint=name, modalities=("a", "b"), record=None)


def said(*candidates: PlannedCandidate, **training: Any) -> list[str]:
    due = Due(candidates=candidates, training=TrainingSpec(**training))
    return planned_passes(due)


def test_what_shares_a_pass_is_said_before_anything_is_fitted() -> None:
    assert said(planned("a"), planned("wide", width=128), planned("b", seed=1)) == [
        "together, in one pass: a, b",
        "in turn, each on all workers: wide",
    ]


def test_nothing_is_said_where_every_candidate_has_a_pass_of_its_own() -> None:
    assert said(planned("a"), planned("b", seed=1), together=1) == []


def test_small_ones_are_side_by_side_and_large_ones_take_all_workers() -> None:
    candidates = [planned(name, seed=seed) for seed, name in enumerate("abcd")]
    wide = planned("wide", width=4096)
    assert said(*candidates, wide, workers=2) == [
        "side by side, each by one worker: a, b | c, d",
        "in turn, each on all workers: wide",
    ]
    # Too few to give each worker one.
    assert said(candidates[0], wide, workers=2) == []
    assert said(*candidates, wide, workers=2, compile=True) == [
        "side by side, each by one worker: a | b | c | d",
        "in turn, each on all workers: wide",
    ]
