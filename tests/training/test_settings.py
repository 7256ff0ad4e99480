"""Which candidates are fits of one setting, and what a setting comes to."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from training.built_in import parse_candidate
from training.candidate import CandidateRecord
from training.evaluation.metrics import metrics_of
from training.settings import over_seeds, settings_of
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec
from workflows.promotion.promote import choose_winner
from workflows.reporting.seeds import find_seeds, seeds_line

ACCURACY = metrics_of(ClassificationSpec(target="y"))["accuracy"]


def record(name: str, reached: float | None, *, part: str = "p", **spec: Any) -> CandidateRecord:
    """A fit of an early fusion that reached an accuracy on validation, and none if it failed."""
    fields = {field.name: None for field in dataclasses.fields(CandidateRecord)}
    metrics = {"validation": {"accuracy": reached}, "test": {"accuracy": 0.5}}
    values = {
        "name": name,
        "fingerprint": name,
        "spec": parse_candidate({"type": "early", "name": name, **spec}).model_dump(mode="json"),
        "training": TrainingSpec().model_dump(mode="json"),
        "part": part,
        "parameters": 7,
        "members": [],
        "status": "failed" if reached is None else "fitted",
        "metrics": None if reached is None else metrics,
    }
    return CandidateRecord(**{**fields, **values})


def test_a_setting_is_all_but_name_and_seed() -> None:
    records = [
        record("a", 0.9),
        record("wide", 0.9, width=512),
        record("b", 0.8, seed=1),
        record("other-rows", 0.8, part="q", seed=1),
        record("c", 0.7, seed=2),
    ]
    found = [[item.name for item in group] for group in settings_of(records)]
    assert found == [["a", "b", "c"], ["wide"], ["other-rows"]]
    soup = dataclasses.replace(records[0], members=[{"name": "a"}])
    assert len(settings_of([soup, records[0]])) == 2
    reached = {"a": 0.9, "b": 0.8, "wide": 0.5}
    settled = over_seeds(records, reached=reached)
    assert {name: found.mean for name, found in settled.items()} == pytest.approx(
        {"a": 0.85, "b": 0.85, "wide": 0.5}
    )
    assert all(found.sound for found in settled.values())


def test_a_lucky_seed_does_not_win_and_an_unlucky_one_does_not_lose() -> None:
    lucky = [record("lucky", 0.95), record("lucky-1", 0.8, seed=1), record("lucky-2", 0.8, seed=2)]
    steady = [record(f"steady-{i}", 0.9 - i / 100, seed=i, width=512) for i in range(3)]
    assert choose_winner([*lucky, *steady], metric=ACCURACY).name == "steady-0"
    assert choose_winner([lucky[0], *steady], metric=ACCURACY).name == "lucky"
    failed = record("steady-3", None, seed=3, width=512)
    assert choose_winner([*lucky, *steady, failed], metric=ACCURACY).name == "steady-0"
    # One that fails with most seeds has one good fit by luck.
    broken = [record(f"lucky-{i}", None, seed=i) for i in (1, 2)]
    assert choose_winner([lucky[0], *broken, *steady], metric=ACCURACY).name == "steady-0"
    assert choose_winner([lucky[0], broken[0], *steady], metric=ACCURACY).name == "lucky"
    # Of less is better, the other way round.
    loss = metrics_of(ClassificationSpec(target="y"))["log_loss"]

    def of_loss(item: CandidateRecord) -> CandidateRecord:
        assert item.metrics is not None
        value = item.metrics["validation"]["accuracy"]
        return dataclasses.replace(item, metrics={"validation": {"log_loss": value}})

    chosen = choose_winner([of_loss(item) for item in (*lucky, *steady)], metric=loss)
    assert chosen.name == "lucky-1"


def test_a_winner_is_unstable_if_another_setting_lies_among_its_seeds() -> None:
    mine = [record("mine", 0.95), record("mine-1", 0.85, seed=1)]
    (found,) = find_seeds([*mine, record("other", 0.86, width=512)], metric=ACCURACY, winner="mine")
    assert found.wins and found.overtaken == "other" and found.validation == (0.95, 0.85)
    line = seeds_line([found], winner="mine")
    assert "failed" not in line
    assert "0.850 to 0.950 on validation over 2 seeds; unstable: other" in line
    (found,) = find_seeds([*mine, record("other", 0.84, width=512)], metric=ACCURACY, winner="mine")
    assert found.overtaken is None and "unstable" not in seeds_line([found], winner="mine")
    (found,) = find_seeds([*mine, record("other", 0.96, width=5)], metric=ACCURACY, winner="other")
    assert not found.wins and seeds_line([found], winner="other") == ""
