"""Temperatures against SciPy's search, and what calibration promises."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

from training.answering import predict
from training.built_in import parse_candidate
from training.candidate import (
    candidate_fingerprint,
    load_model,
    parse_record,
    plan_candidates,
    read_predictions,
)
from training.data.table import load_table
from training.evaluation.calibration import HIGHEST, best_temperature
from training.produce import produce_candidate
from training.task import ClassificationSpec, MultilabelSpec
from training.tasks import Classification, Multilabel, Task
from training.training_spec import TrainingSpec

CLASSES = Classification(spec=ClassificationSpec(target="y"), names=tuple("abcd"))
LABELS = Multilabel(spec=MultilabelSpec(target="y"), names=tuple("pqr"))


def classified(*, sureness: float, rows: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs whose softmax is the truth, made surer by a factor; and classes drawn from it."""
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(rows, 4)) * 1.5
    targets = np.array([rng.choice(4, p=p) for p in scipy.special.softmax(outputs, axis=1)])
    return torch.tensor(outputs * sureness, dtype=torch.float32), torch.tensor(targets)


def loss_of(task: Task, outputs: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    answers = dataclasses.replace(task, temperature=temperature).answers(outputs.double())
    p = answers.double().numpy().clip(1e-12, 1 - 1e-12)
    if isinstance(task, Multilabel):
        return float(-np.log(np.where(targets.numpy() > 0.5, p, 1 - p)).mean())
    return float(-np.log(p[np.arange(len(p)), targets.numpy()]).mean())


@pytest.mark.parametrize("sureness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_a_model_too_sure(sureness) -> None:
    outputs, targets = classified(sureness=sureness)
    found = best_temperature(CLASSES, outputs, targets_R=targets)
    assert found == pytest.approx(sureness, rel=0.05)
    best = scipy.optimize.minimize_scalar(
        lambda t: loss_of(CLASSES, outputs, targets, t), bounds=(0.05, 20), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=1e-3)


def test_one_temperature_for_all_labels_is_the_best_by_scipy() -> None:
    rng = np.random.default_rng(1)
    outputs = torch.tensor(rng.normal(size=(3000, 3)) * 4)
    targets = torch.tensor(rng.random((3000, 3)) < scipy.special.expit(outputs.numpy() / 2.5))
    found = best_temperature(LABELS, outputs.float(), targets_R=targets.float())
    best = scipy.optimize.minimize_scalar(
        lambda t: loss_of(LABELS, outputs, targets.float(), t), bounds=(0.05, 20), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.1)


def test_rows_that_tell_nothing_of_how_sure_to_be_leave_it() -> None:
    outputs, _ = classified(sureness=1.0, rows=50)
    right = outputs.argmax(dim=1)
    assert best_temperature(CLASSES, outputs, targets_R=right) == 1.0
    assert best_temperature(LABELS, outputs[:, :3], targets_R=(outputs[:, :3] > 0).float()) == 1.0
    assert best_temperature(CLASSES, outputs[:0], targets_R=right[:0]) == 1.0
    assert best_temperature(CLASSES, outputs * torch.nan, targets_R=right) == 1.0
    # Always wrong: the less sure the better.
    assert best_temperature(CLASSES, outputs, targets_R=outputs.argmin(dim=1)) == HIGHEST


def test_a_candidate_keeps_its_temperature_and_answers_by_it(make_store) -> None:
    store, snapshot = make_store(noise=2.0)
    task = ClassificationSpec(target="label")
    spec = parse_candidate({"type": "early", "width": 64, "dropout": 0, "learning_rate": 0.02})
    table = load_table(store, snapshot, task=task, modalities=tuple(snapshot.modalities))
    records = {}
    for calibration in ("none", "temperature"):
        training = TrainingSpec(
            batch_size=64, max_epochs=12, monitor="accuracy", calibration=calibration
        )
        options = {"store": store, "snapshot": snapshot, "task": task, "training": training}
        (plan,) = plan_candidates(candidates=[spec], **options)
        records[calibration] = produce_candidate(plan, **options, table=table)
    plain, record = records["none"], records["temperature"]
    assert plain.fingerprint != record.fingerprint, "an option that changes answers is identity"
    assert plain.temperature == 1.0
    assert abs(record.temperature - 1) > 0.2
    metrics = record.metrics["validation"], plain.metrics["validation"]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
    assert metrics[0]["log_loss"] < metrics[1]["log_loss"]
    stored = read_predictions(store, record.fingerprint)
    batch = table.batch(torch.tensor(stored["row"].to_pylist()))
    given = {"embeddings": batch.embeddings, "presence": batch.presence, "masks": batch.masks}
    model = load_model(store, record.fingerprint)
    answered = predict(model, record=record, **given)
    np.testing.assert_allclose(answered, stored["probabilities"].to_pylist(), atol=1e-6)
    outputs = model(*batch.inputs).detach().numpy() / record.temperature
    np.testing.assert_allclose(answered, scipy.special.softmax(outputs, axis=1), atol=1e-6)
    # A record of the time before there were temperatures.
    value = record.to_json()
    del value["temperature"]
    old = parse_record(json.dumps(value))
    outputs = outputs * record.temperature
    expected = scipy.special.softmax(outputs, axis=1)
    np.testing.assert_allclose(predict(model, record=old, **given), expected, atol=1e-6)
    assert candidate_fingerprint(spec, snapshot=snapshot, task=task, training=TrainingSpec()) == (
        candidate_fingerprint(
            spec,
            snapshot=snapshot,
            task=task,
            training=TrainingSpec(calibration="temperature", workers=2),
        )
    )
