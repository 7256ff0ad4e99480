from __future__ import annotations

import dataclasses
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.quarantine import QUARANTINE_SCHEMA
from features.samples import SampleShard
from features.shard import Embeddings, embedding_bytes, embedding_table
from features.shard_names import embedding_path, quarantine_path
from features.snapshot import ModalityShards, Snapshot
from features.sources import RowRange
from features.storage import LocalStorage
from features.store import Store, parquet_bytes
from training.candidate import (
    CandidateRecord,
    candidate_path,
    read_predictions,
    read_record,
    write_candidate,
)
from training.evaluation.metrics import metrics_of
from training.search.spec import SearchSpec
from training.search.walk import Search, Trial
from training.task import ClassificationSpec
from workflows.pipeline import Pipeline, load_pipeline
from workflows.promotion.gate import FrozenRows, Predictions, PromotionSpec, Verdict, judge
from workflows.promotion.outcome import Promotion
from workflows.quarantine import reason_group
from workflows.reporting.collect import collect
from workflows.reporting.findings import CandidateFindings, ReportData
from workflows.reporting.report import render

YAML = """
name: pets
dataset: {path: pets.parquet, split: split, slices: [place]}
features:
  note: {column: text, encoder: {type: hashing, dim: 64}}
  photo: {column: picture, encoder: {type: hog, size: 16}}
task: {target: pet}
candidates:
  - {type: single, modality: note}
  - {type: single, modality: photo}
  - {type: early}
tracking: {model: pets}
"""
CLASSES = ("cat", "dog", "eel")
TRUE = np.array([0, 0, 1, 1, 1, 2, 2, 2])
"""Classes of the eight test rows, which are rows 4 to 11; the last two samples have no split."""
TEST = np.arange(4, 12)
ANSWERS = {
    "note": [0, 1, 1, 1, 0, 2, 0, 0],
    "photo": [0, 0, 1, 0, 1, 2, 1, 0],
    "early": [0, 0, 1, 1, 1, 2, 2, 0],
}
WITHOUT = {"note": [0, 0, 1, 0, 1, 2, 1, 0], "photo": [0, 1, 1, 1, 0, 2, 0, 0]}
PRESENT = {"note": [0, 1, 2, 3, 4, 5, 6, 7, 8, 12], "photo": [0, 1, 4, 5, 6, 9, 10, 11]}
PLACES = ["sea"] * 8 + ["land"] * 3 + [None] * 3


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "pets.yaml").write_text(YAML)
    return load_pipeline(tmp_path / "pets.yaml")


@pytest.fixture
def store(pipeline: Pipeline) -> Store:
    return Store(LocalStorage(pipeline.store_root))


@pytest.fixture
def snapshot(store: Store) -> Snapshot:
    """Fourteen samples of pets, with a note and a photo that are not always there."""
    rows = 14
    labels: list[str | None] = [
        None,
        "cat",
        "dog",
        "eel",
        *(CLASSES[i] for i in TRUE),
        "cat",
        "cat",
    ]
    shard = SampleShard(
        fingerprint="f" * 32,
        labels="e" * 32,
        rows=rows,
        ranges=(RowRange(file=0, start=0, stop=rows),),
        keys={},
        payloads={},
    )
    table = pa.table(
        {
            "sample_id": [f"pet-{i}" for i in range(rows)],
            "split": ["train"] * 2 + ["validation"] * 2 + ["test"] * 8 + [None] * 2,
            "target.pet": labels,
            "slice.place": pa.array(PLACES, pa.string()),
            **{f"key.{name}": keys_of(present) for name, present in PRESENT.items()},
        }
    )
    store.write_samples(shard, rows=table)
    modalities = {}
    for name, kind, encoder in (("note", "text", "hashing"), ("photo", "image", "hog")):
        present = PRESENT[name]
        found = Embeddings(
            rows=np.array(present, np.int64), values=np.ones((len(present), 3), np.float16)
        )
        body = embedding_table(found, keys=[bytes(16)] * len(present), metadata={})
        path = embedding_path(encoder=name * 8, shard=f"{name}-shard")
        store.storage.write_once(path, embedding_bytes(body))
        modalities[name] = ModalityShards(
            kind=kind,  # type: ignore[arg-type]
            encoder={"type": encoder, "dtype": "float16", "batch_size": 8, "size": 16},
            encoder_fingerprint=name * 8,
            dim=3,
            shards=((f"{name}-shard",),),
            present=len(present),
            missing=rows - len(present) - 2,
            bad=2,
        )
    return Snapshot(
        name="pets", target="pet", slices=("place",), samples=(shard,), modalities=modalities
    )


