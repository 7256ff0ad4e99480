"""Fusions on live encoders: what they start from, what they tune, and what is kept of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from features.encoders import parse_encoder
from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.sources import SourceError, open_source
from tests.features.vision_models import save_clip
from tests.training import live_worker
from tests.training.live_world import ROWS, TASK, LiveWorld, finetune
from training.answering import predict
from training.candidate import load_model, read_predictions
from training.data.table import step_rows
from training.data.targets import Untrainable
from training.fitting.loop import fit_candidate
from training.fitting.step import make_model, make_optimizer, seed_step, train_batch, train_step
from training.produce import produce_candidate
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.tuning.embedded import embedded_table
from training.tuning.model import LiveInput, LiveModel, PreparedPayloads, TunedEncoder
from training.tuning.spec import TuningSpec

BOTH = ("caption", "photo")
TRAINING = TrainingSpec(batch_size=16, max_epochs=3, checkpoint_every=1, patience=10)
TUNINGS: dict[str, dict[str, Any]] = {
    "full": {"tune": "full"},
    "last": {"tune": "last", "layers": 1},
    "lora": {"tune": "lora", "rank": 2},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> LiveWorld:
    torch.set_num_threads(1)
    return LiveWorld(tmp_path_factory.mktemp("live"))


def spec_of(tuning: str, **options: Any) -> CandidateSpec:
    if tuning == "lora":
        pytest.importorskip("peft")
    chosen = TUNINGS[tuning]
    return finetune(encoders={"caption": chosen, "photo": chosen}, **options)


def model_of(spec: CandidateSpec, table: Any) -> LiveModel:
    model = make_model(spec, table=table, modalities=BOTH)
    assert isinstance(model, LiveModel)
    return model


def embeddings_of(model: LiveModel, table: Any, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    batch = table.batch(rows, modalities=BOTH)
    found = {}
    for modality, encoder in model.encoders.items():
        found[modality], _ = encoder(batch.embeddings[modality].prepared)
    return found


def step_once(
    model: LiveModel, table: Any, spec: CandidateSpec, *, steps: int = 1, rows: Any = None
) -> list[Any]:
    optimizer = make_optimizer(model, spec=spec)
    rows = torch.arange(0, ROWS, 2) if rows is None else rows
    done = []
    for step in range(steps):
        batch = train_batch(spec, table=table, rows=rows, modalities=BOTH, epoch=1, step=step)
        seed_step(model, seed=spec.seed, epoch=1, step=step, rows=len(rows))
        done.append(train_step(model, optimizer=optimizer, batch=batch))
    return done


# ---------------------------------------------------------------- where it starts from


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("training", [False, True])
def test_before_the_first_step_embeddings_are_those_of_the_store(world, tuning, training) -> None:
    rows = torch.arange(ROWS)
    with world.live() as table:
        model = model_of(spec_of(tuning), table).train(training)
        with torch.no_grad():
            found = embeddings_of(model, table, rows)
    stored = world.table.batch(rows)
    for modality in BOTH:
        expected = stored.embeddings[modality][stored.presence[modality]]
        assert len(expected) > ROWS / 2
        torch.testing.assert_close(found[modality], expected, atol=1e-5, rtol=0)


def test_a_sequence_has_the_steps_that_stage_1_gives(world) -> None:
    spec = world.specs["caption"].model_copy(update={"output": "sequence", "special_tokens": False})
    loaded = spec.load()
    prepared = [loaded.prepare(text) for text in world.world.frame["caption"].dropna()]
    encoder = TunedEncoder(spec.load_trainable(), spec=spec, tuning=TuningSpec(tune="full"))
    with torch.no_grad():
        steps, mask = encoder.eval()(prepared)
    expected = loaded.encode(prepared)
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [len(row) for row in expected]
    np.testing.assert_allclose(steps[mask].cpu().numpy(), np.concatenate(expected), atol=1e-5)


def judged_as_stored(world: LiveWorld) -> None:
    """Before the first step a model is judged by the store's embeddings, each computed once."""
    spec = spec_of("full")
    rows = torch.cat([world.table.split[split] for split in ("validation", "test")])
    calls: dict[str, int] = dict.fromkeys(BOTH, 0)
    with world.live() as table:
        model = model_of(spec, table)
        for modality, encoder in model.encoders.items():

            def count(_: Any, args: Any, modality: str = modality) -> None:
                calls[modality] += len(args[0])

            encoder.register_forward_pre_hook(count)
        with embedded_table(model, table=table) as embedded:
            found = embedded.batch(rows)
            assert not (embedded.index["photo"][table.split["train"]] >= 0).any()
    stored = world.table.batch(rows)
    for modality, there in stored.presence.items():
        assert torch.equal(found.presence[modality], there)
        assert calls[modality] == int(there.sum())
        steps = stored.masks.get(modality, there)
        assert torch.equal(found.masks.get(modality, there), steps)
        torch.testing.assert_close(
            found.embeddings[modality][steps],
            stored.embeddings[modality][steps],
            atol=1e-5,
            rtol=0,
        )


