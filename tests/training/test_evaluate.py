from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
import torch
from sklearn.linear_model import LogisticRegression

from features.shard import Embeddings
from training.built_in import parse_candidate
from training.data.table import EmbeddingTable, load_table, table_of
from training.evaluation.answers import evaluate, map_rows
from training.evaluation.bootstrap import metric_interval
from training.evaluation.metrics import metrics_of
from training.evaluation.probes import STRENGTHS, best_probe
from training.evaluation.space import fit_probe, retrieval
from training.fitting.loop import Fit, fit_candidate
from training.task import ClassificationSpec, MultilabelSpec
from training.tasks import Classification, Multilabel
from training.training_spec import TrainingSpec

TRAINING = TrainingSpec(batch_size=64, max_epochs=10)


def fit(table: EmbeddingTable, **options: object) -> Fit:
    spec = parse_candidate({"width": 16, "learning_rate": 5e-3, **options})
    return fit_candidate(spec, table=table, training=TRAINING)


def test_every_labelled_evaluation_row_is_answered_once(table) -> None:
    answers = evaluate(fit(table, type="late").model, table=table, modalities=list(table.index))
    rows = [*table.labelled("validation").tolist(), *table.labelled("test").tolist()]
    assert answers.rows.tolist() == rows
    assert answers.targets.tolist() == table.targets[rows].tolist()
    assert answers.splits.tolist().count("validation") == len(table.labelled("validation"))
    np.testing.assert_allclose(answers.answers.sum(axis=1), 1, rtol=1e-5)
    assert answers.answers.dtype == np.float32


@pytest.mark.parametrize("kind", ["early", "late", "attention", "alignment"])
def test_taking_a_modality_away_is_what_never_having_it_gives(table, columns, kind) -> None:
    model = fit(table, type=kind).model
    if kind == "alignment":
        fit_probe(model, table=table, modalities=list(table.index))
    answers = evaluate(model, table=table, modalities=list(table.index))
    assert list(answers.without) == list(table.index)
    raw = columns()
    width = raw["embeddings"]["photo"].values.shape[1]
    raw["embeddings"]["photo"] = Embeddings(
        rows=np.empty(0, np.int64), values=np.empty((0, width), np.float16)
    )
    never = evaluate(model, table=table_of(**raw), modalities=list(table.index))
    assert np.array_equal(answers.without["photo"], never.answers)
    assert not np.array_equal(answers.without["photo"], answers.answers)


def test_metrics_are_those_of_scikit_learn_per_split(table) -> None:
    answers = evaluate(fit(table, type="early").model, table=table, modalities=list(table.index))
    metrics = answers.metrics()
    for split in ("validation", "test"):
        chosen = answers.splits == split
        p, y = answers.answers[chosen].astype(np.float64), answers.targets[chosen]
        p /= p.sum(axis=1, keepdims=True)
        assert metrics[split]["rows"] == chosen.sum()
        assert metrics[split]["accuracy"] == sklearn.metrics.accuracy_score(y, p.argmax(axis=1))
        expected = sklearn.metrics.log_loss(y, p, labels=range(4))
        assert metrics[split]["log_loss"] == pytest.approx(expected, rel=1e-5)
        expected = sklearn.metrics.top_k_accuracy_score(y, p, k=3, labels=range(4))
        assert metrics[split]["top_3_accuracy"] == pytest.approx(expected)
        expected = sklearn.metrics.roc_auc_score(y, p, multi_class="ovr")
        assert metrics[split]["auroc"] == pytest.approx(expected)
        intervals = answers.intervals()[split]
        assert set(intervals) == set(metrics[split]) - {"rows"}
        assert all(low <= metrics[split][m] <= high for m, (low, high) in intervals.items())