def keys_of(present: list[int]) -> pa.Array:
    """A payload key for each of the samples; that of row 5 is that of row 0."""
    keys = [bytes([row % 5]) * 16 if row in (0, 5) else bytes([row]) * 16 for row in range(14)]
    return pa.array([keys[i] if i in present else None for i in range(14)], pa.binary(16))


def quarantine(store: Store, *, modality: str, rows: list[int], reasons: list[str]) -> None:
    table = pa.table(
        {
            "row": rows,
            "payload_key": pa.array([bytes(16)] * len(rows), pa.binary(16)),
            "stage": ["fetch"] * len(rows),
            "reason": reasons,
        }
    ).cast(QUARANTINE_SCHEMA)
    path = quarantine_path(encoder=modality * 8, shard=f"{modality}-shard")
    store.storage.write_once(path, parquet_bytes(table))


def probabilities(answers: list[int]) -> pa.FixedSizeListArray:
    values = np.full((len(answers), 3), 0.2, np.float32)
    values[np.arange(len(answers)), answers] = 0.6
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 3)


def write(store: Store, *, name: str, snapshot: Snapshot, **change: Any) -> CandidateRecord:
    """Write a candidate: its answers to two validation rows, both right, and to the test rows.

    The test rows are stored backwards, as any order must do.
    """
    several = name == "early"
    order = np.arange(8)[::-1]
    predictions: dict[str, Any] = {
        "row": np.concatenate([[2, 3], TEST[order]]),
        "split": ["validation"] * 2 + ["test"] * 8,
        "target": np.concatenate([[1, 2], TRUE[order]]).astype(np.int32),
        "probabilities": probabilities([1, 2, *np.array(ANSWERS[name])[order]]),
    }
    for modality in ("note", "photo") if several else ():
        answers = [1, 2, *np.array(WITHOUT[modality])[order]]
        predictions[f"without.{modality}"] = probabilities(answers)
    epoch = {"validation_loss": 0.4, "learning_rate": 1e-3, "seconds": 0.5}
    record = CandidateRecord(
        **{
            "fingerprint": name * 8,
            "name": name,
            "spec": {"type": "early" if several else "single"},
            "training": {},
            "task": {"target": "pet"},
            "snapshot": snapshot.id,
            "part": "",
            "classes": CLASSES,
            "modalities": {m: {} for m in (("photo", "note") if several else (name,))},
            "parameters": 1234,
            "status": "fitted",
            "failure": None,
            "best_epoch": 1,
            "epochs": [
                {"epoch": 1, "train_loss": 0.9, "validation_accuracy": 1.0, **epoch},
                {"epoch": 2, "train_loss": 0.8, "validation_accuracy": None, **epoch},
            ],
            "seconds": 1.0,
            "workers": 1,
            "metrics": {"validation": {"accuracy": 1.0}, "test": {"accuracy": 0.5}},
            "retrieval": None,
            **change,
        }
    )
    return write_candidate(store, record, predictions=pa.table(predictions))


@pytest.fixture
def records(store: Store, snapshot: Snapshot) -> list[CandidateRecord]:
    return [write(store, name=name, snapshot=snapshot) for name in ANSWERS]


def verdict() -> Verdict:
    def answered(name: str) -> Predictions:
        return Predictions(rows=TEST, answers=np.eye(3)[ANSWERS[name]])

    return judge(
        frozen=FrozenRows(rows=TEST, targets=np.array(TRUE)),
        challenger=answered("early"),
        champion=answered("note"),
        spec=PromotionSpec(floor=0.5, min_gain=-0.2),
        metric=metrics_of(ClassificationSpec(target="pet"))["accuracy"],
    )


def promotion(**change: Any) -> Promotion:
    return Promotion(
        **{
            "winner": "early",
            "candidate": "early" * 8,
            "model": "pets",
            "version": "2",
            "champion_before": "1",
            "champion_after": "2",
            "verdict": verdict(),
            "parent": "parent",
            "runs": {},
            "changed": True,
            "dry_run": False,
            "earlier": False,
            "detail": "version 2 is the champion",
            **change,
        }
    )


def candidate(data: ReportData, name: str) -> CandidateFindings:
    found = data.candidate(name)
    assert found is not None
    return found


