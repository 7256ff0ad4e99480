"""Classes told by their names, from the spec to the record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from features.encoders import HashingSpec
from features.shard import Embeddings
from features.snapshot import Snapshot
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, plan_candidates
from training.data.table import table_of
from training.data.targets import Untrainable
from training.evaluation.class_names import embed_class_names
from training.models.alignment_spec import AlignmentSpec, ClassNames
from training.produce import produce_candidate
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

ENCODER = HashingSpec(dim=32)
TASK = ClassificationSpec(target="label")
CLASSES = ("cat", "dog", "eel", "fox")


def named(snapshot: Snapshot, **changes: object) -> Snapshot:
    """The snapshot with captions as if they came from `ENCODER`."""
    part = dataclasses.replace(
        snapshot.modalities["caption"],
        encoder=ENCODER.model_dump(mode="json"),
        encoder_fingerprint=ENCODER.fingerprint(),
        **changes,
    )
    return dataclasses.replace(snapshot, modalities={**snapshot.modalities, "caption": part})


def test_names_are_embedded_as_the_encoder_does(make_store) -> None:
    _, snapshot = make_store()
    spec = ClassNames(modality="caption", templates=("a {}", "the {} sleeps"))
    found = embed_class_names(spec, snapshot=named(snapshot), classes=CLASSES)
    assert found is not None
    assert found.classes.tolist() == [0, 1, 2, 3] * 2
    encoder = ENCODER.load()
    texts = [f"a {name}" for name in CLASSES] + [f"the {name} sleeps" for name in CLASSES]
    expected = encoder.encode([encoder.prepare(text) for text in texts]).astype(np.float16)
    assert torch.equal(found.embeddings, torch.from_numpy(expected).float())
    assert found.masks is None


def test_what_is_amiss_is_told(make_store) -> None:
    _, snapshot = make_store()
    spec = ClassNames(modality="caption")
    for changed, message in (
        (named(snapshot, kind="image"), "of kind image"),
        (snapshot, "made-up"),
        (
            dataclasses.replace(
                named(snapshot),
                modalities={
                    "caption": dataclasses.replace(
                        named(snapshot).modalities["caption"], encoder_fingerprint="another"
                    )
                },
            ),
            "its weights have changed",
        ),
    ):
        with pytest.raises(Untrainable, match=message):
            embed_class_names(spec, snapshot=changed, classes=CLASSES)
    with pytest.raises(Untrainable, match="no classes"):
        embed_class_names(spec, snapshot=named(snapshot), classes=())
    with pytest.raises(pydantic.ValidationError, match="where the name stands"):
        ClassNames(modality="caption", templates=("a photo",))
    with pytest.raises(pydantic.ValidationError, match=r"`class_names.modality` 'captoin'"):
        AlignmentSpec(modalities=("caption", "photo"), class_names={"modality": "captoin"})


@pytest.fixture
def produced(make_store, columns) -> Callable[..., CandidateRecord]:
    """A candidate's record over a table whose captions are sentences about the class."""
    store, snapshot = make_store(rows=400, noise=0.3)
    raw = columns(rows=400, noise=0.3)
    encoder, rows = ENCODER.load(), raw["embeddings"]["caption"].rows
    labels = [raw["labels"][int(row)].as_py() or "cat" for row in rows]
    values = encoder.encode([encoder.prepare(f"it is a {label}") for label in labels])
    raw["embeddings"]["caption"] = Embeddings(rows=rows, values=values.astype(np.float16))

    def produce(options: dict[str, Any], *, snapshot: Snapshot = snapshot) -> CandidateRecord:
        training = TrainingSpec(batch_size=64, max_epochs=30)
        given: dict[str, Any] = {"snapshot": snapshot, "task": TASK, "training": training}
        (planned,) = plan_candidates(store, candidates=[parse_candidate(options)], **given)
        return produce_candidate(planned, store=store, table=table_of(**raw), **given)

    return functools.partial(produce, snapshot=named(snapshot, dim=ENCODER.dim))


@pytest.mark.parametrize(
    "options",
    [
        {"type": "alignment", "width": 32, "dim": 16, "learning_rate": 5e-3},
        {"type": "alignment", "loss": "sigmoid", "anchor": "caption", "width": 32, "dim": 16,
         "learning_rate": 1e-2},
        {"type": "cca", "dim": 8},
    ],
    ids=["infonce", "sigmoid", "cca"],
)  # fmt: skip
def test_a_space_tells_classes_by_their_names_and_by_neighbours(produced, options) -> None:
    record = produced(
        {**options, "class_names": {"modality": "caption", "templates": ["it is a {}"]}}
    )
    assert record.status == "fitted"
    assert record.metrics is not None
    test = record.metrics["test"]
    assert test["zero_shot_accuracy.caption"] > 0.9
    # No label was learned from; by chance it would be a quarter, and photo tells half of it.
    assert test["zero_shot_accuracy.speech"] > 0.5
    assert test["zero_shot_accuracy.photo"] > 0.33
    assert test["neighbour_accuracy"] > 0.8
    assert test["accuracy"] > 0.8
    assert record.retrieval is not None
    assert {entry["query"] for entry in record.retrieval} == {"caption", "photo", "speech"}


def test_without_names_nothing_is_told_of_them_and_other_kinds_have_neither(produced) -> None:
    plain = produced({"type": "cca", "dim": 8})
    assert not any("zero_shot" in name for name in plain.metrics["test"])
    assert "neighbour_accuracy" in plain.metrics["validation"]
    late = produced({"type": "late", "width": 8})
    assert not {name for name in late.metrics["test"] if "neighbour" in name or "zero" in name}


def test_an_encoder_that_is_not_here_is_told_of_in_the_record(produced) -> None:
    record = produced({"type": "cca", "class_names": {"modality": "photo"}})
    assert record.status == "failed"
    assert "made-up" in record.failure["reason"]
