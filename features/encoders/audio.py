"""Audio encoder without weights: log-mel energies, MFCCs or spectra, and their statistics."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind, Sound, import_extra
from features.encoders.log_mel import LEAST_POWER, each_frame, mel_filters, mono_at, power_spectrum

STATISTICS = ("mean", "standard deviation", "least", "greatest")
"""What is kept of each band over time, in the order of an embedding."""
LEAST_DEVIATION = 1e-3
"""Of a band over time, in dB: one that varies less is not blown up to vary as the others do."""


class AudioStatisticsSpec(EncoderSpec):
    """Log-mel energies (dB), MFCCs or spectra (dB) of a sound's frames, or their statistics.

    The mel scale and the filters of equal area are those of Slaney, "Auditory Toolbox" (1998);
    the cepstral coefficients those of Davis and Mermelstein (IEEE ASSP 28(4), 1980). Values
    agree with librosa's. They may be normalised over each sound, as in Viikki and Laurila,
    "Cepstral domain segmental feature vector normalization" (Speech Communication 25, 1998).
    Statistics are the mean, deviation, least and greatest value over time
    of each of them, one statistic after the other.
    """

    kind: ClassVar[Kind] = "audio"
    version: ClassVar[int] = 3

    type: Literal["audio_statistics"] = "audio_statistics"
    features: Literal["both", "log_mel", "mfcc", "spectrum"] = "both"
    """`log_mel` energies, `mfcc` coefficients, `both` of them in that order, or the power
    `spectrum`, which has a value for each of `n_fft // 2 + 1` frequencies."""
    output: Literal["statistics", "sequence"] = "statistics"
    """One row of statistics for a sound, or a sequence: of its frames, or, with
    `window_seconds`, of statistics."""
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
    normalize: Literal["mean", "mean_variance"] | None = None
    """Over a sound's frames, each value less its `mean` (CMN), which takes away what a microphone
    and a loudness add; or divided by its deviation too (`mean_variance`, CMVN), which leaves less
    of a speaker's voice. For sequences and `segments`, since a whole sound's mean is then zero."""
    segments: Annotated[int, pydantic.Field(ge=1)] = 1
    """Equal parts of a sound over which statistics are taken one by one, side by side in its row:
    more keep more of the order in time."""
    window_seconds: Annotated[float | None, pydantic.Field(gt=0)] = None
    """With `output: sequence`: length of the windows of which each has a row of statistics. They
    keep a long sound's sequence short: at 1 s, an hour has 3600 rows instead of 360,000."""
    hop_seconds: Annotated[float | None, pydantic.Field(gt=0)] = None
    """Distance of windows; as long as a window if it is not given."""

    @pydantic.model_validator(mode="after")
    def _bands_are_there(self) -> Self:
        if self.features == "spectrum":
            return self
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"`n_mfcc` {self.n_mfcc} is more than `n_mels` {self.n_mels}")
        if self.features == "mfcc" and self.n_mfcc == 0:
            raise ValueError("`features: mfcc` with `n_mfcc` 0 leaves nothing; raise `n_mfcc`")
        filters = mel_filters(rate=self.rate, n_fft=self.n_fft, n_mels=self.n_mels)
        empty = int((filters.max(axis=1) == 0).sum())
        if empty:
            raise ValueError(
                f"{empty} of `n_mels` {self.n_mels} bands fall between the frequencies of `n_fft` "
                f"{self.n_fft}; lower `n_mels` or raise `n_fft`"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _windows_fit_the_output(self) -> Self:
        if self.output == "statistics" and (self.window_seconds or self.hop_seconds):
            raise ValueError(
                "`window_seconds` and `hop_seconds` make a sequence; set `output: sequence`, or "
                "divide a sound by `segments`"
            )
        if self.hop_seconds and not self.window_seconds:
            raise ValueError("`hop_seconds` is the distance of windows; give `window_seconds` too")
        if self.output == "sequence" and not self.window_seconds and self.segments > 1:
            raise ValueError("`segments` divides what statistics are of; a sequence has all frames")
        return self

    @pydantic.model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.normalize and not self.sequence and self.segments == 1:
            raise ValueError(
                "`normalize` makes a whole sound's mean zero; raise `segments`, or set "
                "`output: sequence`"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """As it was before there was `normalize`, if it is not given."""
        found = super().identity()
        if self.normalize is None:
            del found["normalize"]
        return found

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    @property
    def bands(self) -> int:
        """Values of a frame."""
        if self.features == "spectrum":
            return self.n_fft // 2 + 1
        mels = self.n_mels if self.features != "mfcc" else 0
        return mels + (self.n_mfcc if self.features != "log_mel" else 0)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        if self.sequence and self.window_seconds is None:
            return self.bands
        return self.segments * len(STATISTICS) * self.bands

    @property
    def tolerance(self) -> float:
        return 1e-3

    def load(self) -> Encoder:
        return _AudioStatistics(self)


class _AudioStatistics:
    """Tensors are named with their axes: F frames, N samples of a frame, V values of a frame."""

    def __init__(self, spec: AudioStatisticsSpec) -> None:
        import torch
        from scipy.fft import dct

        import_extra("soxr", extra="audio")
        self._spec = spec
        self.dim = spec.dim
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # In float64, as the rounding of float32 shows in quiet bands.
        self._window_N = torch.hann_window(
            spec.n_fft, periodic=True, dtype=torch.float64, device=self._device
        )
        if spec.features != "spectrum":
            filters = mel_filters(rate=spec.rate, n_fft=spec.n_fft, n_mels=spec.n_mels)
            cosines = dct(np.eye(spec.n_mels), type=2, norm="ortho", axis=0)[: spec.n_mfcc]
            self._filters_KM = self._tensor(filters.T)
            self._cosines_MC = self._tensor(cosines.T)

    def _tensor(self, values: np.ndarray) -> Any:
        import torch

        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def prepare(self, payload: Sound) -> np.ndarray:
        """Mono float32 `[T]` at the spec's rate."""
        return mono_at(self._spec.rate, payload)

    def size(self, prepared: np.ndarray) -> int:
        return len(prepared)

    def encode(self, batch: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        import torch

        spec = self._spec
        half = spec.n_fft // 2
        with torch.inference_mode():
            # A sound stands between zeros, alone as in a batch: so its frames are the same.
            sounds = [
                torch.nn.functional.pad(self._tensor(samples), (half, half)) for samples in batch
            ]
            found = each_frame(sounds, length=spec.n_fft, hop=spec.hop, function=self._values)
            if spec.normalize:
                found = [self._normalized(values_FV) for values_FV in found]
            if not spec.sequence:
                rows: np.ndarray = torch.stack([self._row(f) for f in found]).cpu().numpy()
                return rows
            if spec.window_seconds is not None:
                found = [torch.stack([self._row(w) for w in self._windows(f)]) for f in found]
            return [values_FV.cpu().numpy() for values_FV in found]

    def _values(self, frames_FN: Any) -> Any:
        """Values `[F, V]` of frames."""
        import torch

        features = self._spec.features
        power_FK = power_spectrum(frames_FN * self._window_N, n_fft=self._spec.n_fft).float()
        if features == "spectrum":
            return power_FK.clamp_min_(LEAST_POWER).log10_().mul_(10)
        mel_FM = (power_FK @ self._filters_KM).clamp_min_(LEAST_POWER).log10_().mul_(10)
        if features == "log_mel":
            return mel_FM
        cepstrum_FC = mel_FM @ self._cosines_MC
        return cepstrum_FC if features == "mfcc" else torch.cat([mel_FM, cepstrum_FC], dim=1)

    def _normalized(self, values_FV: Any) -> Any:
        """Frames `[F, V]` of one sound without their mean, of deviation 1 if that is asked for."""
        values_FV = values_FV - values_FV.mean(dim=0)
        if self._spec.normalize == "mean":
            return values_FV
        return values_FV / values_FV.std(dim=0, correction=0).clamp_min(LEAST_DEVIATION)

    def _windows(self, values_FV: Any) -> list[Any]:
        """The frames of each window; the last is shorter if the sound ends in it."""
        spec = self._spec
        assert spec.window_seconds is not None
        per_second = spec.rate / spec.hop
        length = max(1, round(spec.window_seconds * per_second))
        hop = max(1, round((spec.hop_seconds or spec.window_seconds) * per_second))
        starts = range(0, max(1, len(values_FV) - max(0, length - hop)), hop)
        return [values_FV[start : start + length] for start in starts]

    def _row(self, values_FV: Any) -> Any:
        """Statistics `[D]` of the frames of each segment.

        A short sound's segments share frames, and none is empty.
        """
        import torch

        frames, segments = len(values_FV), self._spec.segments
        starts = [i * frames // segments for i in range(segments)]
        ends = [max(start + 1, (i + 1) * frames // segments) for i, start in enumerate(starts)]
        return torch.cat(
            [_summary(values_FV[start:end]) for start, end in zip(starts, ends, strict=True)]
        )


def _summary(values_FV: Any) -> Any:
    """The four statistics of each value over the frames, `[4 V]`."""
    import torch

    return torch.cat(
        [
            values_FV.mean(dim=0),
            values_FV.std(dim=0, correction=0),
            values_FV.amin(dim=0),
            values_FV.amax(dim=0),
        ]
    )