def test_accuracies_and_differences_are_those_of_the_stored_answers(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion()
    )
    expected = {"note": 4 / 8, "photo": 5 / 8, "early": 7 / 8}
    for name, accuracy in expected.items():
        found = candidate(data, name)
        assert found.test is not None
        assert found.validation is not None
        assert found.test.value == pytest.approx(accuracy)
        assert found.test.low <= accuracy <= found.test.high
        assert (found.test.n, found.validation.value, found.validation.n) == (8, 1.0, 2)
    assert data.best_single == "photo"
    gain = candidate(data, "early").gain
    assert gain is not None
    assert gain.value == pytest.approx(2 / 8)
    # early is right wherever photo is, so no resample of the pairs can be below zero.
    assert gain.low >= 0
    masked = {item.modality: item for item in candidate(data, "early").masked}
    assert masked["note"].score.value == pytest.approx(5 / 8)
    assert masked["photo"].difference.value == pytest.approx(-3 / 8)
    assert candidate(data, "note").masked == ()
    # In the order of the pipeline, whatever that of the record.
    assert candidate(data, "early").modalities == tuple(masked) == ("note", "photo")
    assert [candidate(data, name).family for name in ANSWERS] == ["single", "single", "fusion"]


def test_the_confusion_counts_the_winners_test_rows(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion()
    )
    assert data.confusion is not None
    np.testing.assert_array_equal(data.confusion, [[2, 0, 0], [0, 3, 0], [1, 0, 2]])
    assert data.classes == CLASSES


def test_slices_and_what_is_missing_are_counted_on_the_test_rows(
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: list[CandidateRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def must_not(*args: object, **options: object) -> None:
        raise AssertionError("to know which rows are there, no embedding need be read")

    monkeypatch.setattr("features.stored_embeddings.read_embedding_shard", must_not)
    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion()
    )
    found = {(s.group, s.value): (s.score.n, round(s.score.value, 3)) for s in data.slices}
    assert found == {
        ("place", "(none)"): (1, 0.0),
        ("place", "land"): (3, 1.0),
        ("place", "sea"): (4, 1.0),
        (None, "nothing missing"): (3, 1.0),
        (None, "note missing"): (3, 0.667),
        (None, "photo missing"): (2, 1.0),
    }


def test_splits_count_what_is_labelled_and_what_is_not_used(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[])
    assert [(s.name, s.rows, s.labelled) for s in data.splits] == [
        ("train", 2, 1),
        ("validation", 2, 2),
        ("test", 8, 8),
        ("not used", 2, 2),
    ]
    assert data.samples == 14
    photo = data.modalities[1]
    assert (photo.cells, photo.kind, photo.encoder, photo.options) == (
        {"picture": "path/to/image.png"},
        "image",
        "hog",
        "size 16",
    )
    assert (photo.present, photo.missing, photo.bad, photo.dim) == (8, 4, 2, 3)


def test_leaks_are_found_in_the_snapshot_itself(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[])
    assert [(leak.modality, leak.sides, leak.count, leak.examples) for leak in data.leaks] == [
        (name, ("train", "test"), 1, (("pet-0", "pet-5"),)) for name in ("note", "photo")
    ]
    assert [(found.modality, found.rows, found.payloads) for found in data.repeated] == [
        ("note", 2, len(PRESENT["note"])),
        ("photo", 2, len(PRESENT["photo"])),
    ]
    assert "pet-0 (train) and pet-5 (test)" in re.sub(r"<[^>]*>", "", render(data))


def test_a_class_without_a_training_row_is_named(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[])
    assert data.untrained == ("dog", "eel")  # the one labelled training row is of a cat
    text = " ".join(re.sub(r"<[^>]*>", "", render(data)).split())
    assert "No training row is of the classes dog, eel, so none of them is ever learned." in text


def test_reasons_are_grouped_without_the_names_in_them(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    names = [f"no such file: 'photos/{i}.png'" for i in range(2)]
    quarantine(store, modality="photo", rows=[2, 3], reasons=names)
    quarantine(store, modality="note", rows=[9], reasons=["a damaged 'fmt ' chunk"])
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[])
    assert [(r.count, r.modality, r.stage, r.reason) for r in data.bad_reasons] == [
        (2, "photo", "fetch", "no such file"),
        (1, "note", "fetch", "a damaged 'fmt ' chunk"),
    ]
    assert [(b.sample_id, b.modality, b.reason) for b in data.quarantined] == [
        ("pet-9", "note", "a damaged 'fmt ' chunk"),
        ("pet-2", "photo", "no such file: 'photos/0.png'"),
        ("pet-3", "photo", "no such file: 'photos/1.png'"),
    ]


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        ("no such file: 'photos/1.png'", "no such file"),
        ('no such file: "photos/it\'s.png"', "no such file"),
        ("a damaged 'fmt ' chunk", "a damaged 'fmt ' chunk"),
        ("http://me:s3cret@host says 404", "http://…@host says 404"),
    ],
)
def test_a_reason_is_grouped_without_the_name_it_ends_with(reason: str, group: str) -> None:
    assert reason_group(reason) == group


