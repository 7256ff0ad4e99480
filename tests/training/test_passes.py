"""How a round is divided, and that an interrupted one goes on as it was divided."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from features.storage import LocalStorage
from training.agenda import Due
from training.built_in import parse_candidate
from training.candidate import PlannedCandidate
from training.fitting.checkpoint import FitState
from training.pass_progress import PassProgress
from training.passes import Passes, divide, names_of, settled
from training.training_spec import TrainingSpec
from training.workers import alone, from_all_workers, worker_count

TRAINING = TrainingSpec(workers=2, batch_size=64)


def planned(name: str, *, kind: str = "late", done: bool = False, **options) -> PlannedCandidate:
    spec = parse_candidate({"type": kind, "name": name, **options})
    record = object() if done else None
    return PlannedCandidate(spec=spec, fingerprint=name, modalities=("a", "b"), record=record)


def rows(count: int) -> list[PlannedCandidate]:
    return [planned(f"late-{i}", seed=i) for i in range(count)]


def shape(passes: Passes) -> tuple[list[list[str]], list[list[str]]]:
    return names_of(passes.apart), names_of(passes.together)


def test_each_worker_gets_its_part_of_the_small_ones() -> None:
    passes = divide([*rows(5), planned("space", kind="alignment")], training=TRAINING)
    assert shape(passes) == (
        [["late-0", "late-1", "late-2"], ["late-3", "late-4"]],
        [["space"]],
    )
    assert [names_of(passes.of_worker(rank, workers=2)) for rank in (0, 1)] == [
        [["late-0", "late-1", "late-2"]],
        [["late-3", "late-4"]],
    ]
    # One worker does it all if there is but one.
    assert passes.of_worker(0, workers=1) == passes.apart


@pytest.mark.parametrize(
    ("training", "in_memory"),
    [
        (TRAINING.model_copy(update={"workers": 1}), True),
        (TRAINING.model_copy(update={"workers": 6}), True),
        (TRAINING, False),
        (TRAINING.model_copy(update={"batch_size": 2**16}), True),
    ],
)
def test_all_workers_do_what_cannot_be_divided(training: TrainingSpec, in_memory: bool) -> None:
    passes = divide(rows(5), training=training, in_memory=in_memory)
    assert passes.apart == []
    assert [name for group in names_of(passes.together) for name in group] == [
        f"late-{i}" for i in range(5)
    ]


def test_an_interrupted_round_is_divided_as_it_was(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def begin(candidates: list[PlannedCandidate]) -> Passes:
        due = Due(candidates=candidates, training=TRAINING)
        return settled(
            storage,
            folder="train-runs/job",
            due=due,
            pending=due.missing(),
            passes=divide(due.missing(), training=TRAINING),
        )

    large = planned("space", kind="alignment")
    before = begin([*rows(4), large])
    assert shape(before) == ([["late-0", "late-1"], ["late-2", "late-3"]], [["space"]])
    # The first worker was done, the second had written one of two: both go through the pass again.
    done = [planned(f"late-{i}", seed=i, done=i < 3) for i in range(4)]
    assert shape(begin([*done, large])) == ([["late-2", "late-3"]], [["space"]])
    done = [planned(f"late-{i}", seed=i, done=True) for i in range(4)]
    assert shape(begin([*done, large])) == ([], [["space"]])


def test_a_pass_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    storage, group = LocalStorage(tmp_path), rows(2)
    progress = PassProgress(storage, folder="train-runs/job", group=group)
    assert progress.read() is None

    def states(epoch: int) -> list[FitState]:
        return [
            FitState(epoch=epoch, model={"w": torch.ones(2)}, optimizer={}, best={}, progress={})
            for _ in group
        ]

    for epoch in (1, 2):
        progress.save(states(epoch))
    files = [entry.path for entry in storage.walk("train-runs")]
    assert len(files) == 2, "one checkpoint is kept"
    # Cut off before its last file: it does not count.
    folder = files[0].rsplit("/", 2)[0]
    storage.replace(f"{folder}/000009/state.safetensors", b"half")
    again = PassProgress(storage, folder="train-runs/job", group=group)
    assert [state.epoch for state in again.read() or []] == [2, 2]
    again.save(states(3))
    assert [state.epoch for state in progress.read() or []] == [3, 3]
    assert not storage.exists(f"{folder}/000009/state.safetensors")
    assert PassProgress(storage, folder="train-runs/other", group=group).read() is None


def test_a_worker_alone_is_the_only_one() -> None:
    with alone():
        assert (worker_count(), from_all_workers("own")) == (1, ["own"])