def test_groups_are_read_where_a_snapshot_keeps_some(make_store) -> None:
    store, snapshot = make_store("grouped", groups=True)
    found = store.read_groups(snapshot)
    assert found is not None and (found == np.arange(snapshot.rows) // 20).all()
    store, snapshot = make_store("plain")
    assert store.read_groups(snapshot) is None


def test_intervals_are_those_of_the_groups_of_the_split(make_store) -> None:
    store, snapshot = make_store(groups=True)
    task = ClassificationSpec(target="label")
    table = load_table(store, snapshot, task=task, modalities=["photo"])
    answers = evaluate(
        fit(table, type="single", modality="photo").model, table=table, modalities=["photo"]
    )
    assert answers.groups is not None
    assert (answers.groups == answers.rows // 20).all()
    chosen = answers.splits == "test"
    expected = metric_interval(
        metrics_of(task)["accuracy"],
        targets=answers.targets[chosen],
        answers=answers.answers[chosen],
        groups=answers.rows[chosen] // 20,
    )
    assert answers.intervals()["test"]["accuracy"] == [expected.low, expected.high]


def test_one_modality_is_not_taken_away_and_two_classes_have_no_top_3(columns) -> None:
    raw = columns()
    labels = [None if v is None else v in ("cat", "dog") for v in raw["labels"].to_pylist()]
    table = table_of(**{**raw, "labels": pa.chunked_array([labels])})
    model = fit(table, type="single", modality="photo").model
    answers = evaluate(model, table=table, modalities=["photo"])
    assert answers.without == {}
    assert "top_3_accuracy" not in answers.metrics()["test"]


def test_table_of_predictions_keeps_all(table) -> None:
    answers = evaluate(fit(table, type="late").model, table=table, modalities=list(table.index))
    stored = answers.table()
    assert stored.column_names == [
        "row", "split", "target", "probabilities",
        "without.caption", "without.photo", "without.speech",
    ]  # fmt: skip
    kept = np.array(stored["without.speech"].to_pylist(), dtype=np.float32)
    assert np.array_equal(kept, answers.without["speech"])
    assert stored["row"].to_pylist() == answers.rows.tolist()


def test_rows_come_back_in_order_whatever_the_blocks(table, monkeypatch) -> None:
    rows = torch.tensor([5, 3, 200, 7, 8, 9, 3])
    monkeypatch.setattr("training.evaluation.answers.BATCH_ROWS", 2)
    found = map_rows(
        lambda batch: batch.targets,
        model=torch.nn.Identity(),
        table=table,
        rows=rows,
        modalities=["photo"],
    )
    assert torch.equal(found, table.targets[rows])


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_answers_as_scikit_learns_regression(columns, classes) -> None:
    raw = columns()
    if classes == 2:
        labels = [None if v is None else v in ("cat", "dog") for v in raw["labels"].to_pylist()]
        raw["labels"] = pa.chunked_array([labels])
    table = table_of(**raw)
    model = fit(table, type="alignment", dim=6).model
    fit_probe(model, table=table, modalities=list(table.index))

    def joint(rows: torch.Tensor) -> np.ndarray:
        batch = table.batch(rows)
        with torch.no_grad():
            return model.fuse(*batch.inputs).double().numpy()

    def some(split: str) -> torch.Tensor:
        labelled = table.labelled(split)
        present = torch.stack([i[labelled] >= 0 for i in table.index.values()]).any(dim=0)
        return labelled[present]

    train, validation, test = (some(split) for split in ("train", "validation", "test"))
    fits = [
        LogisticRegression(C=c, max_iter=2000).fit(joint(train), table.targets[train])
        for c in STRENGTHS
    ]
    losses = [
        sklearn.metrics.log_loss(table.targets[validation], f.predict_proba(joint(validation)))
        for f in fits
    ]
    expected = fits[int(np.argmin(losses))].predict_proba(joint(test))
    batch = table.batch(test)
    answered = model(*batch.inputs).softmax(dim=1)
    np.testing.assert_allclose(answered.numpy(force=True), expected, rtol=1e-3, atol=1e-5)


def probed_rows(rows: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 3))


def test_a_probe_counts_classes_as_the_loss_does() -> None:
    vectors = {split: probed_rows(120, seed=seed) for split, seed in (("train", 0), ("val", 1))}
    noise = np.random.default_rng(2).normal(size=240)
    labels = (np.concatenate(list(vectors.values()))[:, 0] + 2 * noise > 2).astype(np.int64)
    assert 20 < labels.sum() < 60
    y = {"train": labels[:120], "val": labels[120:]}
    counts = np.array([1.0, 6.0])
    spec = ClassificationSpec(target="y", class_weights={"b": 6.0})
    task = Classification(spec=spec, names=("a", "b"), weights=torch.from_numpy(counts).float())
    weight, bias = best_probe(
        task, train=(vectors["train"], y["train"]), validation=(vectors["val"], y["val"])
    )
    fits = [
        LogisticRegression(C=c, max_iter=2000, class_weight={0: 1.0, 1: 6.0}).fit(
            vectors["train"], y["train"]
        )
        for c in STRENGTHS
    ]
    losses = [
        sklearn.metrics.log_loss(
            y["val"], f.predict_proba(vectors["val"]), sample_weight=counts[y["val"]]
        )
        for f in fits
    ]
    expected = fits[int(np.argmin(losses))].decision_function(vectors["val"])
    found = vectors["val"] @ (weight[1] - weight[0]) + bias[1] - bias[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    plain = LogisticRegression(C=STRENGTHS[0]).fit(vectors["train"], y["train"])
    assert (found > 0).sum() > 2 * plain.predict(vectors["val"]).sum()


def test_a_probe_counts_labels_as_the_loss_does() -> None:
    x, noise = probed_rows(200, seed=3), np.random.default_rng(4).normal(size=(200, 2))
    has = (x[:, :2] + 2 * noise > 2).astype(np.float32)
    spec = MultilabelSpec(target="y", positive_weights={"p": 5.0})
    task = Multilabel(spec=spec, names=("p", "q"), weights=torch.tensor([5.0, 1.0]))
    weight, bias = best_probe(task, train=(x, has), validation=(x[:0], has[:0]))
    for k, positive in enumerate((5.0, 1.0)):
        theirs = LogisticRegression(C=STRENGTHS[0], class_weight={0: 1.0, 1: positive})
        theirs.fit(x, has[:, k])
        np.testing.assert_allclose(x @ weight[k] + bias[k], theirs.decision_function(x), atol=1e-3)


def test_alignment_without_any_modality_answers_the_shares_of_the_classes(table) -> None:
    model = fit(table, type="alignment").model
    fit_probe(model, table=table, modalities=list(table.index))
    batch = table.batch(torch.arange(2))
    nothing = {m: torch.zeros_like(p) for m, p in batch.presence.items()}
    counts = torch.bincount(table.targets[table.labelled("train")]).float() + 1
    answered = model(batch.embeddings, nothing, {}).softmax(dim=1)
    torch.testing.assert_close(answered[0], counts / counts.sum())


@pytest.mark.parametrize("seen", [0, 1])
def test_probe_of_rows_of_fewer_than_two_classes_answers_the_prior(table, seen) -> None:
    model = fit(table, type="alignment").model
    # The labelled training rows of all classes but `seen` of them have no embedding.
    train = table.labelled("train")
    without = train[table.targets[train] >= seen]
    index = {m: i.clone() for m, i in table.index.items()}
    for places in index.values():
        places[without] = -1
    poor = dataclasses.replace(table, index=index)
    fit_probe(model, table=poor, modalities=list(table.index))
    answers = evaluate(model, table=poor, modalities=list(table.index))
    counts = np.bincount(table.targets[train]) + 1
    expected = np.tile(counts / counts.sum(), (len(answers.rows), 1))
    np.testing.assert_allclose(answers.answers, expected, rtol=1e-5)


def test_class_that_training_never_met_is_not_answered(columns) -> None:
    raw = columns()
    labels = raw["labels"].to_pylist()
    test_row = raw["split"].to_pylist().index("test")
    labels[test_row] = "zebra"
    table = table_of(**{**raw, "labels": pa.chunked_array([labels])})
    model = fit(table, type="alignment").model
    fit_probe(model, table=table, modalities=list(table.index))
    answers = evaluate(model, table=table, modalities=list(table.index))
    assert table.classes[-1] == "zebra"
    some = torch.stack([i[answers.rows] >= 0 for i in table.index.values()]).any(dim=0).numpy()
    assert (answers.answers[some, -1] < 1e-6).all()
    assert (answers.answers.argmax(axis=1) != 4).all()


def test_retrieval_counts_the_test_rows_that_have_both(table) -> None:
    model = fit(table, type="alignment").model
    found = retrieval(model, table=table, modalities=list(table.index))
    assert [(f["query"], f["target"]) for f in found] == [
        (a, b) for a in table.index for b in table.index if a != b
    ]
    for entry in found:
        rows = table.with_modalities("test", modalities=[entry["query"], entry["target"]], least=2)
        assert entry["rows"] == entry["gallery"] == len(rows)
        assert entry["class_rows"] == int((table.targets[rows] >= 0).sum())
        assert set(entry["recall"]) == set(entry["class_recall"]) == {"1", "5", "10"}
        assert entry["recall"]["10"] >= entry["recall"]["5"] >= entry["recall"]["1"]
        # The class can be told, and it is the class alone that modalities share.
        assert entry["class_recall"]["1"] >= entry["recall"]["1"]
    strongest = max(f["class_recall"]["1"] - f["class_chance"]["1"] for f in found)
    assert strongest > 0.15


def test_retrieval_of_a_pair_that_no_test_row_has_is_left_out(table) -> None:
    index = {m: i.clone() for m, i in table.index.items()}
    test = table.split["test"]
    index["photo"][test[::2]] = -1
    index["speech"][test[1::2]] = -1
    model = fit(table, type="alignment").model
    found = retrieval(
        model, table=dataclasses.replace(table, index=index), modalities=list(table.index)
    )
    pairs = {(f["query"], f["target"]) for f in found}
    assert ("photo", "speech") not in pairs
    assert ("caption", "photo") in pairs