def test_a_long_quarantine_is_counted_whole_and_listed_in_part(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.reporting.collect_data.LISTED_PAYLOADS", 5)
    monkeypatch.setattr("workflows.reporting.collect_data.LISTED_REASONS", 4)
    reasons = [f"fault number {i}" for i in range(14)]
    quarantine(store, modality="photo", rows=list(range(14)), reasons=reasons)
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[])
    assert len(data.quarantined) == 5
    assert len(data.bad_reasons) == 5
    assert (data.bad_reasons[-1].reason, data.bad_reasons[-1].count) == ("other reasons", 10)


def test_the_gate_is_told_as_it_decided(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion()
    )
    gate, expected = data.gate, verdict()
    assert gate is not None
    assert gate.passed is expected.passed
    assert [c.name for c in gate.conditions] == ["accuracy", "floor"]
    first = gate.conditions[0]
    assert (first.challenger, first.champion, first.rows) == (7 / 8, 4 / 8, 8)
    assert first.difference is not None
    assert first.difference.low == expected.conditions[0].low
    assert (gate.conditions[1].threshold, gate.conditions[1].passed) == (0.5, True)
    assert (gate.version, gate.champion_before, gate.champion_after) == ("2", "1", "2")
    assert data.load_uri == "models:/pets@champion"


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        pytest.param(
            {"dry_run": True, "champion_after": "1"},
            ["This was a trial run.", "no alias was touched"],
            ["decided in an earlier run", "stays at"],
            id="registered, and never judged before",
        ),
        pytest.param(
            {"dry_run": True, "version": None, "champion_after": "1"},
            ["This was a trial run.", "no alias was touched"],
            ["decided in an earlier run", "stays at"],
            id="not registered",
        ),
        pytest.param(
            {"dry_run": True, "earlier": True, "champion_before": "2"},
            ["decided in an earlier run", "stays at"],
            ["trial run"],
            id="a report of what was decided",
        ),
        pytest.param(
            {"earlier": True, "champion_before": "2"},
            ["decided in an earlier run", "stays at"],
            ["trial run"],
            id="a second run",
        ),
        pytest.param(
            {"dry_run": True, "verdict": None, "champion_before": "2"},
            ["chosen by hand", "stays at"],
            ["trial run", "decided in an earlier run"],
            id="champion by hand",
        ),
        pytest.param(
            {"changed": True, "earlier": True},
            ["The alias champion moved from"],
            ["trial run", "decided in an earlier run"],
            id="completed after a kill",
        ),
    ],
)
def test_the_page_says_whether_the_gate_was_asked_now(
    change: dict[str, Any],
    said: list[str],
    unsaid: list[str],
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: list[CandidateRecord],
) -> None:
    data = collect(
        pipeline=pipeline,
        store=store,
        snapshot=snapshot,
        records=records,
        promotion=promotion(**{"changed": False, **change}),
    )
    page = " ".join(re.sub(r"<[^>]+>", "", render(data)).split())
    assert [text for text in said if text not in page] == []
    assert [text for text in unsaid if text in page] == []


def test_without_a_promotion_the_best_on_validation_is_shown(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    def validated(accuracy: float) -> dict[str, Any]:
        return {"metrics": {"validation": {"accuracy": accuracy}}}

    records = [
        write(store, name="note", snapshot=snapshot, **validated(0.7)),
        write(store, name="photo", snapshot=snapshot, **validated(0.9)),
        write(store, name="early", snapshot=snapshot, **validated(0.8)),
    ]
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=records)
    assert data.winner == "photo"
    assert data.gate is None
    assert data.load_uri == ""


