"""Each task through the whole pipeline: table, fit, record, report, gate, registered model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.without_ray import embedded, fitted
from features.snapshot import Snapshot
from features.storage import LocalStorage
from features.store import Store
from training.candidate import CandidateRecord, read_predictions
from workflows.pipeline import ConfigurationError, Pipeline, load_pipeline
from workflows.promotion.promote import promote
from workflows.reporting.report import collect, render

ROWS = 240
WORDS = ("red", "round", "heavy")


def rows() -> list[dict[str, Any]]:
    """Things described by words and by numbers; a label and a number follow from both."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(ROWS):
        held = rng.random(3) < [0.5, 0.4, 0.3]
        seen = np.concatenate([held[1:], rng.normal(size=2)]) + rng.normal(size=4) * 0.2
        price = 1000 + 40 * held[0] + 25 * held[1] + 10 * seen[2] + rng.normal()
        labels = [word for word, on in zip(WORDS, held, strict=True) if on]
        found.append(
            {
                "sample_id": f"s{i:03}",
                "text": None if i % 9 == 0 else " ".join(["a", *labels, "thing"]),
                "senses": None if i % 7 == 0 else seen.tolist(),
                "labels": labels,
                **{word: bool(on) for word, on in zip(WORDS, held, strict=True)},
                "colour": "red" if held[0] else "blue",
                "price": price,
                "weight": 2.0 + held[2] + rng.normal() * 0.1,
                "split": "train" if i < 140 else "validation" if i < 180 else "test",
            }
        )
    found[200] |= {"labels": None, "price": None, "colour": None, "red": None}
    return found


def pipeline_of(folder: Path, **spec: Any) -> Pipeline:
    value = {
        "name": "things",
        "dataset": {
            "path": "table.parquet",
            "split": "split",
            "shard_rows": {"min": 32, "target": 64, "max": 128},
        },
        "features": {
            "caption": {"column": "text", "encoder": {"type": "hashing", "dim": 64}},
            "senses": {"column": "senses", "encoder": {"type": "vector", "dim": 4}},
        },
        "candidates": [
            {"type": "single", "modality": "senses", "width": 16, "learning_rate": 0.02},
            {"type": "early", "width": 32, "learning_rate": 0.02},
            {"type": "alignment", "width": 16, "dim": 8, "learning_rate": 0.02},
        ],
        "training": {"max_epochs": 20, "batch_size": 32},
        **spec,
    }
    pq.write_table(pa.Table.from_pylist(rows()), folder / "table.parquet")
    (folder / "things.yaml").write_text(yaml.safe_dump(value))
    return load_pipeline(folder / "things.yaml")


