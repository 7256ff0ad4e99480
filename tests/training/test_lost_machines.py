"""What the training job asks of a cluster that has lost machines."""

from __future__ import annotations

import itertools

import pytest

import features.job
import training.job
from training.job import TrainingError, _check_resources


def cluster(monkeypatch: pytest.MonkeyPatch, *states: tuple[int, int]) -> list[float]:
    """A cluster of so many machines and so many lost ones, look by look; the seconds waited."""
    waited: list[float] = []
    looks = itertools.chain(states, itertools.repeat(states[-1]))
    now = [next(looks)]

    def nodes() -> list[dict[str, object]]:
        there, lost = now[0]
        up = {"Alive": True, "Resources": {"CPU": 1.0}}
        return [*[up] * there, *[{"Alive": False, "Resources": {}}] * lost]

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] = next(looks)

    monkeypatch.setattr(features.job.ray, "nodes", nodes)
    monkeypatch.setattr(training.job.time, "sleep", sleep)
    monkeypatch.setattr(training.job.time, "monotonic", lambda: sum(waited))
    return waited


def test_another_machine_is_waited_for_in_the_place_of_a_lost_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = cluster(monkeypatch, (1, 1), (1, 1), (2, 1))
    told: list[str] = []
    assert _check_resources(2, on_wait=told.append) is False
    assert len(waited) == 2
    assert len(told) == 1 and "2 workers need a CPU each, and there are 1" in told[0]


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = cluster(monkeypatch, (1, 1))
    with pytest.raises(TrainingError, match=r"2 workers .* has 1, 180 s after it has lost 1; lowe"):
        _check_resources(2)
    assert sum(waited) == pytest.approx(training.job.LOST_SECONDS, abs=1)


def test_a_cluster_that_is_whole_and_too_small_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = cluster(monkeypatch, (1, 0))
    with pytest.raises(TrainingError, match="the Ray cluster has 1; lower it"):
        _check_resources(2)
    assert waited == []