def test_before_the_first_step_it_is_judged_by_what_is_in_the_store(world) -> None:
    judged_as_stored(world)


def test_what_is_not_present_is_not_embedded_and_has_no_influence(world) -> None:
    spec = finetune(encoders=dict.fromkeys(BOTH, "full"))
    rows = torch.arange(12)
    with world.live() as table:
        model = model_of(spec, table).eval()
        batch = table.batch(rows, modalities=BOTH)
        presence = {**batch.presence, "caption": torch.zeros(12, dtype=torch.bool)}
        prepared = batch.embeddings["caption"].prepared
        spoilt = PreparedPayloads(
            rows=batch.embeddings["caption"].rows, prepared=[None] * len(prepared)
        )
        with torch.no_grad():
            expected = model(batch.embeddings, presence, {})
            found = model({**batch.embeddings, "caption": spoilt}, presence, {})
    assert torch.equal(found, expected)


# ---------------------------------------------------------------- what is tuned


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_loss_falls_and_what_is_frozen_stays(world, tuning) -> None:
    spec = spec_of(tuning, encoder_learning_rate=3e-3, head={"dropout": 0.0})
    with world.live() as table:
        model = model_of(spec, table)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        steps = step_once(model, table, spec, steps=12)
    assert steps[-1].loss < 0.7 * steps[0].loss
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    tuned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved == tuned
    of_encoders = {n for n in moved if n.startswith("encoders.")}
    for modality in BOTH:
        own = [n for n in of_encoders if f"of-{modality}" in n]
        assert own
        if tuning == "lora":
            assert all("lora_" in n for n in own)
        elif tuning == "last":
            assert not [n for n in own if "embeddings" in n or ".0." in n]
            last = ".2." if modality == "caption" else ".1."
            assert [n for n in own if last in n]
        else:
            assert [n for n in own if "embeddings" in n]
        assert not [n for n in own if "pooler" in n], "mean pooling does not use it"


@pytest.mark.parametrize("tuning", TUNINGS)
def test_of_two_towers_the_one_in_use_is_tuned_and_both_are_kept(tmp_path: Path, tuning) -> None:
    if tuning == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    save_clip(tmp_path / "clip")
    spec = HuggingFaceImageSpec(model=str(tmp_path / "clip"))
    encoder = TunedEncoder(
        spec.load_trainable(), spec=spec, tuning=TuningSpec(**TUNINGS[tuning])
    ).train()
    random = np.random.default_rng(0)
    pictures = list(random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    before = spec.load().encode(pictures)  # type: ignore[arg-type]
    tuned = {n: p for n, p in encoder.module.named_parameters() if p.requires_grad}
    assert tuned and not [n for n in tuned if "text" in n]
    if tuning == "last":
        assert any(".layers.1." in n for n in tuned)
        assert not [n for n in tuned if ".layers.0." in n or "embeddings" in n]
    encoder(pictures)[0].square().sum().backward()
    torch.optim.SGD(tuned.values(), lr=0.05).step()
    encoder.encoder.save(str(tmp_path / "tuned"), module=encoder.tuning.merged())
    again = HuggingFaceImageSpec(model=str(tmp_path / "tuned"))
    found = again.load().encode(pictures)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = encoder(pictures)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - before).max() > 1e-3
    whole = set(load_file(tmp_path / "clip" / "model.safetensors"))
    assert set(load_file(tmp_path / "tuned" / "model.safetensors")) == whole