TASKS: dict[str, dict[str, Any]] = {
    "weighted classes": {
        "task": {
            "target": "colour",
            "class_weights": {"red": 2.0},
            "label_smoothing": 0.1,
        },
        "metric": "accuracy",
        "least": 0.8,
    },
    "focal, by another metric": {
        "task": {"target": "colour", "loss": "focal", "class_weights": "balanced"},
        "promotion": {"metric": "auroc", "floor": 0.8, "max_slice_drop": 0.2},
        "metric": "auroc",
        "least": 0.85,
    },
    "labels in lists": {
        "task": {"type": "multilabel", "target": "labels", "positive_weights": "balanced"},
        "metric": "auprc",
        "least": 0.85,
    },
    "labels in columns": {
        "task": {"type": "multilabel", "target": list(WORDS)},
        "promotion": {"metric": "micro_f1"},
        "metric": "micro_f1",
        "least": 0.8,
    },
    "a number": {
        "task": {"type": "regression", "target": "price"},
        "promotion": {"floor": 20},
        "metric": "mae",
        "least": 12,
    },
    "numbers": {
        "task": {"type": "regression", "target": ["price", "weight"], "loss": "huber"},
        "promotion": {"metric": "r2"},
        "metric": "r2",
        "least": 0.5,
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_from_its_table_to_answers(name: str, tmp_path: Path, mlflow_uri: str) -> None:
    case = TASKS[name]
    options = {key: case[key] for key in ("task", "promotion") if key in case}
    pipeline = pipeline_of(tmp_path, **options)
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = embedded(pipeline)
    records = [item.record for item in fitted(pipeline, store, snapshot) if item.record]
    assert [record.status for record in records] == ["fitted"] * 3

    metric = pipeline.metric
    assert metric.name == case["metric"]
    early = records[1]
    assert early.metrics is not None
    reached = early.metrics["test"][metric.name]
    assert metric.gain(reached, case["least"]) > 0, reached
    low, high = early.intervals["test"][metric.name]
    assert low < reached < high
    assert early.metrics["test"]["rows"] == 59, "all test rows but the one without a label"

    predictions = read_predictions(store, early.fingerprint)
    assert pipeline.spec.task.answer_column in predictions.column_names
    truth = predictions.filter(pa.compute.equal(predictions["split"], "test"))["target"]
    if name == "a number":
        shown = [row["price"] for row in rows() if row["split"] == "test"]
        expected = [price for price in shown if price is not None]
        np.testing.assert_allclose(np.array(truth.to_pylist())[:, 0], expected, rtol=1e-6)

    promotion = promote(pipeline=pipeline, store=store, snapshot=snapshot, records=records)
    assert promotion.promoted
    assert promotion.winner == "early"
    assert promotion.verdict is not None
    assert promotion.verdict.score == pytest.approx(reached, rel=1e-5)

    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion
    )
    leads = {item.name: item.lead for item in data.candidates}
    assert leads["early"] is None
    assert leads["single-senses"] is not None
    assert leads["single-senses"].sure
    assert leads["single-senses"].gain.low > 0
    page = render(data)
    assert metric.title in page
    assert "Its lead over" in page

    check_answers(pipeline, early, snapshot=snapshot, store=store)


def check_answers(
    pipeline: Pipeline, record: CandidateRecord, *, snapshot: Snapshot, store: Store
) -> None:
    """The champion says of raw rows what the store's predictions say of their embeddings."""
    table = pd.DataFrame(rows())
    stored = read_predictions(store, record.fingerprint).sort_by("row").to_pylist()
    there = table["text"].notna() | table["senses"].notna()
    asked = [row for row in stored if row["split"] == "test" and there[row["row"]]][:20]
    model = mlflow.pyfunc.load_model("models:/things@champion")
    found = model.predict(table.iloc[[row["row"] for row in asked]][["text", "senses"]])
    task = pipeline.spec.task
    expected = np.array([row[task.answer_column] for row in asked])
    np.testing.assert_allclose(
        np.array(found[task.answer_column].tolist()), expected, rtol=1e-4, atol=1e-5
    )
    first = found["prediction"].tolist()
    if task.type == "regression":
        several = len(task.targets) > 1
        np.testing.assert_allclose(first, expected if several else expected[:, 0], rtol=1e-5)
    elif task.type == "multilabel":
        names = list(record.classes)
        assert first == [[n for n, p in zip(names, row) if p >= 0.5] for row in expected]
    else:
        assert first == [record.classes[i] for i in expected.argmax(axis=1)]
        np.testing.assert_allclose(found["confidence"], expected.max(axis=1), rtol=1e-4)
    nothing = model.predict(pd.DataFrame({"text": [None], "senses": [None]}))
    assert nothing[task.answer_column].tolist() == nothing["prediction"].tolist() == [None]
    assert nothing["problems"].tolist() == ["no payload is there"]


def test_a_retrieval_needs_no_labels_and_gives_vectors(tmp_path: Path, mlflow_uri: str) -> None:
    candidates = [
        {"type": "alignment", "width": 16, "dim": 8, "learning_rate": 0.02},
        {"type": "alignment", "name": "untaught", "learning_rate": 1e-9, "seed": 5, "dim": 3},
    ]
    options = {"task": {"type": "retrieval"}, "candidates": candidates}
    pipeline = pipeline_of(tmp_path, **options)
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = embedded(pipeline)
    records = [item.record for item in fitted(pipeline, store, snapshot) if item.record]
    assert [record.status for record in records] == ["fitted"] * 2
    metrics = records[0].metrics
    assert metrics is not None
    # The mean of what retrieval is told of, pair by pair.
    told = [item["recall"]["5"] for item in records[0].retrieval or ()]
    assert metrics["test"]["recall_at_5"] == pytest.approx(np.mean(told))
    assert metrics["test"]["rows"] == 60
    assert metrics["test"]["recall_at_10"] > 0.3, "of 46 rows that have both"
    assert pipeline.metric.name == "recall_at_1"

    promotion = promote(pipeline=pipeline, store=store, snapshot=snapshot, records=records)
    assert promotion.promoted
    data = collect(
        pipeline=pipeline, store=store, snapshot=snapshot, records=records, promotion=promotion
    )
    page = render(data)
    assert "recall@1" in page
    model = mlflow.pyfunc.load_model("models:/things@champion")
    table = pd.DataFrame(rows()).iloc[180:220]
    vectors = [v or {} for v in model.predict(table[["text", "senses"]])["vectors"]]
    for (_, row), found in zip(table.iterrows(), vectors, strict=True):
        there = {"caption": isinstance(row["text"], str), "senses": isinstance(row["senses"], list)}
        assert {name for name, here in there.items() if here} == set(found)
        for vector in found.values():
            assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-5)
    both = [found for found in vectors if len(found) == 2]
    a, b = (np.array([found[name] for found in both]) for name in ("caption", "senses"))
    own = np.diag(a @ b.T).mean()
    assert own > (a @ b.T).mean() + 0.2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": {"type": "retrieval"}}, r"candidates\.0.*'single' has no common space"),
        ({"task": {"target": "price", "gamma": 1}}, "`gamma` belongs to `loss: focal`"),
        ({"task": {"type": "regresion", "target": "price"}}, "did you mean 'regression'"),
        ({"task": {"type": "regression", "target": "prize"}}, "did you mean 'price'"),
        ({"task": {"type": "regression", "target": ["price", "price"]}}, "a column twice"),
        (
            {"task": {"target": "colour"}, "promotion": {"metric": "acuracy"}},
            r"promotion\.metric: there is no metric 'acuracy'.*did you mean 'accuracy'",
        ),
        (
            {"task": {"target": "colour"}, "promotion": {"floor": 95}},
            r"promotion\.floor: accuracy is a share: at least 0 and at most 1",
        ),
        (
            {
                "task": {"type": "regression", "target": "price"},
                "candidates": [{"type": "alignment", "positives": "class"}],
            },
            r"candidates\.0\.positives: a regression task has no classes",
        ),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(
    spec: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pipeline_of(tmp_path, **spec).open_source()
