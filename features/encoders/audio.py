"""Audio encoder without weights: statistics of log-mel energies and MFCCs over time."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind, Sound, import_extra

MAX_VALUES_AT_ONCE = 2**24
"""Samples that go through the transform at once, padding included (its output is 5 times that)."""
LEAST_POWER = 1e-10
"""Floor of a band's power before the logarithm: -100 dB."""
STATISTICS = ("mean", "standard deviation", "least", "greatest")
"""What is kept of each band over time, in the order of an embedding."""
RATES = (1_000, 1_000_000)
"""Sampling rates that are taken for real, in Hz."""


class AudioStatisticsSpec(EncoderSpec):
    """Mean, deviation, least and greatest value over time of log-mel energies (dB) and MFCCs.

    The mel scale and the filters of equal area are those of Slaney, "Auditory Toolbox" (1998);
    the cepstral coefficients those of Davis and Mermelstein (IEEE ASSP 28(4), 1980). Values
    agree with librosa's. An embedding holds, per segment and statistic, `n_mels` energies, then
    `n_mfcc` coefficients.
    """

    kind: ClassVar[Kind] = "audio"

    type: Literal["audio_statistics"] = "audio_statistics"
    rate: Annotated[int, pydantic.Field(ge=1_000, le=192_000)] = 16_000
    """Sampling rate to which a sound is brought, in Hz; its channels are averaged."""
    n_fft: Annotated[int, pydantic.Field(ge=16, le=65_536)] = 400
    """Length of a frame, in samples."""
    hop: Annotated[int, pydantic.Field(ge=1)] = 160
    """Distance of frames, in samples."""
    n_mels: Annotated[int, pydantic.Field(ge=1)] = 40
    """Mel bands between 0 Hz and half the rate."""
    n_mfcc: Annotated[int, pydantic.Field(ge=0)] = 13
    """Cepstral coefficients, of which the first is the loudness; at most `n_mels`."""
    segments: Annotated[int, pydantic.Field(ge=1)] = 1
    """Equal parts of a sound over which statistics are taken one by one: more keep more of the
    order in time."""

    @pydantic.model_validator(mode="after")
    def _bands_are_there(self) -> Self:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"`n_mfcc` {self.n_mfcc} is more than `n_mels` {self.n_mels}")
        filters = mel_filters(rate=self.rate, n_fft=self.n_fft, n_mels=self.n_mels)
        empty = int((filters.max(axis=1) == 0).sum())
        if empty:
            raise ValueError(
                f"{empty} of `n_mels` {self.n_mels} bands fall between the frequencies of `n_fft` "
                f"{self.n_fft}; lower `n_mels` or raise `n_fft`"
            )
        return self

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.segments * len(STATISTICS) * (self.n_mels + self.n_mfcc)

    @property
    def tolerance(self) -> float:
        return 1e-3

    def load(self) -> Encoder:
        return _AudioStatistics(self)


class _AudioStatistics:
    def __init__(self, spec: AudioStatisticsSpec) -> None:
        import torch
        from scipy.fft import dct

        self._soxr = import_extra("soxr", extra="audio")
        self._spec = spec
        self.dim = spec.dim
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        filters = mel_filters(rate=spec.rate, n_fft=spec.n_fft, n_mels=spec.n_mels)
        cosines = dct(np.eye(spec.n_mels), type=2, norm="ortho", axis=0)[: spec.n_mfcc]
        self._filters_MK = self._tensor(filters)
        self._cosines_CM = self._tensor(cosines)
        self._window = torch.hann_window(spec.n_fft, periodic=True, device=self._device)

    def _tensor(self, values: np.ndarray) -> Any:
        import torch

        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def prepare(self, payload: Sound) -> np.ndarray:
        """Mono float32 `[T]` at the spec's rate."""
        if not RATES[0] <= payload.rate <= RATES[1]:
            raise ValueError(f"a sampling rate of {payload.rate} Hz is not that of a sound")
        mono = payload.samples.mean(axis=0, dtype=np.float32)
        if payload.rate != self._spec.rate:
            mono = self._soxr.resample(mono, payload.rate, self._spec.rate, quality="HQ")
        return mono if len(mono) else np.zeros(1, dtype=np.float32)

    def size(self, prepared: np.ndarray) -> int:
        return len(prepared)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        parts: list[list[np.ndarray]] = [[]]
        for samples in batch:
            longest = max(len(other) for other in (samples, *parts[-1]))
            if parts[-1] and longest * (len(parts[-1]) + 1) > MAX_VALUES_AT_ONCE:
                parts.append([])
            parts[-1].append(samples)
        return np.concatenate([self._statistics(part) for part in parts])

    def _statistics(self, batch: list[np.ndarray]) -> np.ndarray:
        """Statistics `[B, D]` of the frames of each sound; those of the padding do not count.

        B sounds, T samples, F frames, K frequencies, M bands, C coefficients.
        """
        import torch

        spec = self._spec
        longest = max(len(samples) for samples in batch)
        samples_BT = np.zeros((len(batch), longest), dtype=np.float32)
        for row, samples in zip(samples_BT, batch, strict=True):
            row[: len(samples)] = samples
        with torch.inference_mode():
            # A sound stands between zeros, alone as in a batch: so its frames are the same.
            spectrum_BKF = torch.stft(
                self._tensor(samples_BT),
                n_fft=spec.n_fft,
                hop_length=spec.hop,
                window=self._window,
                center=True,
                pad_mode="constant",
                return_complex=True,
            )
            power_BMF = self._filters_MK @ spectrum_BKF.abs().square()
            mel_BMF = 10 * power_BMF.clamp_min(LEAST_POWER).log10()
            bands_BNF = torch.cat([mel_BMF, self._cosines_CM @ mel_BMF], dim=1)
            rows = []
            for bands_NF, samples in zip(bands_BNF, batch, strict=True):
                frames = 1 + len(samples) // spec.hop
                rows.append(torch.cat([_summary(part) for part in self._parts(bands_NF, frames)]))
            array: np.ndarray = torch.stack(rows).cpu().numpy()
        return array

    def _parts(self, bands_NF: Any, frames: int) -> list[Any]:
        """The frames of each segment; a short sound's segments share frames, and none is empty."""
        segments = self._spec.segments
        starts = [i * frames // segments for i in range(segments)]
        ends = [max(start + 1, (i + 1) * frames // segments) for i, start in enumerate(starts)]
        return [bands_NF[:, start:end] for start, end in zip(starts, ends, strict=True)]


def _summary(bands_NF: Any) -> Any:
    """The four statistics of N bands over F frames, `[4 N]`."""
    import torch

    return torch.cat(
        [
            bands_NF.mean(dim=1),
            bands_NF.std(dim=1, correction=0),
            bands_NF.amin(dim=1),
            bands_NF.amax(dim=1),
        ]
    )


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
