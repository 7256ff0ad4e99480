from __future__ import annotations

import dataclasses
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.snapshot import Snapshot
from features.storage import LocalStorage
from features.store import Store
from training.answering import predict
from training.built_in import parse_candidate
from training.candidate import (
    CandidateRecord,
    candidate_fingerprint,
    load_model,
    load_model_files,
    plan_candidates,
    read_predictions,
    read_record,
    write_candidate,
)
from training.data.table import load_table
from training.faults import CandidateFault
from training.fitting.loop import fit_candidate
from training.models.alignment_spec import CorrelationSpec
from training.models.late import LateFusion
from training.produce import produce_candidate
from training.spec import CandidateSpec
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

TASK = ClassificationSpec(target="label")
TRAINING = TrainingSpec(batch_size=64, max_epochs=3)


def produce(
    store: Store, snapshot: Snapshot, *specs: CandidateSpec, training: TrainingSpec = TRAINING
) -> list[CandidateRecord]:
    options = {"store": store, "snapshot": snapshot, "task": TASK, "training": training}
    table = load_table(store, snapshot, task=TASK, modalities=tuple(snapshot.modalities))
    planned = plan_candidates(
        store, snapshot=snapshot, task=TASK, candidates=specs, training=training
    )
    return [produce_candidate(candidate, **options, table=table) for candidate in planned]


def fingerprint(snapshot: Snapshot, *, training: TrainingSpec = TRAINING, **options) -> str:
    spec = parse_candidate({"type": "late", **options})
    return candidate_fingerprint(spec, snapshot=snapshot, task=TASK, training=training)


def test_identity_is_what_can_change_the_result(make_store) -> None:
    _, snapshot = make_store()
    base = fingerprint(snapshot)
    everything = ["speech", "photo", "caption"]
    workers = TRAINING.model_copy(update={"workers": 3, "checkpoint_every": 1})
    for alike in (
        fingerprint(snapshot, name="renamed"),
        fingerprint(snapshot, modalities=everything),
        fingerprint(snapshot, training=workers),
    ):
        assert alike == base
    others = [
        fingerprint(snapshot, type="early"),
        fingerprint(snapshot, seed=1),
        fingerprint(snapshot, learning_rate=2e-3),
        fingerprint(snapshot, modalities=["speech", "photo"]),
        fingerprint(snapshot, training=TRAINING.model_copy(update={"batch_size": 65})),
        candidate_fingerprint(
            parse_candidate({"type": "late"}),
            snapshot=snapshot,
            task=ClassificationSpec(target="other"),
            training=TRAINING,
        ),
    ]
    assert len({base, *others}) == len(others) + 1


UNUSED = {"seed": 1, "width": 9, "learning_rate": 2e-3, "weight_decay": 0.5, "dropout": 0.3}


def test_what_a_closed_form_makes_nothing_of_is_not_its_identity_and_is_refused(
    make_store, monkeypatch
) -> None:
    store, snapshot = make_store()
    longer = TRAINING.model_copy(update={"max_epochs": 9, "patience": 1, "ema": 0.9, "warmup": 0.5})
    table = load_table(store, snapshot, task=TASK, modalities=["caption", "photo"])
    cca: dict[str, Any] = {"type": "cca", "dim": 3}
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(CorrelationSpec, "check_task", lambda self, task: iter(()))
        for training, options in ((TRAINING, cca), (longer, {**cca, **UNUSED})):
            spec = parse_candidate(options)
            model = fit_candidate(spec, training=training, table=table).model
            found.append((fingerprint(snapshot, training=training, **options), model))
    (name, model), (again, other) = found
    assert name == again
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    batches = TRAINING.model_copy(update={"batch_size": 65})
    others = [
        fingerprint(snapshot, **{**cca, "dim": 4}),
        fingerprint(snapshot, **cca, regularisation=0.1),
        fingerprint(snapshot, **cca, training=batches),
    ]
    assert len({name, *others}) == 4
    refused = dict(parse_candidate({**cca, **UNUSED}).check_task(TASK))
    assert {where for (where,) in refused} == set(UNUSED)
    assert "'cca' makes nothing of it; leave it out" in refused["width",]
    average = parse_candidate({"type": "average", "of": ["a", "b"], "seed": 3})
    assert [where for where, _ in average.check_task(TASK)] == [("seed",)]


