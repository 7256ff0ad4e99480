"""Audio statistics: against librosa and soxr, and that padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pydantic
import pytest
import torch

from features.encoders import Sound, log_mel
from features.encoders.audio import AudioStatisticsSpec
from features.encoders.log_mel import mel_filters
from features.payloads import decode

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
SPEECH = Path(__file__).parents[3] / "shared" / "data" / "fsdd"


def chirp(seconds: float, *, seed: int = 0) -> np.ndarray:
    """A rising tone in noise, float32 `[T]` at 16 kHz."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.02, len(time))
    tone = 0.5 * np.sin(2 * np.pi * (200 + 900 * time) * time)
    return (tone + noise).astype(np.float32)


def sound(*channels: np.ndarray, rate: int = RATE) -> Sound:
    return Sound(samples=np.stack(channels), rate=rate)


def embed(spec: AudioStatisticsSpec, sounds: list[Sound]) -> np.ndarray:
    encoder = spec.load()
    rows = encoder.encode([encoder.prepare(item) for item in sounds])
    assert rows.dtype == np.float32
    assert rows.shape == (len(sounds), encoder.dim) == (len(sounds), spec.dim)
    return rows


def bands(samples: np.ndarray, spec: AudioStatisticsSpec) -> np.ndarray:
    """Log-mel energies in dB over MFCCs, `[n_mels + n_mfcc, F]`, by librosa in float64."""
    power = librosa.feature.melspectrogram(
        y=samples.astype(np.float64),
        sr=spec.rate,
        n_fft=spec.n_fft,
        hop_length=spec.hop,
        n_mels=spec.n_mels,
        center=True,
        pad_mode="constant",
        power=2.0,
        htk=False,
        norm="slaney",
    )
    mel = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)
    return np.concatenate([mel, librosa.feature.mfcc(S=mel, n_mfcc=spec.n_mfcc)])


def statistics(bands: np.ndarray) -> np.ndarray:
    parts = [bands.mean(axis=1), bands.std(axis=1), bands.min(axis=1), bands.max(axis=1)]
    return np.concatenate(parts)


@pytest.mark.parametrize(("rate", "n_fft", "n_mels"), [(16000, 400, 40), (8000, 512, 20)])
def test_filters_are_librosas(rate: int, n_fft: int, n_mels: int) -> None:
    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, dtype=np.float64)
    found = mel_filters(rate=rate, n_fft=n_fft, n_mels=n_mels)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_filters_below_the_corner_of_the_scale() -> None:
    expected = librosa.filters.mel(sr=1600, n_fft=400, n_mels=8, dtype=np.float64)
    np.testing.assert_allclose(mel_filters(rate=1600, n_fft=400, n_mels=8), expected, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, {"n_fft": 512, "hop": 128, "n_mels": 26, "n_mfcc": 20}, {"rate": 8000, "n_mels": 20}],
)
def test_statistics_are_librosas(options: dict[str, int]) -> None:
    spec = AudioStatisticsSpec(**options)
    for seconds in (0.1, 0.731, 1.5):
        samples = chirp(seconds)
        found = embed(spec, [sound(samples, rate=spec.rate)])[0]
        np.testing.assert_allclose(found, statistics(bands(samples, spec)), atol=1e-4)


def test_segments_have_statistics_of_their_own() -> None:
    spec = AudioStatisticsSpec(segments=3)
    samples = chirp(0.5)
    expected = bands(samples, spec)
    assert expected.shape[1] == 51
    parts = [statistics(expected[:, i * 17 : (i + 1) * 17]) for i in range(3)]
    found = embed(spec, [sound(samples)])[0]
    np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-4)
    assert np.isfinite(embed(spec, [sound(samples[:1])])).all()


@pytest.mark.parametrize("normalize", ["mean", "mean_variance"])
def test_normalized_frames_are_those_of_librosa_scaled_by_scikit_learn(normalize: Any) -> None:
    from sklearn.preprocessing import scale

    samples = chirp(0.5)
    options: dict[str, Any] = {"normalize": normalize, "features": "both"}
    whole = bands(samples, AudioStatisticsSpec())
    expected = scale(whole.T, with_std=normalize == "mean_variance")
    sequence = AudioStatisticsSpec(output="sequence", **options)
    found = frames(sequence, [sound(chirp(0.2, seed=1)), sound(samples)])[1]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # Normalised over the whole sound, and not segment by segment.
    parts = [statistics(expected[i * 17 : (i + 1) * 17].T) for i in range(3)]
    found = embed(AudioStatisticsSpec(segments=3, **options), [sound(samples)])[0]
    np.testing.assert_allclose(found, np.concatenate(parts), atol=1e-3)


