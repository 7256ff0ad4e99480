"""Series encoder: channels scaled by the training split → statistics, spectrum or sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders.base import Encoder, Kind, Series
from features.encoders.fitted import FittedSpec, Scale, robust_scale, scaled
from features.encoders.series_spectrum import band_powers
from features.encoders.series_summary import SUMMARY, summary
from features.fingerprint import Execution, Spec

STEPS_A_SERIES = 256
"""Steps of one series, evenly spread, of which statistics are taken; so no long one rules."""
VALUES_OF_A_FIT = 2**24
"""Values that a fit holds (128 MiB); series after that are not looked at."""
FIELDS_OF = {
    "statistics": ("quantiles",),
    "spectrum": ("bands", "edges", "window"),
    "sequence": ("max_length", "keep", "mask", "deltas"),
}
"""Fields that only one output has a use for."""
VALUES_AT_ONCE = 2**22
"""Values of a padded batch at most."""


class SeriesStatistics(Spec):
    """What is known of the training split's channels."""

    channels: tuple[Scale, ...]
    """Median and distance of the quartiles, a channel each; the channel of times is left out."""


class SeriesSpec(FittedSpec):
    """Time series of vital signs, sensors or behaviour, of any length and with gaps.

    Each channel is scaled by the median and the distance of the quartiles of the training split.
    Then follows one of three outputs:

    `statistics`: per channel the mean, standard deviation, least, greatest, first and last value,
    the slope of the line of least squares (per length of the series), the share of gaps, and the
    quantiles; at the end log(1 + steps) and log(1 + duration), in seconds or, without times, in
    steps. A channel without a value has zeros, and a share of gaps of 1.

    `spectrum`: per channel the log10 of the power in each band of frequencies, and the share of
    gaps. Even series: Welch's method (IEEE Trans. Audio Electroacoust. 15(2), 1967), gaps bridged
    by straight lines. Series with uneven times: the periodogram of Lomb (1976) and Scargle (1982),
    averaged over windows as Welch does.

    `sequence`: each step's values, gaps as 0; then 1 where a channel has a gap (with `mask`); then
    log(1 + seconds since the step before) (with `deltas`).
    """

    kind: ClassVar[Kind] = "series"

    type: Literal["series"] = "series"
    channels: Annotated[int, pydantic.Field(ge=1, le=4096)]
    """Channels of a series, its times not counted; a series with another number is bad."""
    time: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Which channel of a list or `.npy` series (or which of `columns`), counted from 0, holds the
    times of the steps, in ascending seconds. Without it the steps are even, and count as seconds.
    The times of a CSV file are found by their name, whatever stands here."""
    output: Literal["statistics", "spectrum", "sequence"] = "statistics"
    """Whether a series becomes one embedding of its statistics or of its spectrum, or stays a
    sequence of steps."""
    scaling: Literal["robust", "none"] = "robust"
    """Whether channels are scaled by the training split, or taken as they are."""
    clip: Annotated[pydantic.FiniteFloat, pydantic.Field(gt=0)] | None = 10.0
    """Where scaled values are cut off, to either side; null for nowhere."""
    quantiles: tuple[Annotated[float, pydantic.Field(ge=0, le=1)], ...] = (
        0.05,
        0.25,
        0.5,
        0.75,
        0.95,
    )
    """Quantiles of each channel (with `statistics`)."""
    bands: Annotated[int, pydantic.Field(ge=1, le=4096)] = 8
    """Bands of equal width from 0 to half a cycle a step (with `spectrum`, without `edges`); where
    times are given, a step is the median distance of two."""
    edges: tuple[Annotated[pydantic.FiniteFloat, pydantic.Field(ge=0)], ...] = ()
    """Limits of the bands instead, ascending: in Hz where times are given, otherwise in cycles a
    step (with `spectrum`)."""
    window: Annotated[int, pydantic.Field(ge=2, le=65_536)] = 256
    """Steps of a window of the spectrum: more tell near frequencies apart, and are noisier."""
    max_length: Annotated[int, pydantic.Field(ge=1)] = 1024
    """Steps of a `sequence` at most; how many were cut is counted."""
    keep: Literal["first", "last"] = "last"
    """Which steps are kept of one that is longer."""
    mask: bool = True
    """Whether a step of a `sequence` tells which of its values are gaps."""
    deltas: bool = False
    """Whether a step of a `sequence` tells how long after the one before it is."""
    statistics: SeriesStatistics | None = None
    """Statistics of the training split; found by a fit if they are not given."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 1024
    """Series that are worked on at once. It does not enter the fingerprint."""

    @pydantic.model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.time is not None and self.time > self.channels:
            raise ValueError(
                f"`time` {self.time}: with the times, a series has the channels 0 to "
                f"{self.channels}"
            )
        if self.edges and (
            len(self.edges) < 2 or any(a >= b for a, b in zip(self.edges, self.edges[1:]))
        ):
            raise ValueError(f"`edges` are two frequencies or more, ascending: {list(self.edges)}")
        if self.statistics is None:
            return self
        if self.scaling == "none":
            raise ValueError("`statistics` are for scaling, and `scaling` is none")
        if len(self.statistics.channels) != self.channels:
            raise ValueError(
                f"`statistics` has {len(self.statistics.channels)} channels, and `channels` is "
                f"{self.channels}"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that can change a result: those of another output cannot."""
        idle = {
            name for output, names in FIELDS_OF.items() if output != self.output for name in names
        }
        if self.scaling == "none":
            idle.add("clip")
        return {name: value for name, value in super().identity().items() if name not in idle}

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        match self.output:
            case "statistics":
                return self.channels * (len(SUMMARY) + len(self.quantiles)) + 2
            case "spectrum":
                bands = len(self.edges) - 1 if self.edges else self.bands
                return self.channels * (bands + 1)
            case "sequence":
                return self.channels * (2 if self.mask else 1) + self.deltas

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    @property
    def needs_fit(self) -> bool:
        return self.scaling != "none" and self.statistics is None

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise ValueError if several columns are not as many as there are channels."""
        wanted = self.channels + (self.time is not None)
        if len(columns) > 1 and len(columns) != wanted:
            times = ", and one of times" if self.time is not None else ""
            raise ValueError(
                f"`columns` names {len(columns)} columns, where the encoder has `channels: "
                f"{self.channels}`{times}"
            )

    def fitted(self, payloads: Iterable[Series]) -> Self:
        """The spec with the scale of each channel, by 256 steps at most of each series.

        A series that cannot be used does not count; ValueError if none can. A channel without a
        value in any of them is not scaled.
        """
        if not self.needs_fit:
            return self
        parts: list[np.ndarray] = []
        refused: list[str] = []
        held = 0
        for payload in payloads:
            try:
                values = checked(payload, spec=self).values
            except ValueError as error:
                refused.append(str(error))
                continue
            parts.append(_spread(values))
            held += parts[-1].size
            if held >= VALUES_OF_A_FIT:
                break
        if not parts:
            raise ValueError(refused[0] if refused else "there are no series to fit on")
        columns = np.concatenate(parts).T
        statistics = SeriesStatistics(channels=tuple(robust_scale(c) for c in columns))
        return type(self).model_validate({**self.model_dump(), "statistics": statistics})

    def load(self) -> Encoder:
        self.refuse_unfitted()
        return _Series(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Steps:
    """A series that is ready: scaled values `[T, C]`, NaN in gaps, and seconds `[T]` or None."""

    values: np.ndarray
    times: np.ndarray | None
    cut: bool = False
    """Whether it was longer."""


class _Series:
    def __init__(self, spec: SeriesSpec) -> None:
        self._spec = spec
        self.dim = spec.dim
        self.budget = max(1, VALUES_AT_ONCE // spec.channels)
        edges = spec.edges or tuple(np.linspace(0.0, 0.5, spec.bands + 1).tolist())
        self._edges = np.array(edges)

    def prepare(self, payload: Series) -> _Steps:
        series = checked(payload, spec=self._spec)
        values, times, cut = series.values, series.times, False
        if self._spec.sequence and len(values) > self._spec.max_length:
            cut = True
            last = self._spec.keep == "last"
            part = slice(-self._spec.max_length, None) if last else slice(self._spec.max_length)
            values, times = values[part], None if times is None else times[part]
        if self._spec.statistics is not None:
            values = scaled(values, self._spec.statistics.channels, clip=self._spec.clip)
        return _Steps(values=values, times=times, cut=cut)

    def size(self, prepared: _Steps) -> int:
        return len(prepared.values)

    def counts(self, prepared: _Steps) -> dict[str, int]:
        return {"truncated": int(prepared.cut)} if self._spec.sequence else {}

    def encode(self, batch: list[_Steps]) -> np.ndarray | list[np.ndarray]:
        match self._spec.output:
            case "statistics":
                return summary(
                    [item.values for item in batch],
                    times=[_times(item) for item in batch],
                    quantiles=self._spec.quantiles,
                )
            case "spectrum":
                return np.stack([self._spectrum(item) for item in batch])
            case "sequence":
                return [self._sequence(item) for item in batch]

    def _spectrum(self, item: _Steps) -> np.ndarray:
        powers_CN = band_powers(
            item.values,
            times=item.times,
            edges=self._edges,
            in_hertz=bool(self._spec.edges),
            window=self._spec.window,
        )
        missing_C1 = np.isnan(item.values).mean(axis=0)[:, None]
        return np.concatenate([powers_CN, missing_C1], axis=1).ravel().astype(np.float32)

    def _sequence(self, item: _Steps) -> np.ndarray:
        gaps_TC = np.isnan(item.values)
        parts = [np.where(gaps_TC, 0.0, item.values)]
        if self._spec.mask:
            parts.append(gaps_TC)
        if self._spec.deltas:
            times = _times(item)
            parts.append(np.log1p(np.diff(times, prepend=times[0]))[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)


def checked(payload: Series, *, spec: SeriesSpec) -> Series:
    """The series with its times apart from its channels; ValueError if it does not fit the spec."""
    values, times = payload.values, payload.times
    own_times = times is None and spec.time is not None
    wanted = spec.channels + own_times
    if values.shape[1] != wanted:
        with_times = " and one of times" if own_times else ""
        raise ValueError(
            f"a series of {values.shape[1]} channels, where `channels` is {spec.channels}"
            f"{with_times}"
        )
    if not len(values):
        raise ValueError("series without a step")
    if times is None and spec.time is not None:
        times = values[:, spec.time]
        values = np.delete(values, spec.time, axis=1)
        refuse_disorder(times)
        if np.isnan(values).all():
            raise ValueError("series without a value: all steps are gaps")
    return Series(values=values, times=times)


def refuse_disorder(times: np.ndarray) -> None:
    """Raise ValueError if times `[T]` are missing, infinite or go back."""
    unknown = np.flatnonzero(~np.isfinite(times))
    if len(unknown):
        raise ValueError(f"step {unknown[0]} (counted from 0) has no time")
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        raise ValueError(f"the times go back at step {back[0] + 1} (counted from 0)")


def _spread(values: np.ndarray) -> np.ndarray:
    """`STEPS_A_SERIES` steps of a series at most, at even distances."""
    if len(values) <= STEPS_A_SERIES:
        return values
    return values[np.arange(STEPS_A_SERIES) * len(values) // STEPS_A_SERIES]


def _times(item: _Steps) -> np.ndarray:
    """Seconds `[T]` since the first step; a step is a second where there are no times."""
    if item.times is None:
        return np.arange(len(item.values), dtype=np.float64)
    return item.times - item.times[0]