@pytest.mark.parametrize("head", ["attention", "bottleneck", "co_attention"])
def test_tokens_and_patches_are_fused_by_one_head(world, head) -> None:
    sources = {}
    for modality, spec in world.specs.items():
        as_sequence = spec.model_copy(update={"output": "sequence"})
        encoder = as_sequence.load_trainable()
        sources[modality] = LiveInput(
            dim=encoder.dim, sequence=True, spec=as_sequence, encoder=encoder
        )
    spec = finetune(
        head={"type": head, "width": 8, "heads": 2, "dropout": 0.0},
        encoders=dict.fromkeys(BOTH, "full"),
    )
    torch.manual_seed(0)
    model = spec.build(inputs=sources, outputs=2)
    assert isinstance(model, LiveModel)
    with world.live() as table:
        steps = step_once(model, table, spec, steps=10)
        batch = table.batch(torch.arange(0, ROWS, 2), modalities=BOTH)
    assert steps[-1].loss < 0.7 * steps[0].loss
    tokens, mask = model.encoders["caption"](batch.embeddings["caption"].prepared)
    lengths = [len(tokens.ids) for tokens in batch.embeddings["caption"].prepared]
    assert tokens.ndim == 3 and mask.sum(dim=1).tolist() == lengths
    patches, _ = model.encoders["photo"](batch.embeddings["photo"].prepared)
    assert patches.shape[1:] == (16, 12)


def test_encoders_learn_at_their_own_rate(world) -> None:
    spec = finetune(encoder_learning_rate=1e-5)
    with world.live("caption") as table:
        model = model_of(spec, table)
        optimizer = make_optimizer(model, spec=spec)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        fit = fit_candidate(spec, table=table, training=TRAINING)
    encoder = [p for p in model.encoders.parameters() if p.requires_grad]
    np.testing.assert_allclose([rates[id(p)] for p in encoder], 1e-5)
    assert {rates[id(p)] for p in model.head.parameters()} == {1e-2}
    assert len(rates) == len(encoder) + len(list(model.head.parameters()))
    assert fit.epochs[0].learning_rate > 1e-3


def test_recomputed_layers_change_no_result(world) -> None:
    outcomes = []
    for recompute in (False, True):
        spec = finetune(encoders=dict.fromkeys(BOTH, "full"), gradient_checkpointing=recompute)
        with world.live() as table:
            model = model_of(spec, table)
            calls = []
            layer = model.encoders["caption"].tuning.layers[0]
            layer.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            step_once(model, table, spec)
            outcomes.append((model.state_dict(), len(calls)))
    (plain, once), (recomputed, twice) = outcomes
    assert twice == 2 * once
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, atol=1e-6, rtol=0)


def test_in_mixed_precision_the_weights_stay_in_float32(world) -> None:
    spec = finetune(encoders=dict.fromkeys(BOTH, "full"))
    losses = []
    for mixed in (False, True):
        # Around several steps: what it has cast once must not outlive a step.
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False)
        with world.live() as table, autocast:
            model = model_of(spec, table)
            losses.append([step.loss for step in step_once(model, table, spec, steps=3)])
            assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def test_a_part_of_a_batch_has_the_payloads_of_its_rows(world) -> None:
    with world.live("caption") as table:
        whole = table.batch(torch.arange(20), modalities=("caption",)).embeddings["caption"]
        part = table.batch(torch.arange(4, 17), modalities=("caption",)).embeddings["caption"]
    found = whole.narrow(0, 4, 13)
    assert found.rows.tolist() == part.rows.tolist()
    assert [t.ids for t in found.prepared] == [t.ids for t in part.prepared]


# ---------------------------------------------------------------- the loop


def test_payloads_are_prepared_ahead_of_their_step(world) -> None:
    encoder = world.specs["caption"].load()
    texts = world.world.frame["caption"]
    order = torch.arange(0, ROWS, 2)
    parts = [step_rows(order, step=step, steps=4) for step in range(4)]
    with world.live("caption") as table:
        table.expect(order)
        for step, rows in enumerate(parts):
            wanted = {row for part in parts[step : step + 2] for row in part.tolist()}
            batch = table.batch(rows, modalities=("caption",))
            assert {row for row in wanted if isinstance(texts[row], str)} <= table.live[
                "caption"
            ].at_hand
            found = [tokens.ids for tokens in batch.embeddings["caption"].prepared]
            own = [texts[row] for row in rows.tolist() if isinstance(texts[row], str)]
            assert found == [encoder.prepare(text).ids for text in own]
        assert table.live["caption"].at_hand == {
            row for row in order.tolist() if isinstance(texts[row], str)
        }


