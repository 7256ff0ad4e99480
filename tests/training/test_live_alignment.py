"""Alignment of live encoders: its loss and gradients, what it learns, and what is kept of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from features.encoders import parse_encoder
from tests.training.contrastive_cases import naive_info_nce, naive_sigmoid
from tests.training.live_world import TASK, LiveWorld, colours, finetune
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, load_model
from training.data.vectors import HeldVectors
from training.evaluation.answers import evaluate
from training.evaluation.class_names import embed_class_names
from training.evaluation.space import retrieval, space_metrics
from training.fitting.step import make_model
from training.models.alignment import Alignment
from training.models.alignment_spec import ClassNames
from training.produce import produce_candidate
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.tuning.model import LiveModel
from training.tuning.table import table_for

BOTH = ("caption", "photo")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> LiveWorld:
    torch.set_num_threads(1)
    return LiveWorld(tmp_path_factory.mktemp("live"))


def aligned(tuning: Any = "full", **head: Any) -> CandidateSpec:
    return finetune(
        head={"type": "alignment", "dropout": 0.0, "dim": 6, **head},
        encoders=dict.fromkeys(BOTH, tuning),
    )


def live_model(spec: CandidateSpec, table: Any) -> LiveModel:
    model = make_model(spec, table=table, modalities=BOTH)
    assert isinstance(model, LiveModel)
    return model.train()


def gradients_of(model: LiveModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def naive_loss(model: LiveModel, batch: Any, *, by_class: bool) -> torch.Tensor:
    """Every payload by itself through its encoder and its tower, and the matrix of all pairs."""
    head = model.head
    assert isinstance(head, Alignment)
    vectors = torch.zeros(len(batch.targets), len(BOTH), 6)
    for place, modality in enumerate(BOTH):
        payloads, encoder = batch.embeddings[modality], model.encoders[modality].encoder
        for row, prepared in zip(payloads.rows.tolist(), payloads.prepared, strict=True):
            if batch.presence[modality][row]:
                (embedding,) = encoder.embed([prepared])
                tower = head.embed(
                    modality, x=embedding[None], present_B=torch.ones(1, dtype=torch.bool)
                )
                vectors = vectors.index_put((torch.tensor([row]), torch.tensor([place])), tower)
    options: dict[str, Any] = {
        "payloads": torch.stack([batch.payloads[m] for m in BOTH], dim=1),
        "classes": batch.targets if by_class else None,
    }
    presence = torch.stack([batch.presence[m] for m in BOTH], dim=1)
    if head.bias is None:
        return naive_info_nce(vectors, presence, head.scale, **options)
    return naive_sigmoid(vectors, presence, head.scale, head.bias, **options)


# ---------------------------------------------------------------- loss and gradients


@pytest.mark.parametrize("cache_rows", [None, 5])
@pytest.mark.parametrize(
    "head",
    [{}, {"loss": "sigmoid"}, {"anchor": "photo", "positives": "class"}],
    ids=["infonce", "sigmoid", "by-class"],
)
def test_loss_and_gradients_are_those_of_one_payload_at_a_time(world, head, cache_rows) -> None:
    spec = aligned(**head, cache_rows=cache_rows)
    rows = torch.arange(3, 25)
    with world.live() as table:
        model = live_model(spec, table)
        batch = table.batch(rows, modalities=BOTH)
        # As modality dropout would have it.
        batch.presence["photo"][[0, 4]] = False
        share = model.loss_share(batch)
        found = gradients_of(model, share)
        naive = naive_loss(model, batch, by_class="positives" in head)
        expected = gradients_of(model, naive)
    assert len(batch.payloads["caption"].unique()) < len(rows) - 5, "captions are met twice"
    torch.testing.assert_close(share, naive, rtol=1e-5, atol=0)
    assert found.keys() == expected.keys()
    for modality in BOTH:
        own = [n for n in found if n.startswith(f"encoders.layers.of-{modality}.")]
        assert sum(float(found[n].norm()) for n in own) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were made within, and were there at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self._held[StorageWeakRef(storage)] = storage.nbytes()
        self._held = {ref: size for ref, size in self._held.items() if not ref.expired()}
        self.most = max(self.most, sum(self._held.values()))
        return made


def test_of_an_encoder_the_activations_of_one_chunk_are_held(world) -> None:
    most: dict[int | None, int] = {}
    found = {}
    for cache_rows in (None, 3):
        with world.live() as table:
            model = live_model(aligned(cache_rows=cache_rows), table)
            batch = table.batch(torch.arange(24), modalities=BOTH)
        with Peak() as peak:
            share = model.loss_share(batch)
            share.backward()
        most[cache_rows] = peak.most
        found[cache_rows] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert most[3] < 0.3 * most[None]
    for name, gradient in found[None].items():
        torch.testing.assert_close(found[3][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_temperature_is_held_within_its_bounds(world) -> None:
    with world.live("caption") as table:
        model = live_model(aligned(), table)
    with torch.no_grad():
        model.head.log_scale.fill_(9.0)
    model.after_step()
    assert model.head.scale.item() == pytest.approx(100)


# ---------------------------------------------------------------- what is learned, and kept

NAMES = {"modality": "caption", "templates": ["{}", "the {}"]}
TRAINING = TrainingSpec(batch_size=16, max_epochs=15, patience=15)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> LiveWorld:
    """Pictures of colours, and their names as a model embeds them that tells no words apart."""
    torch.set_num_threads(1)
    return LiveWorld(tmp_path_factory.mktemp("blind"), frame=colours(), blind=True)


@pytest.fixture(scope="module")
def record(blind: LiveWorld) -> CandidateRecord:
    spec = finetune(
        head={"type": "alignment", "dropout": 0.0, "class_names": NAMES},
        encoders={"caption": "full"},
        encoder_learning_rate=1e-2,
    )
    return produced(blind, spec)


def produced(world: LiveWorld, spec: CandidateSpec) -> CandidateRecord:
    with table_for(
        spec,
        table=world.table,
        store=world.store,
        snapshot=world.snapshot,
        payloads=world.payloads,
    ) as table:
        record = produce_candidate(
            world.planned(spec, training=TRAINING),
            store=world.store,
            snapshot=world.snapshot,
            task=TASK,
            training=TRAINING,
            table=table,
        )
    assert record.status == "fitted", record.failure
    return record


def recalls(record: CandidateRecord) -> list[float]:
    assert record.retrieval is not None
    return [item["recall"]["1"] for item in record.retrieval]


def test_it_learns_where_frozen_encoders_cannot_align(blind, record) -> None:
    frozen = parse_candidate(
        {"type": "alignment", "width": 8, "learning_rate": 1e-2, "class_names": NAMES}
    )
    without = produced(blind, frozen)
    assert min(recalls(record)) == 1
    assert max(recalls(without)) < 0.6
    for metric, least in (("zero_shot_accuracy.photo", 0.9), ("neighbour_accuracy", 0.9)):
        assert record.metrics["test"][metric] >= least
    assert without.metrics["test"]["zero_shot_accuracy.photo"] < 0.6


def test_the_kept_folder_gives_the_same_retrieval_and_names(blind, record) -> None:
    folder = Path(blind.store.storage.root) / "candidates" / record.fingerprint
    tuned = record.modalities["caption"]["tuned"]
    encoder_spec = parse_encoder(tuned["encoder"], context={"folder": str(folder)})
    assert encoder_spec.fingerprint() == tuned["encoder_fingerprint"]
    encoder = encoder_spec.load()
    captions = [encoder.prepare(text) for text in blind.world.frame["caption"].dropna()]
    vectors = HeldVectors(values=torch.from_numpy(np.asarray(encoder.encode(captions))))
    # Embeddings stand in the order of the rows that have one.
    table = dataclasses.replace(
        blind.table, embeddings={**blind.table.embeddings, "caption": vectors}
    )
    model = load_model(blind.store, record.fingerprint)
    assert retrieval(model, table=table, modalities=BOTH) == record.retrieval
    names = embed_class_names(
        ClassNames(**NAMES), snapshot=blind.snapshot, classes=table.classes, encoder=encoder
    )
    found = space_metrics(model, table=table, modalities=BOTH, names=("caption", names))
    answers = evaluate(model, table=table, modalities=BOTH)
    for split, metrics in answers.metrics().items():
        assert {**metrics, **found[split]} == pytest.approx(record.metrics[split], abs=1e-4)
