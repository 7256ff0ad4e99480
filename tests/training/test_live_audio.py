"""Audio encoders that are tuned with a fusion: Wav2Vec2, Whisper's encoder, AST, CLAP."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from features.encoders import parse_encoder
from features.encoders.huggingface_audio import HuggingFaceAudioSpec
from features.sources import open_source
from features.spec import FeatureSpec
from tests.features.audio_models import (
    RATE,
    save_ast,
    save_clap,
    save_wav2vec2_of_layer_norm,
    save_whisper,
    sound,
    voice,
)
from tests.features.world import World
from training.answering import predict
from training.built_in import parse_candidate
from training.candidate import load_model, plan_candidates, read_predictions
from training.data.table import load_table
from training.produce import produce_candidate
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec
from training.tuning.model import TunedEncoder
from training.tuning.payloads import PayloadSource
from training.tuning.spec import TuningSpec
from training.tuning.table import table_for

pytestmark = pytest.mark.usefixtures("one_thread")

SAVES = (save_wav2vec2_of_layer_norm, save_whisper, save_ast, save_clap)
ROWS = 32


@pytest.mark.parametrize("output", ["pooled", "sequence"])
@pytest.mark.parametrize("save", SAVES)
def test_embeddings_with_gradients_are_those_of_stage_1(
    save: Callable[[Path], None], output: Any, tmp_path: Path
) -> None:
    """Windows of a long sound, too, and sounds of unlike lengths."""
    torch.manual_seed(0)
    save(tmp_path)
    spec = HuggingFaceAudioSpec(
        model=str(tmp_path), output=output, window_seconds=0.8, normalize=True, precision="float32"
    )
    encoder = spec.load_trainable()
    sounds = [encoder.prepare(sound(voice(s, seed=i))) for i, s in enumerate((0.5, 2.1, 0.8))]
    expected = spec.load().encode(sounds)
    tuned = TunedEncoder(encoder, spec=spec, tuning=TuningSpec(tune="full"))
    found = encoder.embed(sounds)
    assert len(found) == len(sounds)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs, atol=1e-5)
    # Each weight that is tuned has a gradient, and a step along it does what it says.
    rows = torch.cat([row.reshape(-1) for row in found])
    towards = torch.randn(len(rows), generator=torch.Generator().manual_seed(0))
    (rows @ towards).backward()
    parameters = [p for p in tuned.module.parameters() if p.requires_grad]
    assert parameters and all(p.grad is not None for p in parameters)
    slope = sum(float(p.grad.double().pow(2).sum()) for p in parameters)
    assert slope > 0
    step = 2e-3 / slope
    with torch.no_grad():
        ends = []
        for sign in (1, -2):
            for p in parameters:
                p += sign * step * p.grad
            ends.append(
                torch.cat([row.reshape(-1) for row in encoder.embed(sounds)]).double()
                @ towards.double()
            )
    assert float(ends[0] - ends[1]) == pytest.approx(2 * step * slope, rel=0.05)


class SoundWorld:
    """A table of sounds, high or low, embedded by stage 1."""

    def __init__(self, folder: Path, spec: HuggingFaceAudioSpec) -> None:
        random = np.random.default_rng(0)
        self.codes = random.integers(2, size=ROWS)
        world = World(folder)
        world.frame = pd.DataFrame(
            {
                "id": [f"s{i}" for i in range(ROWS)],
                "speech": [
                    None if i % 9 == 5 else _wav(220 * (1 + 2 * c), seed=i)
                    for i, c in enumerate(self.codes)
                ],
                "label": self.codes,
                "split": [("train", "train", "validation", "test")[i % 4] for i in range(ROWS)],
            }
        )
        world.specs = {"speech": spec}
        self.snapshot, self.store = world.run()[2], world.store
        self.payloads = PayloadSource(
            source=open_source(world.path, folder=str(folder)),
            columns={"speech": FeatureSpec(column="speech", encoder=spec).payload_columns},
        )


def _wav(pitch: float, *, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    time = np.arange(round(random.uniform(0.4, 0.7) * RATE)) / RATE
    samples = 0.3 * np.sin(2 * np.pi * pitch * time) + random.normal(0, 0.05, len(time))
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize("tuning", [{"tune": "full"}, {"tune": "lora", "rank": 2}])
@pytest.mark.parametrize("save", [save_wav2vec2_of_layer_norm, save_whisper])
def test_a_tuned_encoder_is_kept_as_a_folder_that_stage_1_takes(
    save: Callable[[Path], None], tuning: dict[str, Any], tmp_path: Path
) -> None:
    if tuning["tune"] == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")
    world = SoundWorld(
        tmp_path, HuggingFaceAudioSpec(model=str(tmp_path / "model"), dtype="float32")
    )
    task = ClassificationSpec(target="label")
    training = TrainingSpec(batch_size=8, max_epochs=4, patience=10)
    options: dict[str, Any] = {"store": world.store, "snapshot": world.snapshot, "task": task}
    spec = parse_candidate(
        {
            "type": "finetune",
            "head": {"type": "single", "modality": "speech", "width": 8, "learning_rate": 1e-2},
            "encoders": {"speech": tuning},
            "encoder_learning_rate": 3e-3,
        }
    )
    (planned,) = plan_candidates(candidates=[spec], training=training, **options)
    table = load_table(world.store, world.snapshot, task=task, modalities=("speech",))
    with table_for(
        spec,
        table=table,
        store=world.store,
        snapshot=world.snapshot,
        payloads=world.payloads,
    ) as live:
        record = produce_candidate(planned, training=training, table=live, **options)
        answers = read_predictions(world.store, record.fingerprint)
        rows = torch.tensor(answers["row"].to_pylist())
        batch = live.batch(rows, modalities=("speech",))
    assert record.status == "fitted"
    losses = [epoch["train_loss"] for epoch in record.epochs]
    assert losses[-1] < losses[0]

    tuned = record.modalities["speech"]["tuned"]
    folder = Path(world.store.storage.root) / "candidates" / record.fingerprint
    kept = parse_encoder(tuned["encoder"], context={"folder": str(folder)})
    assert kept.fingerprint() == tuned["encoder_fingerprint"]
    values = kept.load().encode(list(batch.embeddings["speech"].prepared))
    there = batch.presence["speech"].numpy()
    embeddings = np.zeros((len(rows), values.shape[1]), np.float32)
    embeddings[there] = values
    before = table.batch(rows, modalities=("speech",)).embeddings["speech"].numpy()
    assert np.abs(embeddings[there] - before[there]).max() > 1e-3
    found = predict(
        load_model(world.store, record.fingerprint),
        record=record,
        embeddings={"speech": embeddings},
        presence={"speech": there},
    )
    np.testing.assert_allclose(found, np.array(answers["probabilities"].to_pylist()), atol=1e-4)