@pytest.mark.parametrize(("tuning", "head"), [("full", "early"), ("lora", "alignment")])
def test_a_resumed_fit_ends_as_an_uninterrupted_one(world, tuning, head) -> None:
    spec = spec_of(tuning, head={"type": head, "modality_dropout": 0.3})
    states: list[Any] = []
    with world.live() as table:
        whole = fit_candidate(spec, table=table, training=TRAINING, save=states.append)
    assert whole.failure is None
    if tuning == "lora":
        assert not [n for n in states[0].model if "base_layer.weight" in n], "only what is tuned"
    with world.live() as table:
        resumed = fit_candidate(spec, table=table, training=TRAINING, resume=states[0])
    assert [dataclasses.replace(e, seconds=0) for e in resumed.epochs] == [
        dataclasses.replace(e, seconds=0) for e in whole.epochs
    ]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("tuning", TUNINGS)
def test_the_kept_folder_gives_in_stage_1_what_the_live_encoder_gave(world, tuning) -> None:
    spec = spec_of(tuning, encoder_learning_rate=3e-3)
    planned = world.planned(spec, training=TRAINING)
    with world.live() as table:
        record = produce_candidate(
            planned,
            store=world.store,
            snapshot=world.snapshot,
            task=TASK,
            training=TRAINING,
            table=table,
        )
    assert record.status == "fitted"
    answers = read_predictions(world.store, record.fingerprint)
    rows = answers["row"].to_pylist()
    embeddings, presence = {}, {}
    for modality in BOTH:
        tuned = record.modalities[modality]["tuned"]
        folder = Path(world.store.storage.root) / "candidates" / record.fingerprint
        encoder_spec = parse_encoder(tuned["encoder"], context={"folder": str(folder)})
        assert encoder_spec.fingerprint() == tuned["encoder_fingerprint"]
        assert tuned["encoder_fingerprint"] != world.specs[modality].fingerprint()
        encoder = encoder_spec.load()
        with world.live(modality) as table:
            batch = table.batch(torch.tensor(rows), modalities=(modality,))
        values = encoder.encode(list(batch.embeddings[modality].prepared))
        before = world.table.batch(torch.tensor(rows)).embeddings[modality]
        whole = np.zeros((len(rows), values.shape[1]), np.float32)
        whole[batch.embeddings[modality].rows] = values
        there = batch.presence[modality].numpy()
        assert np.abs(whole[there] - before.numpy()[there]).max() > 1e-3
        embeddings[modality], presence[modality] = whole, there
    found = predict(
        load_model(world.store, record.fingerprint),
        record=record,
        embeddings=embeddings,
        presence=presence,
    )
    expected = np.array(answers["probabilities"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-4)


# ---------------------------------------------------------------- what is refused


def test_a_table_that_has_changed_is_refused(world, tmp_path: Path) -> None:
    frame = world.world.frame.copy()
    frame.loc[2, "caption"] = "another text"
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    payloads = dataclasses.replace(
        world.payloads, source=open_source("table.parquet", folder=str(tmp_path))
    )
    with (
        pytest.raises(SourceError, match=r"'caption'.*not the one that was embedded.*embed once"),
        world.live("caption", payloads=payloads),
    ):
        pass


def test_more_layers_than_there_are_is_refused(world) -> None:
    spec = finetune(encoders={"caption": {"tune": "last", "layers": 9}})
    with world.live("caption") as table, pytest.raises(Untrainable, match=r"`layers: 9`.* has 3"):
        model_of(spec, table)


# ---------------------------------------------------------------- several workers


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    world = live_worker.make_world(tmp_path / "world")
    judged_as_stored(world)
    expected = {head: live_worker.steps(world, head=head) for head in live_worker.HEADS}
    script = str(Path(live_worker.__file__))
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=240)
            assert worker.returncode == 0, output
    finally:
        for worker in workers:
            worker.kill()
    two = [json.loads((tmp_path / f"live-{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1]
    for head, one in expected.items():
        found = two[0][head]
        assert all(one["losses"])
        for key in ("losses", "norms"):
            np.testing.assert_allclose(found[key], one[key], rtol=1e-4, err_msg=head)
        for part in ("weights", "embeddings"):
            assert set(found[part]) == set(one[part])
            for name, values in one[part].items():
                np.testing.assert_allclose(
                    found[part][name], values, atol=5e-4, err_msg=f"{head} {name}"
                )
