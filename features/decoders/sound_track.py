"""Sounds that libsndfile does not know, and the sound tracks of videos, by PyAV (FFmpeg)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from typing import Any, BinaryIO

import numpy as np

from features.decoders.base import BadPayload, Limits, short
from features.decoders.cuts import frames_of_cut, refuse_large
from features.encoders.base import Sound, import_extra

FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,mxf,"
    "ogg,tta,w64,wav,wv"
)
"""Containers that may be opened: none that refers to other files or addresses, as playlists do."""
INDEXED = frozenset({"matroska", "mov"})
"""Containers whose own time stamps can be sought; those of others are estimates."""
GAP_SECONDS = 0.1
"""From which length on a gap in the time stamps is silence, and not their rounding."""
SHORTFALL_SECONDS = 0.1
"""By how much a track may be shorter than its container says: codecs pad, and times are rounded."""
RUN_UP_SECONDS = 0.5
"""How much before a cut is decoded and thrown away: a codec builds on what came before."""
PROBED_FRAMES = 16
"""Frames whose lengths tell on which grid all frames of a track begin."""
_FULL_SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "s64": 2**63, "flt": 1, "dbl": 1}


def is_installed() -> bool:
    """Whether PyAV is there."""
    return importlib.util.find_spec("av") is not None


def decode(
    file: BinaryIO, *, limits: Limits, start: float, end: float | None, refusal: str
) -> Sound:
    """The best sound track of a file, from second `start` to `end`.

    Second 0 is where the file begins, so that cuts of a video's sound and of its pictures belong
    together; where the track begins later, or pauses, there is silence. `refusal` is the reason
    that is given if FFmpeg does not know the file either.
    """
    if not is_installed():
        hint = "for M4A, AAC and the sound of videos: pip install 'sensorium[audio]'"
        raise BadPayload(f"{refusal} ({hint})", stage="decode")
    av = import_extra("av", extra="audio")
    cut = None
    for may_seek in (True, False):
        file.seek(0)
        try:
            # No other file or address may be opened on behalf of this one.
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
            container = av.open(file, options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise BadPayload(refusal, stage="decode") from error
        try:
            with container:
                if not container.streams.audio:
                    raise BadPayload("there is no sound track in the file", stage="decode")
                stream = container.streams.best("audio") or container.streams.audio[0]
                track = _Track.of(container, stream)
                cut = track.cut(start=start, end=end, limits=limits, may_seek=may_seek)
        except (av.FFmpegError, UnicodeError) as error:
            raise BadPayload(f"damaged sound: {short(error)}", stage="decode") from error
        if cut is not None:
            break
    assert cut is not None, "without seeking, there is a cut or a reason"
    if not np.isfinite(cut).all():
        raise BadPayload("sound with samples that are not finite", stage="decode")
    return Sound(samples=cut, rate=track.rate)


@dataclass(frozen=True, kw_only=True)
class _Track:
    """A sound track of which the first frames are decoded. Indices count samples from second 0."""

    container: Any
    stream: Any
    probed: list[Any]
    frames: Iterator[Any]
    """Those after the probed ones."""
    rate: int
    channels: int
    tick: Fraction
    """Samples per unit of the time stamps."""
    lead: int
    """Index of the first sample."""
    grid: int | None
    """Frames after the first begin at multiples of this from the second; None if the time stamps
    are too coarse to tell at which."""
    stated: int | None
    """Index after the last sample, as the container says; None if it does not."""

    @classmethod
    def of(cls, container: Any, stream: Any) -> _Track:
        frames = container.decode(stream)
        probed = list(islice(frames, PROBED_FRAMES))
        if not probed:
            raise BadPayload("sound of zero frames", stage="decode")
        rate = probed[0].sample_rate
        tick = stream.time_base * rate
        begin = Fraction(container.start_time or 0, 1_000_000) * rate
        lead = round((probed[0].pts or 0) * tick - begin)
        lead = lead if lead >= GAP_SECONDS * rate else 0
        grid: int | None = math.gcd(*[frame.samples for frame in probed[1:-1]])
        if tick.numerator == 1:
            grid = 1
        elif grid is not None and grid <= 4 * tick:  # two stamps, each rounded up or down
            grid = None
        return cls(
            container=container,
            stream=stream,
            probed=probed,
            frames=frames,
            rate=rate,
            channels=probed[0].layout.nb_channels,
            tick=tick,
            lead=lead,
            grid=grid,
            stated=_stated(container, stream, rate=rate, lead=lead),
        )

    def cut(
        self, *, start: float, end: float | None, limits: Limits, may_seek: bool
    ) -> np.ndarray | None:
        """float32 `[channels, T]`; None if the sample sought was not found, and all must be read.

        BadPayload if the track ends before the cut, or before the container says.
        """
        rate, channels = self.rate, self.channels
        first = round(start * rate)
        last = None if end is None else round(end * rate)
        if last is not None and last <= first:
            raise BadPayload("sound of zero frames", stage="decode")
        if self.stated is not None:
            due = self.stated if last is None else min(last, self.stated)
            refuse_large(due - first, rate=rate, channels=channels, limits=limits)
        target = first - round(RUN_UP_SECONDS * rate)
        seeks = may_seek and self.grid and self._is_indexed and target > self.probed[-1].samples
        timed = self._sought(target) if seeks else self._timed(chain(self.probed, self.frames))
        pieces: list[tuple[int, np.ndarray]] = []
        reached = self.lead
        for index, samples in timed:
            if seeks and not pieces and index > target + rate:
                return None
            reached = index + samples.shape[1]
            if reached > first:
                pieces.append((index, samples))
                refuse_large(
                    min(reached, last or reached) - first,
                    rate=rate,
                    channels=channels,
                    limits=limits,
                )
            if last is not None and reached >= last:
                break
        if seeks and not pieces:
            return None
        if last is None or reached < last:
            reached = self._refuse_truncated(reached)
            first, last = frames_of_cut(start=start, end=end, rate=rate, frames=reached)
        found = np.zeros((channels, last - first), dtype=np.float32)
        for index, samples in pieces:
            begin = max(index, first)
            piece = samples[:, begin - index : last - index]
            found[:, begin - first : begin - first + piece.shape[1]] = piece
        return found

    @property
    def _is_indexed(self) -> bool:
        return not INDEXED.isdisjoint(self.container.format.name.split(","))

    def _refuse_truncated(self, reached: int) -> int:
        """How many samples the whole track has, without what a codec pads at its end."""
        if self.stated is None:
            return reached
        if reached < self.stated - SHORTFALL_SECONDS * self.rate:
            reason = (
                f"truncated sound: {reached / self.rate:.1f} of {self.stated / self.rate:.1f} "
                "seconds are there"
            )
            raise BadPayload(reason, stage="decode")
        exact = self.stream.duration is not None and self.tick.numerator == 1
        return min(reached, self.stated) if exact else reached

    def _sought(self, target: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames from one before `target` on."""
        ticks = math.floor((target - self._second) / self.tick) + (self.probed[1].pts or 0)
        self.container.seek(ticks, stream=self.stream)
        return self._timed(self.container.decode(self.stream), sought=True)

    @property
    def _second(self) -> int:
        """Index at which the second frame begins."""
        return self.lead + int(self.probed[0].samples)

    def _index(self, pts: int) -> int:
        """The sample at which the frame with a time stamp begins."""
        after = (pts - self.probed[1].pts) * self.tick if len(self.probed) > 1 else Fraction(0)
        grid = self.grid or 1
        return self._second + grid * round(after / grid)

    def _timed(
        self, frames: Iterable[Any], *, sought: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Index and samples `[channels, T]` of each frame, one after the other but for gaps."""
        gap = max(GAP_SECONDS * self.rate, float(4 * self.tick))
        expected = None if sought else self.lead
        for frame in frames:
            if frame.sample_rate != self.rate or frame.layout.nb_channels != self.channels:
                raise BadPayload("its rate or channels change in the middle", stage="decode")
            by_stamp = None if frame.pts is None else self._index(frame.pts)
            if expected is None:
                if by_stamp is None:
                    continue
                expected = by_stamp
            elif by_stamp is not None and by_stamp - expected >= gap:
                expected = by_stamp
            yield expected, _samples(frame, self.channels)
            expected += frame.samples


def _samples(frame: Any, channels: int) -> np.ndarray:
    """float32 `[channels, T]` of a decoded frame, full scale -1..1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    name = frame.format.name.removesuffix("p")
    values = values.astype(np.float32) if name != "s32" else values.astype(np.float64)
    if name == "u8":
        values = values - 128
    found: np.ndarray = (values / _FULL_SCALE[name]).astype(np.float32)
    return found


def _stated(container: Any, stream: Any, *, rate: int, lead: int) -> int | None:
    """Index after a track's last sample, if it is in a container that says so."""
    names = container.format.name.split(",")
    if "mov" in names and stream.duration:
        return lead + round(stream.duration * stream.time_base * rate)
    if "matroska" in names:
        tag = stream.metadata.get("DURATION", "").split(":")
        if len(tag) == 3:
            try:
                hours, minutes, seconds = (Fraction(part) for part in tag)
            except ValueError:
                return None
            return round((hours * 3600 + minutes * 60 + seconds) * rate)
        if container.duration and not container.streams.video:
            return round(Fraction(container.duration, 1_000_000) * rate)
    return None