def test_another_encoder_concerns_its_own_modality_alone(make_store) -> None:
    _, snapshot = make_store()
    photo = dataclasses.replace(snapshot.modalities["photo"], encoder_fingerprint="another")
    changed = dataclasses.replace(snapshot, modalities={**snapshot.modalities, "photo": photo})
    speech = {"type": "single", "modality": "speech"}
    assert fingerprint(changed, **speech) == fingerprint(snapshot, **speech)
    assert fingerprint(changed) != fingerprint(snapshot)


@pytest.mark.parametrize("kind", ["single", "early", "late", "attention", "alignment"])
def test_a_produced_candidate_is_all_there_and_answers_as_recorded(make_store, kind) -> None:
    store, snapshot = make_store()
    spec = parse_candidate(
        {"type": kind, "width": 8, **({"modality": "speech"} if kind == "single" else {})}
    )
    (record,) = produce(store, snapshot, spec)
    assert read_record(store, record.fingerprint) == record
    assert (record.status, record.failure, record.name) == ("fitted", None, spec.name)
    assert record.classes == ["cat", "dog", "eel", "fox"]
    assert (record.snapshot, record.workers, len(record.epochs)) == (snapshot.id, 1, 3)
    assert parse_candidate(record.spec) == spec
    assert (record.retrieval is not None) == (kind == "alignment")
    table = load_table(store, snapshot, task=TASK, modalities=list(record.modalities))
    stored = read_predictions(store, record.fingerprint)
    rows = np.array(stored["row"])
    batch = table.batch(torch.tensor(rows))
    model = load_model(store, record.fingerprint)
    answered = predict(
        model,
        record=record,
        embeddings={m: x.numpy() for m, x in batch.embeddings.items()},
        presence={m: p.numpy() for m, p in batch.presence.items()},
    )
    probabilities = np.array(stored["probabilities"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(answered, probabilities, rtol=1e-5, atol=1e-7)
    right = probabilities.argmax(axis=1) == np.array(stored["target"])
    for split in ("validation", "test"):
        chosen = np.array(stored["split"].to_pylist()) == split
        assert record.metrics[split]["accuracy"] == pytest.approx(right[chosen].mean())
    without = [name for name in stored.column_names if name.startswith("without.")]
    several = [] if kind == "single" else [f"without.{m}" for m in record.modalities]
    assert without == several


@pytest.mark.parametrize("kind", ["single", "early", "late", "attention", "alignment"])
def test_a_modality_may_bear_the_name_of_a_modules_attribute(make_store, kind) -> None:
    store, snapshot = make_store()
    names = ["values", "training", "type"]
    renamed = dict(zip(names, snapshot.modalities.values()))
    snapshot = dataclasses.replace(snapshot, modalities=renamed)
    options = {"modality": "values"} if kind == "single" else {}
    (record,) = produce(store, snapshot, parse_candidate({"type": kind, "width": 8, **options}))
    assert (record.status, record.failure) == ("fitted", None)
    assert sorted(record.modalities) == (["values"] if kind == "single" else sorted(names))
    stored = read_predictions(store, record.fingerprint)
    batch = load_table(store, snapshot, task=TASK, modalities=list(record.modalities)).batch(
        torch.tensor(np.array(stored["row"]))
    )
    answered = predict(
        load_model(store, record.fingerprint),
        record=record,
        embeddings=batch.embeddings,
        presence=batch.presence,
    )
    expected = np.array(stored["probabilities"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-7)
    if kind == "alignment":
        pairs = {(found["query"], found["target"]) for found in record.retrieval}
        assert pairs == set(permutations(names, 2))


def test_model_is_loaded_from_a_folder_of_its_own(make_store, tmp_path) -> None:
    store, snapshot = make_store()
    (record,) = produce(store, snapshot, parse_candidate({"type": "attention", "width": 8}))
    ours = load_model(store, record.fingerprint)
    theirs = load_model_files(Path(store.storage.root) / "candidates" / record.fingerprint)
    assert not theirs.training
    for name, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value)


def test_prediction_takes_half_precision_and_absent_rows_of_any_content(make_store) -> None:
    store, snapshot = make_store()
    (record,) = produce(store, snapshot, parse_candidate({"type": "late", "width": 8}))
    model = load_model(store, record.fingerprint)
    rng = np.random.default_rng(0)
    embeddings = {
        m: rng.normal(size=(5, part["dim"])).astype(np.float16)
        for m, part in record.modalities.items()
    }
    presence = {m: np.ones(5, dtype=bool) for m in embeddings}
    presence["photo"][2:] = False
    expected = predict(model, record=record, embeddings=embeddings, presence=presence)
    embeddings["photo"][2:] = np.nan
    for values in embeddings.values():
        values.setflags(write=False)  # as read from a file
    answered = predict(model, record=record, embeddings=embeddings, presence=presence)
    assert np.array_equal(answered, expected)
    assert (answered.dtype, answered.shape) == (np.float32, (5, 4))


def test_a_planned_candidate_is_found_again_under_its_present_name(make_store) -> None:
    store, snapshot = make_store()
    (record,) = produce(store, snapshot, parse_candidate({"type": "late", "width": 8}))
    renamed = parse_candidate({"type": "late", "width": 8, "name": "renamed"})
    other = parse_candidate({"type": "early", "width": 8})
    first, second = plan_candidates(
        store, snapshot=snapshot, task=TASK, candidates=[renamed, other], training=TRAINING
    )
    assert first.fingerprint == record.fingerprint
    assert first.record is not None
    assert first.record.name == "renamed"
    assert second.record is None
    assert second.modalities == ("caption", "photo", "speech")


def test_a_candidate_is_written_once(make_store) -> None:
    store, snapshot = make_store()
    (record,) = produce(store, snapshot, parse_candidate({"type": "late", "width": 8}))
    folder = Path(store.storage.root) / "candidates" / record.fingerprint
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    model = load_model(store, record.fingerprint)
    assert write_candidate(store, record, model=model) == record
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()} == before


def test_files_that_a_killed_attempt_left_are_no_candidate(make_store) -> None:
    store, snapshot = make_store()
    spec = parse_candidate({"type": "late", "width": 8})
    name = candidate_fingerprint(spec, snapshot=snapshot, task=TASK, training=TRAINING)
    store.storage.write_once(f"candidates/{name}/model-0.safetensors", b"of another attempt")
    assert read_record(store, name) is None
    for read in (load_model, read_predictions):
        with pytest.raises(FileNotFoundError, match=name):
            read(store, name)
    (record,) = produce(store, snapshot, spec)
    assert record.fingerprint == name
    load_model(store, name)


@pytest.mark.parametrize("overtaken_before", ["model", "predictions", "record"])
def test_of_two_writers_at_once_one_wins_with_all_its_files(
    make_store, monkeypatch, overtaken_before
) -> None:
    store, snapshot = make_store()
    other, _ = make_store("other")
    spec = parse_candidate({"type": "late", "width": 8})
    (made,) = produce(other, snapshot, spec)
    first, second = load_model(other, made.fingerprint), load_model(other, made.fingerprint)
    table = read_predictions(other, made.fingerprint)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    write_once, winners = LocalStorage.write_once, []

    def overtaken(storage: LocalStorage, path: str, data: bytes) -> bool:
        if Path(path).name.startswith(overtaken_before) and not winners:
            winners.append(None)
            record = dataclasses.replace(made, seconds=1234.0)
            answers = table.slice(0, 5)
            winners[0] = write_candidate(store, record, model=second, predictions=answers)
        return write_once(storage, path, data)

    monkeypatch.setattr(LocalStorage, "write_once", overtaken)
    returned = write_candidate(store, made, model=first, predictions=table)
    assert winners == [returned]
    assert read_record(store, made.fingerprint) == returned
    assert returned.seconds == 1234.0
    assert read_predictions(store, made.fingerprint).equals(table.slice(0, 5))
    stored = load_model(store, made.fingerprint).state_dict()
    assert all(torch.equal(stored[name], value) for name, value in second.state_dict().items())


def test_a_failed_candidate_is_recorded_and_the_others_go_on(make_store) -> None:
    store, snapshot = make_store()
    wild = parse_candidate({"type": "early", "width": 8, "learning_rate": 1e36, "name": "wild"})
    tame = parse_candidate({"type": "late", "width": 8})
    failed, fitted = produce(store, snapshot, wild, tame)
    assert (failed.status, fitted.status) == ("failed", "fitted")
    assert set(failed.failure) == {"reason", "epoch", "step", "learning_rate", "sample_ids"}
    assert failed.metrics is None
    again = read_record(store, failed.fingerprint)
    assert again == failed
    folder = Path(store.storage.root) / "candidates" / failed.fingerprint
    assert [path.name for path in folder.iterdir()] == ["record.json"]
    with pytest.raises(ValueError, match="'wild' failed and has no model"):
        load_model(store, failed.fingerprint)


@pytest.mark.parametrize("place", ["build", "training", "validation", "evaluation"])
def test_a_fault_of_a_candidates_own_code_is_not_recorded(make_store, monkeypatch, place) -> None:
    store, snapshot = make_store()
    spec = parse_candidate({"type": "late", "width": 8})
    forward = LateFusion.forward

    def broken(self: LateFusion, embeddings, presence, masks):
        where = "training" if self.training else "validation"
        if not self.training and torch.is_inference_mode_enabled():
            where = "evaluation"
        if where == place:
            raise IndexError("no such token")
        return forward(self, embeddings, presence, masks)

    def no_build(self: LateFusion, *_: object, **__: object) -> None:
        raise IndexError("no such token")

    with monkeypatch.context() as patch:
        if place == "build":
            patch.setattr(LateFusion, "__init__", no_build)
        patch.setattr(LateFusion, "forward", broken)
        with pytest.raises(CandidateFault, match=r"^IndexError: no such token \(.*candidate\.py:"):
            produce(store, snapshot, spec)
        name = candidate_fingerprint(spec, snapshot=snapshot, task=TASK, training=TRAINING)
        assert store.storage.list(f"candidates/{name}") == set()
    (record,) = produce(store, snapshot, spec)
    assert record.status == "fitted"


def test_a_candidate_that_its_data_do_not_allow_is_recorded_as_failed(make_store) -> None:
    store, snapshot = make_store(missing=1.0)
    (record,) = produce(store, snapshot, parse_candidate({"type": "late"}))
    assert record.status == "failed"
    assert "none of the 150 training rows has an embedding" in record.failure["reason"]


def test_a_record_holds_what_its_readers_expect(make_store) -> None:
    store, snapshot = make_store()
    (record,) = produce(store, snapshot, parse_candidate({"type": "alignment", "width": 8}))
    path = Path(store.storage.root) / "candidates" / record.fingerprint / "record.json"
    value = json.loads(path.read_text())
    assert set(value) == {
        "fingerprint", "name", "spec", "training", "task", "snapshot", "part", "classes",
        "modalities", "parameters", "status", "failure", "best_epoch", "epochs", "seconds",
        "workers", "metrics", "intervals", "retrieval", "target_scale", "temperature",
        "code", "members", "study", "files",
    }  # fmt: skip
    assert set(value["epochs"][0]) == {
        "epoch", "train_loss", "gradient_norm", "validation_loss", "validation_accuracy",
            "validation_metrics", "learning_rate", "seconds",
    }  # fmt: skip
    assert value["modalities"]["photo"] == {
        "kind": "text", "dim": 7, "encoder_fingerprint": "of-photo", "sequence": False,
    }  # fmt: skip
    assert value["parameters"] == sum(
        p.numel() for p in load_model(store, record.fingerprint).parameters()
    )
