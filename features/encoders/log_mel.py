"""Spectra and log-mel energies of many sounds, in pieces of frames that stay in the cache.

Tensors are named with their axes: T samples, F frames, N samples of a frame, K frequencies,
M mel bands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from features.encoders.base import Sound, import_extra

FRAMES_AT_ONCE = {"cpu": 512, "cuda": 2**15}
"""Frames that are transformed at once. Larger pieces leave a processor's cache and are slower."""
RATES = (1_000, 1_000_000)
"""Sampling rates that are taken for real, in Hz."""
LEAST_POWER = 1e-10
"""Floor of a band's power before the logarithm: -100 dB."""


def mono_at(rate: int, sound: Sound) -> np.ndarray:
    """The mean of a sound's channels at another rate, float32 `[T]`, by soxr.

    ValueError if the sound's own rate is that of no sound.
    """
    if not RATES[0] <= sound.rate <= RATES[1]:
        raise ValueError(f"a sampling rate of {sound.rate} Hz is not that of a sound")
    mono = sound.samples[0] if len(sound.samples) == 1 else sound.samples.mean(axis=0)
    mono = np.ascontiguousarray(mono, dtype=np.float32)
    if sound.rate != rate:
        soxr = import_extra("soxr", extra="audio")
        mono = soxr.resample(mono, sound.rate, rate, quality="HQ")
    return mono if len(mono) else np.zeros(1, dtype=np.float32)


def each_frame(
    sounds: Sequence[Any], *, length: int, hop: int, function: Callable[[Any], Any]
) -> list[Any]:
    """What a function makes of the frames of each sound.

    `sounds` are tensors `[T]` of at least one frame; `function` takes frames `[F, length]` of
    one or several sounds, and gives one row for each. Returns tensors `[F, ...]`, as many as
    sounds.
    """
    import torch

    at_once = FRAMES_AT_ONCE.get(sounds[0].device.type, 512)
    results: list[Any] = []
    waiting: list[Any] = []
    counts: list[int] = []

    def flush() -> None:
        if waiting:
            results.append(function(torch.cat(waiting)))
            waiting.clear()

    for sound_T in sounds:
        frames_FN = sound_T.unfold(0, length, hop)
        counts.append(len(frames_FN))
        for piece_FN in frames_FN.split(at_once):
            if sum(map(len, waiting)) + len(piece_FN) > at_once:
                flush()
            waiting.append(piece_FN)
    flush()
    return list(torch.cat(results).split(counts))


def power_spectrum(frames_FN: Any, *, n_fft: int) -> Any:
    """Squared magnitudes `[F, n_fft // 2 + 1]` of windowed frames."""
    import torch

    spectrum_FK = torch.fft.rfft(frames_FN, n_fft)
    return spectrum_FK.real.square() + spectrum_FK.imag.square()


def kaldi_log_mel(sounds: Sequence[Any], *, filters_KM: Any, window_N: Any) -> list[Any]:
    """Kaldi's filter bank energies, natural logarithm, `[F, M]` for each sound of 16 kHz.

    Frames of 25 ms every 10 ms without their mean, pre-emphasis 0.97, window, transform of 512
    samples (Povey et al., "The Kaldi Speech Recognition Toolkit", ASRU 2011). The transform is
    computed in float64, as the rounding of float32 shows in quiet bands.
    """
    import torch

    def energies(frames_FN: Any) -> Any:
        frames_FN = frames_FN.double()
        frames_FN -= frames_FN.mean(dim=1, keepdim=True)
        sharp_FN = torch.empty_like(frames_FN)
        sharp_FN[:, 0] = (1 - 0.97) * frames_FN[:, 0]
        torch.sub(frames_FN[:, 1:], frames_FN[:, :-1], alpha=0.97, out=sharp_FN[:, 1:])
        sharp_FN *= window_N
        power_FM = power_spectrum(sharp_FN, n_fft=512).float() @ filters_KM
        return power_FM.clamp_min_(torch.finfo(torch.float32).eps).log_()

    return each_frame(sounds, length=400, hop=160, function=energies)


def decibel_log_mel(
    sounds: Sequence[Any], *, filters_KM: Any, window_N: Any, hop: int
) -> list[Any]:
    """Mel energies in dB, `[1 + T // hop, M]`, of frames around multiples of the hop.

    A sound goes on as its mirror image before and after. `window_N` is of float64, and so is the
    transform, as above.
    """
    import torch

    length = len(window_N)
    half = length // 2

    def energies(frames_FN: Any) -> Any:
        power_FK = power_spectrum(frames_FN * window_N, n_fft=length)
        power_FM = power_FK.float() @ filters_KM
        return power_FM.clamp_min_(LEAST_POWER).log10_().mul_(10)

    padded = [
        torch.nn.functional.pad(sound_T[None], (half, half), mode="reflect")[0]
        for sound_T in sounds
    ]
    return each_frame(padded, length=length, hop=hop, function=energies)


def whisper_log_mel(
    sounds: Sequence[Any], *, filters_KM: Any, window_N: Any, hop: int, samples: int
) -> Any:
    """Whisper's log-mel spectra `[B, M, samples // hop]`, of sounds padded to so many samples.

    Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), 2.2:
    base-10 logarithms, no less than 8 below a sound's greatest, and scaled. Only frames with sound
    in them are computed; those of the silence after it all have one value.
    """
    import torch

    length = len(window_N)
    half = length // 2
    padded = []
    for sound_T in sounds:
        # As much silence as the last frame with sound reaches into, and its mirror image after it.
        there = min(len(sound_T) + length, samples)
        silent_T = torch.nn.functional.pad(sound_T[:samples], (0, max(0, there - len(sound_T))))
        edge = half if there == samples else 0
        left = torch.nn.functional.pad(silent_T[None], (half, edge), mode="reflect")[0]
        padded.append(left[: len(left) - 1])  # the frame at the very end does not count

    def energies(frames_FN: Any) -> Any:
        power_FM = power_spectrum(frames_FN * window_N, n_fft=length) @ filters_KM
        return power_FM.clamp_min_(LEAST_POWER).log10_()

    found = each_frame(padded, length=length, hop=hop, function=energies)
    features_BMF = filters_KM.new_empty((len(found), filters_KM.shape[1], samples // hop))
    for features_MF, log_FM in zip(features_BMF, found, strict=True):
        floor = log_FM.amax() - 8
        features_MF[:] = (floor.clamp_min(np.log10(LEAST_POWER)) + 4) / 4
        count = min(len(log_FM), samples // hop)
        features_MF[:, :count] = (log_FM[:count].maximum(floor).T + 4) / 4
    return features_BMF


def mel_filters(*, rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangular filters `[n_mels, n_fft // 2 + 1]` of equal area on the mel scale (Slaney 1998).

    The scale is linear up to 1 kHz (3 mel per 200 Hz) and logarithmic above (27 mel per factor
    of 6.4).
    """
    corner_hz, hz_per_mel, log_step = 1000.0, 200 / 3, np.log(6.4) / 27
    corner = corner_hz / hz_per_mel
    top_hz = rate / 2
    top = (
        corner + np.log(top_hz / corner_hz) / log_step
        if top_hz >= corner_hz
        else top_hz / hz_per_mel
    )
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(
        mels < corner, mels * hz_per_mel, corner_hz * np.exp(log_step * (mels - corner))
    )
    frequencies = np.linspace(0.0, top_hz, n_fft // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])
    filters: np.ndarray = np.maximum(0, np.minimum(rising, falling)) * area[:, None]
    return filters