def test_a_failed_candidate_keeps_its_reason_and_needs_no_predictions(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    failure = {
        "reason": "the loss is nan",
        "epoch": 3,
        "step": 17,
        "learning_rate": 0.25,
        "sample_ids": ["pet-0", "pet-1"],
    }
    failed = write(
        store,
        name="early",
        snapshot=snapshot,
        fingerprint="failed",
        status="failed",
        failure=failure,
        metrics=None,
        best_epoch=None,
    )
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[records[0], failed])
    found = candidate(data, "early")
    assert found.test is None
    assert found.failure is not None
    assert found.failure.reason == "the loss is nan"
    assert found.failure.where == "epoch 3, step 17, learning rate 0.25"
    assert found.failure.sample_ids == ("pet-0", "pet-1")


@pytest.mark.parametrize("kind", ["alignment", "cca"])
def test_numbers_that_are_not_there_are_nan_and_retrieval_is_by_k(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, kind: str
) -> None:
    pair = {
        "query": "note",
        "target": "photo",
        "split": "test",
        "rows": 3,
        "gallery": 3,
        "recall": {"1": 0.25, "5": 0.5, "10": 0.75},
        "chance": {"1": 1 / 3},
        "class_recall": {"1": 0.5},
        "class_chance": {"1": 0.4},
    }
    record = write(store, name="early", snapshot=snapshot, spec={"type": kind}, retrieval=[pair])
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[record])
    found = candidate(data, "early")
    assert found.family == "alignment"
    assert found.epochs[0].validation_accuracy == 1.0
    assert math.isnan(found.epochs[1].validation_accuracy)
    (block,) = data.retrieval
    assert (block.candidate, block.split) == ("early", "test")
    assert block.pairs[0].same_sample == {1: 0.25, 5: 0.5, 10: 0.75}
    assert block.pairs[0].chance_class == {1: 0.4}


