"""The Ray Train job: a real worker is killed with SIGKILL in the middle of a fit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest

from training.candidate import read_record
from training.job import FitProgress, TrainingError, fit
from training.spec import TaskSpec, TrainingSpec, parse_candidate

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
        for name in ("model.safetensors", "predictions.parquet"):
            path = f"candidates/{record.fingerprint}/{name}"
            assert store.storage.exists(path) == (record.status == "fitted")
            if record.status == "fitted":
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
