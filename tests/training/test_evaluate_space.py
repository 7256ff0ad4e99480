"""Neighbours, classes by their names and retrieval, in a space that is fitted to a toy table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from training.built_in import parse_candidate
from training.data.table import EmbeddingTable, table_of
from training.evaluation.class_names import EmbeddedNames
from training.evaluation.metrics import metrics_of
from training.evaluation.neighbours import nearest_neighbours
from training.evaluation.probes import best_probe
from training.evaluation.space import (
    class_vectors,
    fit_probe,
    neighbour_accuracy,
    retrieval,
    zero_shot_accuracy,
)
from training.fitting.loop import fit_candidate
from training.models.shared_space import SharedSpace
from training.task import RetrievalSpec
from training.training_spec import TrainingSpec

TRAINING = TrainingSpec(batch_size=64, max_epochs=30)


def vectors(rows: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("block_scores", [1, 500, 10**6])
def test_neighbours_vote_as_in_scikit_learn(block_scores) -> None:
    known, queries = vectors(90, seed=0), vectors(40, seed=1)
    classes = torch.arange(90) % 4
    ours = nearest_neighbours(
        queries, known_NS=known, classes_N=classes, classes=5, block_scores=block_scores
    )
    theirs = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    )
    theirs.fit(known.numpy(), classes.numpy())
    np.testing.assert_allclose(ours[:, :4], theirs.predict_proba(queries.numpy()), atol=1e-9)
    assert (ours[:, 4] == 0).all()


def test_few_known_rows_all_vote_and_none_are_refused() -> None:
    known = vectors(3, seed=0)
    votes = nearest_neighbours(known, known_NS=known, classes_N=torch.arange(3), classes=3)
    assert votes.argmax(dim=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no known rows"):
        nearest_neighbours(known, known_NS=known[:0], classes_N=torch.arange(0), classes=3)


@pytest.fixture(scope="module")
def named(columns) -> tuple[EmbeddingTable, SharedSpace]:
    """A table whose captions are the names of the classes, in noise, and a space fitted to it."""
    torch.set_num_threads(1)
    raw = columns(rows=600, noise=0.4, missing=0.05)
    codes = np.array([-1 if v is None else sorted(set(raw["labels"].to_pylist()) - {None}).index(v)
                      for v in raw["labels"].to_pylist()])  # fmt: skip
    caption = raw["embeddings"]["caption"]
    noise = np.random.default_rng(5).normal(size=caption.values.shape)
    values = 4 * np.eye(5)[codes[caption.rows]] + 0.3 * noise
    raw["embeddings"]["caption"] = dataclasses.replace(caption, values=values.astype(np.float16))
    table = table_of(**raw)
    # No label is learned from: rows belong together by their sample alone.
    spec = parse_candidate({"type": "alignment", "width": 16, "dim": 8, "learning_rate": 5e-3})
    return table, fit_candidate(spec, table=table, training=TRAINING).model


def test_classes_are_told_by_their_names(named) -> None:
    table, model = named
    names = 4 * torch.eye(5)[:4]
    found = class_vectors(
        model,
        modality="caption",
        names=EmbeddedNames(embeddings=names, classes=torch.arange(4), masks=None),
    )
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    accuracy = zero_shot_accuracy(model, table=table, class_vectors_CS=found)
    assert accuracy["test"]["caption"] > 0.9
    # photo tells half of the class, speech all of it, though with noise.
    assert accuracy["test"]["speech"] > 0.5
    assert accuracy["validation"]["photo"] > 0.35
    wrong = zero_shot_accuracy(model, table=table, class_vectors_CS=found.flip(0))
    assert wrong["test"]["caption"] < 0.1


def test_several_wordings_are_averaged(named) -> None:
    _, model = named
    names = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 1, 0, 2, 2])
    worded = EmbeddedNames(embeddings=names, classes=classes, masks=None)
    found = class_vectors(model, modality="caption", names=worded)
    with torch.no_grad():
        each = model.embed("caption", x=names, present_B=torch.ones(5, dtype=torch.bool))
    for c in range(3):
        expected = F.normalize(each[classes == c].mean(dim=0), dim=0)
        torch.testing.assert_close(found[c], expected)


def test_accuracy_of_the_neighbours_is_that_of_scikit_learn(named) -> None:
    table, model = named
    found = neighbour_accuracy(model, table=table, modalities=list(table.index))

    def joint(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = table.labelled(split)
        some = torch.stack([i[rows] >= 0 for i in table.index.values()]).any(dim=0)
        batch = table.batch(rows[some])
        with torch.no_grad():
            return model.fuse(*batch.inputs).numpy(), table.targets[rows[some]].numpy()

    theirs = KNeighborsClassifier(
        n_neighbors=20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(*joint("train"))
    for split in ("validation", "test"):
        assert found[split] == pytest.approx(theirs.score(*joint(split)), abs=0.01)
    assert found["test"] > 0.8


def test_a_probe_and_neighbours_hold_no_more_than_a_stated_number_of_rows(
    named, monkeypatch, caplog
) -> None:
    table, model = named
    held: list[int] = []

    def watched(task, *, train, validation):
        held.extend([len(train[0]), len(validation[0])])
        return best_probe(task, train=train, validation=validation)

    def voted(queries, *, known_NS, **options):
        held.append(len(known_NS))
        return nearest_neighbours(queries, known_NS=known_NS, **options)

    monkeypatch.setattr("training.evaluation.space.best_probe", watched)
    fit_probe(model, table=table, modalities=list(table.index))
    assert held[0] > 300 and not caplog.records
    monkeypatch.setattr("training.evaluation.space.MOST_VALUES", 8 * 50)
    fitted = []
    with caplog.at_level("INFO"):
        for _ in range(2):
            fit_probe(model, table=table, modalities=list(table.index))
            fitted.append(model.probe_weight_CS.clone())
        monkeypatch.setattr("training.evaluation.space.nearest_neighbours", voted)
        fewer = neighbour_accuracy(model, table=table, modalities=list(table.index))
    assert set(held[2:]) == {50} and len(held) > 6
    assert torch.equal(fitted[0], fitted[1])
    assert f"50 of the {held[0]} labelled train rows" in caplog.text
    assert fewer["test"] > 0.7


def test_workers_wait_for_a_probe_in_a_group_of_patience(named, monkeypatch) -> None:
    table, model = named
    group, waited = object(), []
    monkeypatch.setattr("training.evaluation.space.agreement_group", lambda: group)
    monkeypatch.setattr("training.evaluation.space.dist.destroy_process_group", waited.append)

    def of_first_worker(value, *, group):
        waited.append(group)
        return value

    monkeypatch.setattr("training.evaluation.space.of_first_worker", of_first_worker)
    fit_probe(model, table=table, modalities=list(table.index))
    assert waited == [group, group]


def test_a_space_is_told_of_by_the_recalls_that_a_retrieval_is_judged_by(named) -> None:
    table, model = named
    found = retrieval(model, table=table, modalities=list(table.index))
    judged = {f"recall_at_{k}" for k in found[0]["recall"]}
    assert judged == set(metrics_of(RetrievalSpec()))


def test_rows_with_the_same_payload_are_right_answers(named) -> None:
    table, model = named
    # Every two test rows have one photo.
    payloads = torch.arange(table.rows)
    test = table.split["test"]
    payloads[test[1::2]] = payloads[test[::2]][: len(test[1::2])]
    several = dataclasses.replace(table, payloads={"photo": payloads})
    options = {"modalities": list(table.index)}
    alone = retrieval(model, table=table, **options)
    counted = retrieval(model, table=several, **options)
    for one, other in zip(alone, counted, strict=True):
        touched = "photo" in (one["query"], one["target"])
        assert (other["chance"]["1"] > one["chance"]["1"]) == touched
        assert (other["median_rank"] < one["median_rank"]) == touched
        assert other["class_recall"] == one["class_recall"]


def test_batches_carry_the_numbers_of_payloads_into_the_loss(named) -> None:
    table, model = named
    rows = table.with_modalities("train", modalities=["photo", "speech"], least=2)[:64]
    same = {m: torch.arange(table.rows) // 2 for m in table.index}
    several = dataclasses.replace(table, payloads=same)
    batch = several.batch(rows)
    assert set(batch.payloads) == set(table.index)
    assert torch.equal(batch.payloads["photo"], rows // 2)
    with torch.no_grad():
        assert model.loss_share(batch) != model.loss_share(table.batch(rows))
    assert set(several.select(["photo"]).payloads) == {"photo"}