def test_all_that_is_recorded_of_a_space_is_told(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    def pair(first: float, *, query: str = "note", target: str = "photo") -> dict[str, Any]:
        return {
            "query": query,
            "target": target,
            "split": "test",
            "rows": 3,
            "gallery": 3,
            "recall": {"1": first},
            "chance": {"1": 1 / 3},
            "median_rank": 1.5,
            "mean_average_precision": 0.625,
            "class_rows": 0,
            "class_mean_average_precision": None,
        }

    measured = {"accuracy": 0.5, "neighbour_accuracy": 0.75, "log_loss": 0.9}
    shares = {"zero_shot_accuracy.photo": 0.25, "zero_shot_accuracy.note": 0.375}
    space = write(
        store,
        name="early",
        snapshot=snapshot,
        spec={"type": "alignment"},
        retrieval=[pair(0.25, query="photo", target="note"), pair(0.25)],
        metrics={"validation": {"accuracy": 1.0}, "test": {**measured, **shares}},
    )
    better = write(
        store,
        name="note",
        snapshot=snapshot,
        spec={"type": "translation"},
        retrieval=[pair(0.75)],
        metrics={"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.5}},
    )
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[space, better])
    assert [block.candidate for block in data.retrieval] == ["note", "early"]
    first = data.retrieval[1].pairs[0]
    assert (first.query, first.median_rank, first.precision_sample) == ("note", 1.5, 0.625)
    assert (first.same_class, first.precision_class) == ({}, None)
    (found,) = data.spaces
    assert found.candidate == "early"
    assert found.probe == {"validation": 1.0, "test": 0.5}
    assert found.neighbours == {"test": 0.75}
    assert found.zero_shot == {"note": {"test": 0.375}, "photo": {"test": 0.25}}
    assert list(found.zero_shot) == ["note", "photo"], "in the order of the pipeline"
    assert candidate(data, "early").metrics["test"] == {"accuracy": 0.5, "log loss": 0.9}


def test_an_ensembles_members_are_told_by_their_present_names(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    soup = dataclasses.replace(
        records[2],
        name="soup",
        fingerprint="soup",
        training={"monitor": "log_loss"},
        members=[
            {"name": "old", "fingerprint": "note" * 8, "taken": True, "alone": 0.4, "with_it": 0.4},
            {"name": "gone", "fingerprint": "x", "taken": False, "alone": None, "with_it": None},
        ],
    )
    write_candidate(store, soup, predictions=read_predictions(store, "early" * 8))
    data = collect(
        pipeline=pipeline,
        store=store,
        snapshot=snapshot,
        records=[*records, read_record(store, "soup")],
    )
    (found,) = data.ensembles
    assert (found.candidate, found.monitor, found.taken) == ("soup", "log loss", 1)
    first, second = found.members
    assert (first.name, first.alone, first.with_it) == ("note", 0.4, 0.4)
    assert first.test is not None
    assert first.test.value == pytest.approx(4 / 8)
    assert (second.name, second.taken, second.alone, second.test) == ("gone", False, None, None)


def test_a_searchs_trials_are_told_the_best_first(
    pipeline: Pipeline, store: Store, snapshot: Snapshot
) -> None:
    spec = SearchSpec(
        of="early",
        trials=4,
        rungs=2,
        finalists=1,
        space={"width": (8, 16), "learning_rate": {"low": 1e-3, "high": 0.1, "log": True}},
    )
    base = next(item for item in pipeline.spec.candidates if item.name == "early")

    def trial(number: int, *reached: float | None, fingerprint: str = "") -> Trial:
        values = {"width": 8, "learning_rate": 0.01 * (number + 1)}
        return Trial(
            number=number,
            values=values,
            spec=spec.trial(base, number=number, values=values),
            reached=list(reached),
            fingerprints=[fingerprint or str(number)] * len(reached),
        )

    trials = [trial(0, 0.9), trial(1, None), trial(2, 0.8, 0.3), trial(3, 0.8, fingerprint="2")]
    search = Search(spec=spec, trials=trials, round=None, candidates=(trials[2].spec,))
    data = collect(pipeline=pipeline, store=store, snapshot=snapshot, records=[], searches=[search])
    (found,) = data.searches
    assert [t.number for t in found.trials] == [2, 0, 1, 3]
    assert found.best is not None
    assert found.best.name == search.best.spec.name
    assert [t.reached for t in found.trials] == [(0.8, 0.3), (0.9,), (None,), (0.8,)]
    assert [t.like for t in found.trials] == [None, None, None, 2]
    assert (found.monitor, found.lower_is_better) == ("loss", True)
    whole = pipeline.spec.training.max_epochs
    assert found.epochs == (math.ceil(whole / 3), whole)
    assert [d.field for d in found.dimensions] == ["width", "learning_rate"]
    assert found.dimensions[0].choices == (8, 16) and found.dimensions[1].log
    assert "Trial width learning_rate" in " ".join(re.sub(r"<[^>]*>", " ", render(data)).split())


def test_candidates_of_different_rows_are_not_compared(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    predictions = pa.table(
        {
            "row": TEST[:2],
            "split": ["test"] * 2,
            "target": TRUE[:2].astype(np.int32),
            "probabilities": probabilities([0, 0]),
        }
    )
    (record,) = [record for record in records if record.name == "early"]
    store.storage.replace(
        candidate_path("early" * 8, record.files["predictions"]),
        parquet_bytes(predictions).to_pybytes(),
    )
    with pytest.raises(ValueError, match=r"answered different test rows \(2 and 8\)"):
        collect(pipeline=pipeline, store=store, snapshot=snapshot, records=records)


def test_what_is_collected_can_be_rendered(
    pipeline: Pipeline, store: Store, snapshot: Snapshot, records: list[CandidateRecord]
) -> None:
    data = collect(
        pipeline=pipeline,
        store=store,
        snapshot=snapshot,
        records=records,
        promotion=promotion(),
        created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        git_commit="abc123",
        versions={"torch": "2.13.0"},
    )
    text = render(data)
    for expected in (
        "Champion: version\N{NO-BREAK SPACE}2, early fusion",
        "2 January 2026, 03:04 UTC",
        "0.875",
        snapshot.id,
        pipeline.digest,
        "abc123",
        "torch 2.13.0",
    ):
        assert expected in text


def test_the_page_tells_no_password(
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: list[CandidateRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = "postgresql://ml:s3cret/p@w@db.example/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    reasons = ["'s3://key:s3cret@bucket/1.png' is gone", "http://host/2.png?token=s3cret gone"]
    quarantine(store, modality="photo", rows=[2, 3], reasons=reasons)
    page = render(
        collect(
            pipeline=pipeline,
            store=store,
            snapshot=snapshot,
            records=records,
            promotion=promotion(),
        )
    )
    assert page.count("postgresql://…@db.example/mlflow") == 3, "facts, and two commands"
    assert "bucket/1.png" in page
    assert "s3cret" not in page and "p@w" not in page
