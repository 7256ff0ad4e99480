"""The Ray Train job: a real worker is killed with SIGKILL in the middle of a fit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import ray
import ray.train.torch

from training.built_in import parse_candidate
from training.candidate import plan_candidates, read_record
from training.data import load_table
from training.job import RUNS_FOLDER, FitProgress, TrainingError, fit, run_name
from training.produce import produce_candidate
from training.task import TaskSpec
from training.training_spec import TrainingSpec

pytestmark = pytest.mark.slow

TASK = TaskSpec(target="label")
# Epochs of about half a second, so that a kill falls between two of them.
TRAINING = TrainingSpec(workers=2, batch_size=10, max_epochs=10, patience=10, checkpoint_every=2)
CANDIDATES = [
    parse_candidate({"type": "early", "width": 8, "learning_rate": 1e36, "name": "wild"}),
    parse_candidate({"type": "attention", "width": 16, "dropout": 0.2}),
    parse_candidate({"type": "alignment", "width": 8}),
]


def files_of(root: str) -> dict[Path, tuple[int, int]]:
    paths = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_more_workers_than_the_cluster_has_is_refused_at_once(ray_cluster, make_store) -> None:
    store, snapshot = make_store()
    with pytest.raises(TrainingError, match=r"training\.workers: 9 workers .* has 2; lower it"):
        fit(
            store_root=store.storage.root,
            snapshot_id=snapshot.id,
            task=TASK,
            candidates=CANDIDATES,
            training=TRAINING.model_copy(update={"workers": 9}),
        )


def test_a_run_has_one_name_however_much_of_it_is_done(make_store) -> None:
    store, snapshot = make_store()
    options = {"snapshot": snapshot, "task": TASK, "training": TRAINING}
    before = plan_candidates(store, candidates=CANDIDATES, **options)
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    produce_candidate(before[0], store=store, table=table, **options)
    after = plan_candidates(store, candidates=[*reversed(CANDIDATES), CANDIDATES[0]], **options)
    assert [c.record is None for c in after] == [True, True, False, False]
    assert run_name(after) == run_name(before)
    assert run_name(after[:2]) != run_name(before)


def test_what_a_run_left_is_deleted_once_nothing_is_to_be_fitted(make_store) -> None:
    store, snapshot = make_store()
    options = {"snapshot": snapshot, "task": TASK, "training": TRAINING}
    wild = CANDIDATES[:1]
    planned = plan_candidates(store, candidates=wild, **options)
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    record = produce_candidate(planned[0], store=store, table=table, **options)
    runs = Path(store.storage.root) / RUNS_FOLDER
    (runs / run_name(planned) / "checkpoint").mkdir(parents=True)
    (runs / "another").mkdir()
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id, "task": TASK}
    for _ in range(2):
        assert fit(**job, candidates=wild, training=TRAINING) == [record]
        assert [path.name for path in runs.iterdir()] == ["another"]


@pytest.mark.parametrize("done", [False, True])
def test_an_error_is_none_if_another_job_has_done_all(make_store, monkeypatch, done) -> None:
    store, snapshot = make_store()
    options = {"snapshot": snapshot, "task": TASK, "training": TRAINING}
    wild = CANDIDATES[:1]

    class Overtaken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def fit(self) -> None:
            if done:
                (planned,) = plan_candidates(store, candidates=wild, **options)
                table = load_table(store, snapshot, task=TASK, modalities=list(planned.modalities))
                produce_candidate(planned, store=store, table=table, **options)
            raise ray.train.TrainingFailedError("its folder is gone")

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Overtaken)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id, "task": TASK}
    if done:
        (record,) = fit(**job, candidates=wild, training=TRAINING)
        assert record.status == "failed"
    else:
        with pytest.raises(ray.train.TrainingFailedError, match="folder is gone"):
            fit(**job, candidates=wild, training=TRAINING)


def test_a_candidate_with_a_fault_stops_no_other_and_is_still_to_be_fitted(
    ray_cluster, make_store
) -> None:
    store, snapshot = make_store()
    # The base class is a spec that anyone can name, and has no build().
    broken = parse_candidate({"type": "training.spec.CandidateSpec", "name": "broken"})
    late = parse_candidate({"type": "late", "width": 8})
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id, "task": TASK}
    job["training"] = TRAINING.model_copy(update={"max_epochs": 1})
    seen: list[FitProgress] = []
    with pytest.raises(TrainingError, match=r"'broken' .*: NotImplementedError: .*spec\.py:\d+"):
        fit(**job, candidates=[broken, late], on_progress=seen.append)
    assert [(p.candidate, bool(p.failure)) for p in seen if p.done] == [
        ("broken", True),
        ("late", False),
    ]
    (record,) = fit(**job, candidates=[late])
    assert record.status == "fitted"
    options = {"snapshot": snapshot, "task": TASK, "training": job["training"]}
    again = plan_candidates(store, candidates=[broken, late], **options)
    assert [planned.record is None for planned in again] == [True, False]


def test_a_killed_worker_resumes_and_ends_as_an_uninterrupted_run(
    ray_cluster, make_store, run_workers, tmp_path
) -> None:
    store, snapshot = make_store("killed", rows=1200)
    seen: list[FitProgress] = []
    kills: list[int] = []

    def kill_once(progress: FitProgress) -> None:
        seen.append(progress)
        if progress.candidate == "attention" and progress.epoch in (3, 5) and not kills:
            kills.append(len(seen))
            os.kill(progress.process, signal.SIGKILL)

    job = {
        "store_root": store.storage.root,
        "snapshot_id": snapshot.id,
        "task": TASK,
        "candidates": CANDIDATES,
        "training": TRAINING,
    }
    records = fit(**job, on_progress=kill_once)

    # It was killed in the middle, and went on from a checkpoint in another process.
    attention = [p for p in seen if p.candidate == "attention" and not p.done]
    after = [p for p in attention if p.process != attention[0].process]
    assert len(kills) == 1
    assert after
    assert 2 < after[0].epoch <= 10
    assert after[0].epoch % TRAINING.checkpoint_every == 1
    assert [p.candidate for p in seen if p.done][-1] == "alignment"

    # The candidate before was not fitted again, and the failed one stopped none of the others.
    assert [p.candidate for p in seen if p.done].count("wild") == 1
    assert [record.status for record in records] == ["failed", "fitted", "fitted"]
    assert all(record.workers == 2 for record in records)

    # The same on two processes that were not interrupted, without Ray, in another store.
    other, other_snapshot = make_store("whole", rows=1200)
    assert other_snapshot.id == snapshot.id
    body = {
        "store_root": other.storage.root,
        "snapshot_id": snapshot.id,
        "task": TASK.model_dump(),
        "training": TRAINING.model_dump(),
        "candidates": [spec.model_dump() for spec in CANDIDATES],
    }
    (tmp_path / "job.json").write_text(json.dumps(body))
    run_workers(tmp_path)
    for record in records:
        whole = read_record(other, record.fingerprint)
        assert whole is not None
        assert without_seconds(whole) == without_seconds(record)
        kinds = {"model", "predictions"} if record.status == "fitted" else set()
        assert set(record.files) == kinds
        for name in record.files.values():
            path = f"candidates/{record.fingerprint}/{name}"
            assert store.storage.read(path) == other.storage.read(path), name

    # Once more: there is nothing to do, and nothing is done.
    before = files_of(store.storage.root)
    assert fit(**job) == records
    assert files_of(store.storage.root) == before
    assert not list((Path(store.storage.root) / "train-runs").iterdir())


def without_seconds(record: object) -> dict:
    value = dataclasses.asdict(record)  # type: ignore[call-overload]
    value.pop("seconds")
    for epoch in value["epochs"]:
        epoch.pop("seconds")
    return value
