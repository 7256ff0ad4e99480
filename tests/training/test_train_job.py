"""The Ray Train job: a real worker is killed with SIGKILL in the middle of a fit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train.torch

from features.stored_embeddings import read_embeddings
from training.agenda import Agenda, Standing
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, plan_candidates, read_record
from training.data.table import load_table
from training.fitting.grouping import group
from training.job import TrainingError, fit
from training.passes import RUNS_FOLDER, divide, names_of
from training.produce import produce_candidate, produce_together
from training.progress import FitProgress, RoundProgress
from training.search.spec import SearchSpec
from training.spec import CandidateSpec
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

pytestmark = pytest.mark.slow

TASK = ClassificationSpec(target="label")
# Epochs of some tenths of a second, so that a kill falls between two of them.
TRAINING = TrainingSpec(workers=2, batch_size=10, max_epochs=8, patience=8, checkpoint_every=2)
CANDIDATES = [
    parse_candidate({"type": "early", "width": 8, "learning_rate": 1e36, "name": "wild"}),
    parse_candidate({"type": "attention", "width": 16, "dropout": 0.2}),
    # Of one architecture: fitted in one pass.
    *(
        parse_candidate({"type": "late", "width": 8, "name": f"late-{i}", "seed": i, **own})
        for i, own in enumerate(({}, {"dropout": 0.3}, {"modality_dropout": 0.0}))
    ),
    parse_candidate({"type": "alignment", "width": 8}),
]


EARLY = parse_candidate({"type": "early", "width": 8})
SEARCH = {
    "of": "early", "trials": 3, "generation": 2, "rungs": 2, "finalists": 1, "seeds": 2,
    "space": {"learning_rate": {"low": 1e-3, "high": 3e-2}},
}  # fmt: skip


def agenda(*candidates: CandidateSpec, **options: Any) -> Agenda:
    """These candidates, or all of the above."""
    made = {"task": TASK, "training": TRAINING, "candidates": candidates or CANDIDATES}
    return Agenda(**{**made, **options})


def records_of(standing: Standing) -> list[CandidateRecord]:
    return [c.record for c in standing.candidates if c.record is not None]


def files_of(root: str) -> dict[Path, tuple[int, int]]:
    paths = [path for path in Path(root).rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_more_workers_than_the_cluster_has_is_refused_at_once(ray_cluster, make_store) -> None:
    store, snapshot = make_store()
    with pytest.raises(TrainingError, match=r"training\.workers: 9 workers .* has 2; lower it"):
        fit(
            store_root=store.storage.root,
            snapshot_id=snapshot.id,
            agenda=agenda(training=TRAINING.model_copy(update={"workers": 9})),
        )


def test_a_run_has_one_name_however_much_of_it_is_done(make_store) -> None:
    store, snapshot = make_store()
    options = {"snapshot": snapshot, "task": TASK, "training": TRAINING}
    before = plan_candidates(store, candidates=CANDIDATES, **options)
    name = agenda().name(snapshot=snapshot)
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    produce_candidate(before[0], store=store, table=table, **options)
    turned = agenda(*reversed(CANDIDATES), CANDIDATES[0])
    after = turned.standing(store, snapshot=snapshot).candidates
    assert [c.record is None for c in after] == [*[True] * 5, False, False]
    assert turned.name(snapshot=snapshot) == name
    assert agenda(*CANDIDATES[:2]).name(snapshot=snapshot) != name
    searches = [SearchSpec.model_validate({**SEARCH, "seed": seed}) for seed in (0, 1)]
    of_searches = [
        agenda(*CANDIDATES, EARLY, searches=[search]).name(snapshot=snapshot) for search in searches
    ]
    assert len({name, *of_searches}) == 3


def test_what_a_run_left_is_deleted_once_nothing_is_to_be_fitted(make_store) -> None:
    store, snapshot = make_store()
    options = {"snapshot": snapshot, "task": TASK, "training": TRAINING}
    wild = CANDIDATES[:1]
    planned = plan_candidates(store, candidates=wild, **options)
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    record = produce_candidate(planned[0], store=store, table=table, **options)
    runs = Path(store.storage.root) / RUNS_FOLDER
    own = agenda(*wild)
    (runs / own.name(snapshot=snapshot) / "checkpoint").mkdir(parents=True)
    (runs / "another").mkdir()
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id}
    for _ in range(2):
        assert records_of(fit(**job, agenda=own)) == [record]
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
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id}
    if done:
        (record,) = records_of(fit(**job, agenda=agenda(*wild)))
        assert record.status == "failed"
    else:
        with pytest.raises(ray.train.TrainingFailedError, match="folder is gone"):
            fit(**job, agenda=agenda(*wild))


def test_a_candidate_with_a_fault_stops_no_other_and_is_still_to_be_fitted(
    ray_cluster, make_store
) -> None:
    store, snapshot = make_store()
    # The base class is a spec that anyone can name, and has no build().
    broken = parse_candidate({"type": "training.spec.CandidateSpec", "name": "broken"})
    late = parse_candidate({"type": "late", "width": 8})
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id}
    training = TRAINING.model_copy(update={"max_epochs": 1})
    seen: list[FitProgress] = []
    with pytest.raises(TrainingError, match=r"'broken' .*: NotImplementedError: .*spec\.py:\d+"):
        fit(**job, agenda=agenda(broken, late, training=training), on_progress=seen.append)
    assert [(p.candidate, bool(p.failure)) for p in seen if p.done] == [
        ("broken", True),
        ("late", False),
    ]
    (record,) = records_of(fit(**job, agenda=agenda(late, training=training)))
    assert record.status == "fitted"
    options = {"snapshot": snapshot, "task": TASK, "training": training}
    again = plan_candidates(store, candidates=[broken, late], **options)
    assert [planned.record is None for planned in again] == [True, False]


def test_a_killed_worker_resumes_and_ends_as_an_uninterrupted_run(
    ray_cluster, make_store, run_workers, tmp_path
) -> None:
    store, snapshot = make_store("killed", rows=400)
    seen: list[FitProgress] = []
    killed: list[str] = []

    def kill_once_each(progress: FitProgress) -> None:
        seen.append(progress)
        name = progress.candidate
        if name in ("attention", "late-1") and progress.epoch in (3, 5) and name not in killed:
            killed.append(name)
            os.kill(progress.process, signal.SIGKILL)

    job = {
        "store_root": store.storage.root,
        "snapshot_id": snapshot.id,
        "agenda": agenda(),
    }
    records = records_of(fit(**job, on_progress=kill_once_each))

    # It was killed in the middle, and went on from a checkpoint in another process.
    assert sorted(killed) == ["attention", "late-1"]
    for name in killed:
        epochs = [p for p in seen if p.candidate == name and not p.done]
        after = [p for p in epochs if p.process != epochs[0].process]
        assert after
        assert 2 < after[0].epoch <= 8
        assert after[0].epoch % TRAINING.checkpoint_every == 1
    assert [p.candidate for p in seen if p.done][-1] == "alignment"

    # The candidate before was not fitted again, and the failed one stopped none of the others.
    assert [p.candidate for p in seen if p.done].count("wild") == 1
    assert [record.status for record in records] == ["failed", *["fitted"] * 5]
    assert [record.workers for record in records] == [1, 2, 1, 1, 1, 2]

    # The same without an interruption and without Ray, in another store: the small ones here, and
    # what takes both workers on two processes.
    other, other_snapshot = make_store("whole", rows=400)
    assert other_snapshot.id == snapshot.id
    options = {"store": other, "snapshot": snapshot, "task": TASK, "training": TRAINING}
    passes = divide(plan_candidates(candidates=CANDIDATES, **options), training=TRAINING)
    assert names_of(passes.apart) == [["wild"], ["late-0", "late-1"], ["late-2"]]
    table = load_table(other, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    for small in passes.apart:
        produce_together(small, table=table, **options)
    body = {
        "store_root": other.storage.root,
        "snapshot_id": snapshot.id,
        "task": TASK.model_dump(),
        "training": TRAINING.model_dump(),
        "candidates": [CANDIDATES[i].model_dump() for i in (1, -1)],
    }
    (tmp_path / "job.json").write_text(json.dumps(body))
    run_workers(tmp_path)
    for record in records:
        whole = read_record(other, record.fingerprint)
        assert whole is not None
        assert without_seconds(whole) == without_seconds(record)
        kinds = {"model", "predictions", "shapley"} if record.status == "fitted" else set()
        assert set(record.files) == kinds
        for name in record.files.values():
            path = f"candidates/{record.fingerprint}/{name}"
            assert store.storage.read(path) == other.storage.read(path), name

    # Once more: there is nothing to do, and nothing is done.
    before = files_of(store.storage.root)
    assert records_of(fit(**job)) == records
    assert files_of(store.storage.root) == before
    assert not list((Path(store.storage.root) / "train-runs").iterdir())


def without_seconds(record: object) -> dict:
    value = dataclasses.asdict(record)  # type: ignore[call-overload]
    value.pop("seconds")
    for epoch in value["epochs"]:
        epoch.pop("seconds")
    return value


def test_a_search_killed_in_its_rounds_goes_on_in_the_same_job(
    ray_cluster, make_store, tmp_path
) -> None:
    """One job takes all its rounds, and ends as one whose rounds were fitted here, one by one."""
    store, snapshot = make_store("killed", rows=600)
    training = TrainingSpec(batch_size=50, max_epochs=6, patience=6, checkpoint_every=1)
    broken = parse_candidate({"type": "training.spec.CandidateSpec", "name": "broken"})
    whole = agenda(
        EARLY,
        broken,
        parse_candidate({"type": "average", "of": ["early-search", "early"]}),
        training=training,
        searches=[
            SearchSpec.model_validate(SEARCH),
            # None of its trials can be fitted, and that is the end of this one alone.
            SearchSpec.model_validate(
                {**SEARCH, "of": "broken", "space": {"learning_rate": [1e-3, 1e-2]}}
            ),
        ],
    )
    rounds: list[RoundProgress] = []
    killed: list[str] = []

    def kill_once_a_round(progress: FitProgress) -> None:
        if progress.epoch == 1 and rounds[-1].title not in killed:
            killed.append(rounds[-1].title)
            if len(killed) < 4:  # as often as a job is started again
                os.kill(progress.process, signal.SIGKILL)

    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id, "agenda": whole}
    with pytest.raises(TrainingError, match="'broken-search-00' cannot be fitted") as error:
        fit(**job, on_round=rounds.append, on_progress=kill_once_a_round)
    assert "'broken' cannot be fitted" in str(error.value)
    assert len(killed) > 3

    standing = whole.standing(store, snapshot=snapshot)
    (found, stuck) = standing.searches
    assert found.round is None and stuck.round is not None
    assert [c.record is None for c in standing.candidates[:3]] == [False, True, False]
    other, again = make_store("whole", rows=600)
    table = load_table(other, again, task=TASK, modalities=tuple(again.modalities))
    options = {"store": other, "snapshot": again, "task": TASK, "table": table}
    alone = agenda(EARLY, whole.candidates[2], training=training, searches=whole.searches[:1])
    while (due := alone.standing(other, snapshot=again, keep=True).next()) is not None:
        for together in group(
            due.missing(),
            specs=[c.spec for c in due.missing()],
            modalities=[c.modalities for c in due.missing()],
            training=due.training,
        ):
            produce_together(together, training=due.training, **options)
    expected = alone.standing(other, snapshot=again)
    assert expected.searches == [found]
    done = [c.record for c in standing.candidates if c.record is not None]
    assert len(done) == 2 + 2  # two declared ones, and two seeds of the best
    for mine, theirs in zip(done, records_of(expected), strict=True):
        assert without_seconds(mine) == without_seconds(theirs)
    kept = Path("searches")
    for path in (Path(other.storage.root) / kept).iterdir():
        assert (Path(store.storage.root) / kept / path.name).read_bytes() == path.read_bytes()


def test_embeddings_that_do_not_fit_are_streamed_to_the_same_end(ray_cluster, make_store) -> None:
    store, snapshot = make_store(rows=600, shard_rows=20, sequences=True)
    training = TrainingSpec(batch_size=50, max_epochs=2, shuffle_buffer=60)
    spec = parse_candidate({"type": "late", "width": 8})
    size = sum(
        read_embeddings(store, snapshot, modality=m).values.nbytes for m in snapshot.modalities
    )
    job = {"store_root": store.storage.root, "snapshot_id": snapshot.id}
    with pytest.raises(TrainingError, match=r"training\.memory: .* raise training\.memory"):
        fit(**job, agenda=agenda(spec, training=training.model_copy(update={"memory": 999.0})))
    little = training.model_copy(update={"memory": size * 0.4})
    (record,) = records_of(fit(**job, agenda=agenda(spec, training=little)))
    # Another store, in which the same is fitted in memory.
    other, again = make_store("other", rows=600, shard_rows=20, sequences=True)
    assert again.id == snapshot.id
    (planned,) = plan_candidates(
        other, snapshot=again, task=TASK, candidates=[spec], training=training
    )
    table = load_table(other, again, task=TASK, modalities=list(planned.modalities))
    expected = produce_candidate(
        planned, store=other, snapshot=again, task=TASK, training=training, table=table
    )
    assert record.files == expected.files  # named by what they hold
    assert record.modalities["frames"]["sequence"]