def test_normalized_a_sound_is_as_loud_as_any() -> None:
    spec = AudioStatisticsSpec(segments=3, normalize="mean", features="log_mel")
    quiet, loud = embed(spec, [sound(0.1 * chirp(0.5)), sound(chirp(0.5))])
    np.testing.assert_allclose(quiet, loud, atol=1e-3)
    plain = embed(AudioStatisticsSpec(segments=3), [sound(0.1 * chirp(0.5)), sound(chirp(0.5))])
    assert np.abs(plain[0] - plain[1]).max() > 10, "20 dB apart"


def test_normalized_silence_is_zero() -> None:
    spec = AudioStatisticsSpec(segments=2, normalize="mean_variance")
    rows = embed(spec, [sound(np.zeros(3000, dtype=np.float32)), sound(np.ones(1, np.float32))])
    np.testing.assert_allclose(rows, 0, atol=1e-3)


def test_padding_in_a_batch_changes_nothing() -> None:
    spec = AudioStatisticsSpec(segments=2)
    lengths = (1, 159, 160, 161, 399, 400, 1000, 8000, 12345)
    sounds = [sound(chirp(1, seed=i)[:length]) for i, length in enumerate(lengths)]
    together = embed(spec, sounds)
    alone = np.concatenate([embed(spec, [item]) for item in sounds])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_frames_go_through_in_pieces_of_bounded_size(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = AudioStatisticsSpec()
    sounds = [sound(chirp(0.2, seed=i)[: 1000 + 300 * i]) for i in range(6)]
    expected = embed(spec, sounds)
    seen: list[int] = []
    really = torch.fft.rfft

    def rfft(frames: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(len(frames))
        return really(frames, *args)

    monkeypatch.setattr(torch.fft, "rfft", rfft)
    monkeypatch.setattr(log_mel, "FRAMES_AT_ONCE", {"cpu": at_once, "cuda": at_once})
    np.testing.assert_allclose(embed(spec, sounds), expected, atol=1e-4)
    assert max(seen) <= at_once
    assert len(seen) < 2 * sum(seen) / at_once + 1, "sounds share pieces"


def frames(spec: AudioStatisticsSpec, sounds: list[Sound]) -> list[np.ndarray]:
    encoder = spec.load()
    found = encoder.encode([encoder.prepare(item) for item in sounds])
    assert isinstance(found, list)
    assert all(rows.dtype == np.float32 for rows in found)
    assert all(rows.shape[1] == encoder.dim == spec.dim for rows in found)
    return found


@pytest.mark.parametrize("features", ["both", "log_mel", "mfcc"])
def test_sequence_is_the_frames_of_librosa(features: Any) -> None:
    spec = AudioStatisticsSpec(output="sequence", features=features)
    assert spec.sequence
    mine = {"both": slice(0, 53), "log_mel": slice(0, 40), "mfcc": slice(40, 53)}[features]
    sounds = [sound(chirp(seconds)) for seconds in (0.01, 0.5, 0.731)]
    for item, found in zip(sounds, frames(spec, sounds), strict=True):
        np.testing.assert_allclose(found, bands(item.samples[0], spec)[mine].T, atol=1e-3)


def test_spectrum_is_librosas() -> None:
    samples = chirp(0.4)
    spec = AudioStatisticsSpec(features="spectrum", n_fft=256, hop=100, n_mels=500)
    power = np.abs(librosa.stft(samples, n_fft=256, hop_length=100, pad_mode="constant")) ** 2
    expected = librosa.power_to_db(power, amin=1e-10, top_db=None)
    # A bin of no power but rounding has no digits to agree in.
    np.testing.assert_allclose(embed(spec, [sound(samples)])[0], statistics(expected), atol=0.05)
    sequence = spec.model_copy(update={"output": "sequence"})
    np.testing.assert_allclose(frames(sequence, [sound(samples)])[0], expected.T, atol=0.05)


def test_windows_have_statistics_of_their_own() -> None:
    spec = AudioStatisticsSpec(
        output="sequence", window_seconds=0.2, hop_seconds=0.1, segments=2, features="log_mel"
    )
    samples = chirp(0.75)
    mel = bands(samples, spec)[:40]
    assert mel.shape[1] == 76
    expected = [
        np.concatenate(
            [
                statistics(window[:, : window.shape[1] // 2]),
                statistics(window[:, window.shape[1] // 2 :]),
            ]
        )
        for window in (mel[:, start : start + 20] for start in range(0, 66, 10))
    ]
    found = frames(spec, [sound(samples), sound(samples[:1000])])
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    assert found[1].shape == (1, 320)
    side_by_side = AudioStatisticsSpec(output="sequence", window_seconds=0.25)
    assert len(frames(side_by_side, [sound(samples)])[0]) == 4
    assert len(frames(side_by_side, [sound(samples[: int(0.74 * RATE)])])[0]) == 3


def test_sequences_do_not_depend_on_their_batch() -> None:
    spec = AudioStatisticsSpec(output="sequence")
    sounds = [sound(chirp(1, seed=i)[:length]) for i, length in enumerate((1, 400, 9000, 16000))]
    for item, found in zip(sounds, frames(spec, sounds), strict=True):
        np.testing.assert_allclose(found, frames(spec, [item])[0], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"window_seconds": 1}, "`output: sequence`"),
        ({"output": "sequence", "hop_seconds": 1}, "give `window_seconds`"),
        ({"output": "sequence", "segments": 2}, "all frames"),
        ({"features": "mfcc", "n_mfcc": 0}, "raise `n_mfcc`"),
        ({"normalize": "mean"}, "raise `segments`"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=reason):
        AudioStatisticsSpec(**options)


def test_silence_and_the_shortest_sound_are_finite() -> None:
    silence = np.zeros(3000, dtype=np.float32)
    click = np.ones(1, dtype=np.float32)
    short = sound(np.zeros(1, dtype=np.float32), rate=192_000)
    rows = embed(AudioStatisticsSpec(), [sound(silence), sound(click), short])
    assert np.isfinite(rows).all()
    assert rows[0, :40].tolist() == [-100.0] * 40


def test_channels_are_averaged() -> None:
    left, right = chirp(0.3, seed=1), chirp(0.3, seed=2)
    spec = AudioStatisticsSpec()
    rows = embed(spec, [sound(left, right), sound((left + right) / 2)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_a_sound_is_the_same_at_any_rate_it_was_recorded_at(rate: int) -> None:
    time = np.arange(rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    prepared = AudioStatisticsSpec().load().prepare(sound(tone, rate=rate))
    assert abs(len(prepared) - RATE) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(prepared)) / RATE)
    np.testing.assert_allclose(prepared[400:-400], expected[400:-400], atol=1e-3)


def test_what_the_new_rate_cannot_hold_does_not_fold_back() -> None:
    high = (0.5 * np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100)).astype(np.float32)
    prepared = AudioStatisticsSpec().load().prepare(sound(high, rate=44_100))
    assert np.abs(prepared[400:-400]).max() < 1e-4


def test_a_rate_that_is_none_is_a_reason() -> None:
    with pytest.raises(ValueError, match="3 Hz"):
        AudioStatisticsSpec().load().prepare(sound(chirp(0.1), rate=3))


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match=r"`n_mfcc` 13 is more than `n_mels` 10"):
        AudioStatisticsSpec(n_mels=10)
    with pytest.raises(pydantic.ValidationError, match="fall between the frequencies"):
        AudioStatisticsSpec(n_mels=200)


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not beside the project")
def test_spoken_digits_are_told_apart() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    paths = sorted(SPEECH.glob("*.wav"))[::4]
    sounds = [decode(path.read_bytes(), kind="audio") for path in paths]
    rows = embed(AudioStatisticsSpec(rate=8000, n_fft=256, hop=80, n_mels=24, segments=3), sounds)
    digits = [path.name[0] for path in paths]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    # In the order of the files, a fold is mostly a speaker whom the others do not have.
    assert cross_val_score(model, rows, digits, cv=3).mean() > 0.5, "ten digits: 0.1 by chance"


def test_identity() -> None:
    base = AudioStatisticsSpec().fingerprint()
    assert base == "95e0f4298527d84d2576c49da14be379", "as before there was `normalize`"
    normalized = AudioStatisticsSpec(segments=2, normalize="mean")
    assert normalized.fingerprint() != AudioStatisticsSpec(segments=2).fingerprint()
    assert AudioStatisticsSpec(batch_size=7).fingerprint() == base
    changes: list[dict[str, Any]] = [
        {"n_mels": 39},
        {"dtype": "float32"},
        {"rate": 8000, "n_mels": 20},
        {"segments": 2},
    ]
    others = {AudioStatisticsSpec(**change).fingerprint() for change in changes}
    assert len(others - {base}) == len(changes)
