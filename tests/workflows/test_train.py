from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from training.agenda import Due
from training.built_in import parse_candidate
from training.candidate import PlannedCandidate
from training.training_spec import TrainingSpec
from workflows.cluster import Connection
from workflows.pipeline import Pipeline, StageError
from workflows.promotion.gate import PromotionSpec
from workflows.train import planned_passes, train


class NoCluster(Connection):
    def open(self) -> None:
        raise AssertionError("it went on to a fit")


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


def test_a_metric_that_is_not_taken_of_so_many_classes_is_refused_before_any_fit(
    fitted_shapes: Any,
) -> None:
    spec = fitted_shapes.pipeline.spec
    more = {
        "training": spec.training.model_copy(update={"max_epochs": 9}),
        "promotion": PromotionSpec(metric="top_3_accuracy"),
    }
    pipeline: Pipeline = replace(fitted_shapes.pipeline, spec=spec.model_copy(update=more))
    with pytest.raises(
        StageError, match=r"promotion\.metric: 'top_3_.*more than 3 classes.*has 3; .*: accuracy"
    ):
        train(
            pipeline,
            snapshot=fitted_shapes.snapshot,
            connection=NoCluster(),
            console=Console(quiet=True),
        )
