"""Audio models: row by row as transformers' own extractor and model have them.

Tiny models of each family, made from a configuration and saved with their feature extractor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import soundfile
import torch
import transformers

from features.encoders import Sound, parse_encoder
from features.encoders.audio_models import AudioModel, Waveform
from features.encoders.huggingface_audio import HuggingFaceAudioSpec, read_limit
from tests.features.audio_models import (
    RATE,
    save_ast,
    save_clap,
    save_clap_with_fusion,
    save_data2vec,
    save_hubert,
    save_wav2vec2,
    save_wav2vec2_bert,
    save_wav2vec2_of_layer_norm,
    save_wav2vec2_with_adapter,
    save_wavlm,
    save_whisper,
    sound,
    voice,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "fsdd"

Make = Callable[[Callable[[Path], None]], str]
WAVES = [
    save_wav2vec2,
    save_wav2vec2_of_layer_norm,
    save_wav2vec2_with_adapter,
    save_hubert,
    save_wavlm,
    save_data2vec,
]
FIXED = [save_whisper, save_ast, save_clap, save_clap_with_fusion]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, str] = {}

    def make(save: Callable[[Path], None]) -> str:
        if save.__name__ not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp(save.__name__)
            save(folder)
            made[save.__name__] = str(folder)
        return made[save.__name__]

    return make


def embed(spec: HuggingFaceAudioSpec, sounds: list[Sound]) -> Any:
    encoder = spec.load()
    rows = encoder.encode([encoder.prepare(item) for item in sounds])
    assert len(rows) == len(sounds)
    assert all(row.dtype == np.float32 and row.shape[-1] == encoder.dim for row in rows)
    return rows


class Reference:
    """transformers' own path, sound by sound."""

    def __init__(self, folder: str) -> None:
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self.rate = self.extractor.sampling_rate

    def features(self, samples: np.ndarray) -> Any:
        found = dict(self.extractor(samples, sampling_rate=self.rate, return_tensors="pt"))
        if "is_longer" in found:  # drawn at random, though no sound is longer
            found["is_longer"] = torch.zeros((1, 1), dtype=torch.bool)
        return found

    def output(self, samples: np.ndarray) -> Any:
        inputs = self.features(samples)
        with torch.no_grad():
            if hasattr(self.model, "get_audio_features"):
                return self.model.get_audio_features(**inputs)
            if self.model.config.is_encoder_decoder:
                return self.model.get_encoder()(**inputs)
            return self.model(**inputs)

    def states(self, samples: np.ndarray) -> np.ndarray:
        """States `[T, D]` of the sound itself, without padding."""
        states = self.output(samples).last_hidden_state
        match self.model.config.model_type:
            case "whisper":  # two frames of 10 ms for a state
                steps = (len(samples) + 319) // 320
                states = states[0, :steps]
            case "audio-spectrogram-transformer":
                frames = 1 + (len(samples) - 400) // 160
                patches = states[0, 2:].reshape(5, 19, -1).mean(dim=0)
                states = patches[: min(19, -(-frames // 10))]
            case "clap":
                states = states[0].mean(dim=1).T
            case "wav2vec2-bert":
                states = states[self.features(samples)["attention_mask"].bool()]
            case _:
                states = states[0]
        return states.numpy()


LENGTHS = (0.5, 1.7, 0.37, 0.81, 1.1, 0.5)


def voices(rate: int) -> list[np.ndarray]:
    return [voice(seconds, rate=rate, seed=i) for i, seconds in enumerate(LENGTHS)]


@pytest.mark.parametrize("save", [*WAVES, *FIXED, save_wav2vec2_bert])
def test_mean_over_the_sounds_own_steps(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    sounds = voices(reference.rate)
    spec = HuggingFaceAudioSpec(model=model(save))
    found = embed(spec, [sound(item, rate=reference.rate) for item in sounds])
    expected = [reference.states(item).mean(axis=0) for item in sounds]
    np.testing.assert_allclose(found, expected, atol=spec.tolerance)
    assert np.std(expected, axis=0).max() > 100 * spec.tolerance, "unlike sounds differ"


@pytest.mark.parametrize("save", [*WAVES, save_whisper, save_ast, save_wav2vec2_bert])
def test_sequence_has_the_sounds_own_steps(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    sounds = voices(reference.rate)
    spec = HuggingFaceAudioSpec(model=model(save), output="sequence")
    assert spec.sequence
    found = embed(spec, [sound(item, rate=reference.rate) for item in sounds])
    for item, rows in zip(sounds, found, strict=True):
        np.testing.assert_allclose(rows, reference.states(item), atol=spec.tolerance)


def test_sequence_of_a_repeated_sound_is_cut_to_its_first_time(model: Make) -> None:
    reference = Reference(model(save_clap))
    spec = HuggingFaceAudioSpec(model=model(save_clap), output="sequence")
    samples = voice(0.6, rate=24_000)
    (found,) = embed(spec, [sound(samples, rate=24_000)])
    whole = reference.states(samples)
    steps = -(-len(whole) * 6 // 20)
    assert 1 < steps < len(whole)
    np.testing.assert_allclose(found, whole[:steps], atol=spec.tolerance)


@pytest.mark.parametrize("save", [save_ast, save_clap, save_clap_with_fusion])
def test_the_models_own_pooled_output(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    sounds = voices(reference.rate)
    found = embed(
        HuggingFaceAudioSpec(model=model(save), pooling="pooler"),
        [sound(item, rate=reference.rate) for item in sounds],
    )
    expected = [reference.output(item).pooler_output[0].numpy() for item in sounds]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_class_token(model: Make) -> None:
    reference = Reference(model(save_ast))
    samples = voice(0.7)
    found = embed(HuggingFaceAudioSpec(model=model(save_ast), pooling="cls"), [sound(samples)])
    expected = reference.output(samples).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("save", "pooling", "reason"),
    [
        (save_wav2vec2, "cls", "no class token"),
        (save_clap, "cls", "no class token"),
        (save_whisper, "pooler", "no pooled output"),
        (save_hubert, "pooler", "no pooled output"),
    ],
)
def test_pooling_that_a_model_has_not(
    model: Make, save: Callable[[Path], None], pooling: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        HuggingFaceAudioSpec(model=model(save), pooling=pooling).load()


# ---------------------------------------------------------------- features


def family(model: Make, save: Callable[[Path], None]) -> AudioModel:
    encoder: Any = HuggingFaceAudioSpec(model=model(save)).load()
    found: AudioModel = encoder._model
    return found


@pytest.mark.parametrize("save", [*WAVES, *FIXED])
def test_features_are_those_of_transformers(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    mine = family(model, save)
    assert type(mine) is not AudioModel, "it has kernels of its own"
    full = mine.longest or 30_000
    odd = np.random.default_rng(0).normal(0, 0.1, full - 77).astype(np.float32)
    sounds = [
        *voices(reference.rate),
        voice(full / reference.rate, rate=reference.rate),
        odd,
        np.sin(np.arange(5000) / 9).astype(np.float32),
        np.zeros(3000, dtype=np.float32),
        voice(0.026, rate=reference.rate),
    ]
    (name,) = {"input_values", "input_features"} & set(mine.inputs(sounds[:1]))
    together = mine.inputs(sounds)[name]
    for row, item in zip(together, sounds, strict=True):
        expected = reference.features(item)[name][0]
        found = row[: len(expected)] if name == "input_values" else row
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-4)
        assert not row[len(expected) :].any()


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not beside the project")
@pytest.mark.parametrize("save", FIXED)
def test_features_of_real_speech(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    encoder: Any = HuggingFaceAudioSpec(model=model(save)).load()
    sounds = []
    for path in sorted(SPEECH.glob("*.wav"))[::150]:
        samples, rate = soundfile.read(path, dtype="float32")
        sounds.append(encoder.prepare(sound(samples, rate=rate)))
    together = encoder._model.inputs(sounds)
    name = "input_values" if "input_values" in together else "input_features"
    for row, item in zip(together[name], sounds, strict=True):
        expected = reference.features(item)[name][0].to(row.dtype)
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)


def test_a_model_of_full_size_has_the_same_features() -> None:
    """128 bands for AST, 30 seconds for Whisper, 10 seconds at 48 kHz for CLAP."""
    from features.encoders import audio_models

    class Nothing:
        device, dtype = torch.device("cpu"), torch.float32

    for extractor in (
        transformers.ASTFeatureExtractor(),
        transformers.WhisperFeatureExtractor(feature_size=128),
        transformers.ClapFeatureExtractor(),
    ):
        mine = audio_models.audio_model(Nothing(), extractor)
        samples = voice(1.3, rate=mine.rate)
        expected = dict(extractor(samples, sampling_rate=mine.rate, return_tensors="pt"))
        for name, values in mine.inputs([samples]).items():
            if name != "is_longer":
                torch.testing.assert_close(
                    values, expected[name].to(values.dtype), rtol=0, atol=1e-4
                )


# ---------------------------------------------------------------- batches and windows


@pytest.mark.parametrize("save", [*WAVES, *FIXED, save_wav2vec2_bert])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(
    model: Make, save: Callable[[Path], None], precision: Any
) -> None:
    spec = HuggingFaceAudioSpec(model=model(save), precision=precision)
    encoder = spec.load()
    sounds = [encoder.prepare(sound(item)) for item in voices(RATE)]
    together = encoder.encode(sounds)
    alone = np.concatenate([np.asarray(encoder.encode([item])) for item in sounds])
    np.testing.assert_allclose(together, alone, atol=spec.tolerance)


@pytest.mark.parametrize("save", WAVES)
def test_unlike_lengths_go_through_a_model_together_where_that_changes_nothing(
    model: Make, save: Callable[[Path], None]
) -> None:
    encoder: Any = HuggingFaceAudioSpec(model=model(save)).load()
    assert encoder._together == (save is not save_data2vec)
    passes = list(encoder._passes([5000, 7000, 5000, 6000]))
    if save is save_data2vec:  # its layers of convolutions carry padding into the sound
        assert passes == [[1], [3], [0, 2]]
    else:
        assert passes == [[1, 3, 0, 2]]


def test_norm_over_time_sees_the_sounds_own_frames_alone(model: Make) -> None:
    """Without that, the same batch differs: the test above would bite."""
    encoder: Any = HuggingFaceAudioSpec(model=model(save_wav2vec2)).load()
    assert isinstance(encoder._model, Waveform)
    short, long = (encoder.prepare(sound(voice(s))) for s in (0.3, 1.5))
    alone = encoder._try([short])[0]
    inputs = encoder._model.inputs([short, long])
    network = transformers.AutoModel.from_pretrained(model(save_wav2vec2)).eval()
    with torch.no_grad():
        naive = network(**inputs).last_hidden_state[0]
    steps = encoder._model._steps([len(short)])[0]
    assert np.abs(naive[:steps].mean(dim=0).numpy() - alone).max() > 1e-3


def test_batches_are_bounded_by_seconds_of_sound(model: Make) -> None:
    spec = HuggingFaceAudioSpec(model=model(save_wav2vec2), batch_seconds=2)
    encoder: Any = spec.load()
    assert encoder.budget == 2 * RATE
    assert encoder.size(encoder.prepare(sound(voice(0.5)))) == RATE // 2
    assert list(encoder._passes([8000] * 5)) == [[0, 1, 2, 3], [4]]
    assert list(encoder._passes([31_000, 1000, 1000])) == [[0], [1, 2]]
    whisper: Any = HuggingFaceAudioSpec(model=model(save_whisper), batch_seconds=5).load()
    assert list(whisper._passes([100, 32_000, 5000])) == [[1, 2], [0]]
    assert whisper.size(np.zeros(100)) == 2 * RATE
    assert whisper.size(np.zeros(33_000)) == 4 * RATE
    batched = HuggingFaceAudioSpec(model=model(save_whisper), batch_size=1).load()
    assert list(batched._passes([10, 10])) == [[0], [1]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("save", [save_wav2vec2, save_whisper, save_ast, save_clap])
def test_a_long_sound_goes_through_in_windows(model: Make, save: Callable[[Path], None]) -> None:
    reference = Reference(model(save))
    rate = reference.rate
    samples, other = voice(3.3, rate=rate), voice(0.9, rate=rate, seed=3)
    options = {"model": model(save), "window_seconds": 1.25}
    parts = [
        samples[start : start + round(1.25 * rate)]
        for start in range(0, len(samples), round(1.25 * rate))
    ]
    states = [reference.states(part) for part in parts]
    assert [len(part) for part in parts[:2]] == [1.25 * rate] * 2
    sounds = [sound(other, rate=rate), sound(samples, rate=rate)]

    found = embed(HuggingFaceAudioSpec(**options), sounds)
    match reference.model.config.model_type:
        case "clap":
            weights = [len(part) for part in parts]
        case "audio-spectrogram-transformer":
            weights = [1 + (len(part) - 400) // 160 for part in parts]
        case _:
            weights = [len(part) for part in states]
    expected = np.average([part.mean(axis=0) for part in states], axis=0, weights=weights)
    np.testing.assert_allclose(found[1], expected, atol=1e-4)
    np.testing.assert_allclose(found[0], reference.states(other).mean(axis=0), atol=1e-4)

    if save is not save_clap:
        found = embed(HuggingFaceAudioSpec(**options, output="sequence"), sounds)
        np.testing.assert_allclose(found[1], np.concatenate(states), atol=1e-4)


def test_a_rest_that_is_too_short_for_the_model_is_left_out(model: Make) -> None:
    spec = HuggingFaceAudioSpec(model=model(save_ast), window_seconds=1)
    samples = voice(1.024)
    found = embed(spec, [sound(samples), sound(samples[:RATE])])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(("save", "limit"), [(save_whisper, 2), (save_clap, 2), (save_ast, 2.015)])
def test_windows_beyond_the_model_are_refused_before_any_work(
    model: Make, save: Callable[[Path], None], limit: float
) -> None:
    assert read_limit(model(save)) == pytest.approx(limit)
    spec = HuggingFaceAudioSpec(model=model(save), window_seconds=limit + 0.1)
    with pytest.raises(ValueError, match=f"takes at once, which is {limit:g}"):
        spec.weights()
    with pytest.raises(ValueError, match="takes at once"):
        spec.load()
    HuggingFaceAudioSpec(model=model(save), window_seconds=limit).weights()


def test_a_sound_too_short_for_the_model_is_a_reason(model: Make) -> None:
    encoder = HuggingFaceAudioSpec(model=model(save_wav2vec2)).load()
    with pytest.raises(ValueError, match="9 samples at 16000 Hz; the model needs at least"):
        encoder.prepare(sound(np.zeros(9, dtype=np.float32)))
    with pytest.raises(ValueError, match="399 samples"):
        HuggingFaceAudioSpec(model=model(save_ast)).load().prepare(sound(voice(1)[:399]))
    shortest: Any = encoder
    shortest.encode([encoder.prepare(sound(voice(1)[: shortest._model.least]))])


def test_sounds_are_brought_to_the_models_rate_and_channels_averaged(model: Make) -> None:
    spec = HuggingFaceAudioSpec(model=model(save_clap))
    encoder = spec.load()
    time = np.arange(44_100) / 44_100
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    stereo = Sound(samples=np.stack([tone, -0.5 * tone]), rate=44_100)
    found = encoder.prepare(stereo)
    assert len(found) == 24_000
    expected = 0.125 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=1e-3)


# ---------------------------------------------------------------- other options


@pytest.mark.parametrize("output", ["pooled", "sequence"])
def test_embeddings_of_unit_length(model: Make, output: Any) -> None:
    sounds = [sound(voice(0.5)), sound(voice(2.4))]
    options = {"model": model(save_whisper), "output": output}
    plain = embed(HuggingFaceAudioSpec(**options), sounds)
    for row, whole in zip(
        embed(HuggingFaceAudioSpec(**options, normalize=True), sounds), plain, strict=True
    ):
        np.testing.assert_allclose(np.linalg.norm(row, axis=-1), 1, atol=1e-6)
        np.testing.assert_allclose(
            row, whole / np.linalg.norm(whole, axis=-1, keepdims=True), atol=1e-5
        )


@pytest.mark.parametrize("save", [save_wav2vec2, save_ast])
def test_bfloat16_is_near_float32(model: Make, save: Callable[[Path], None]) -> None:
    sounds = [sound(item) for item in voices(RATE)]
    exact = embed(HuggingFaceAudioSpec(model=model(save)), sounds)
    near = embed(HuggingFaceAudioSpec(model=model(save), precision="bfloat16"), sounds)
    cosine = (
        (exact * near).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    )
    assert cosine.min() > 0.999
    assert not np.array_equal(exact, near)


def test_an_extractor_that_draws_random_numbers_is_refused(
    model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = transformers.SeamlessM4TFeatureExtractor.__call__

    def noisy(self: Any, sound: np.ndarray, **options: Any) -> Any:
        return really(self, sound + np.random.default_rng().normal(0, 0.1, len(sound)), **options)

    monkeypatch.setattr(transformers.SeamlessM4TFeatureExtractor, "__call__", noisy)
    with pytest.raises(ValueError, match="draws random numbers"):
        HuggingFaceAudioSpec(model=model(save_wav2vec2_bert)).load()


def test_weights_that_only_training_needs_may_be_missing(model: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_wav2vec2(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if k != "masked_spec_embed"}
    assert len(tensors) < len(load_file(file))
    save_file(tensors, file, metadata={"format": "pt"})
    HuggingFaceAudioSpec(model=str(tmp_path)).load()
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lack"):
        HuggingFaceAudioSpec(model=str(tmp_path)).load()


def test_identity(model: Make, tmp_path: Path) -> None:
    def spec(**options: Any) -> HuggingFaceAudioSpec:
        return HuggingFaceAudioSpec(model=model(save_ast), **options)

    base = spec().fingerprint()
    assert spec(batch_seconds=3, batch_size=2).fingerprint() == base
    changes: list[dict[str, Any]] = [
        {"pooling": "cls"},
        {"output": "sequence"},
        {"window_seconds": 1.0},
        {"precision": "bfloat16"},
        {"normalize": True},
    ]
    assert len({spec(**change).fingerprint() for change in changes} | {base}) == 6
    assert "preprocessor_config.json" in spec().weights()
    torch.manual_seed(0)
    save_ast(tmp_path)
    copied = HuggingFaceAudioSpec(model=str(tmp_path))
    assert copied.fingerprint() == base
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"mean": -4.0}))
    assert copied.fingerprint() != base


def test_named_in_yaml(model: Make) -> None:
    named = {"type": "huggingface_audio", "model": model(save_hubert), "output": "sequence"}
    assert isinstance(parse_encoder(named), HuggingFaceAudioSpec)
    with pytest.raises(pydantic.ValidationError, match="window_seconds"):
        parse_encoder({**named, "window_second": 3})
