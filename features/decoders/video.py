"""Videos: the bytes of a file → `Video`, whose frames are decoded lazily, by PyAV (FFmpeg)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from features.decoders import audio
from features.decoders.base import BadPayload, Limits, short
from features.decoders.cuts import CUT_SLACK, refuse_unordered
from features.decoders.frames import Damage, Misled, Walk, Way, ticks_a_frame
from features.decoders.pixels import Painter
from features.decoders.wholeness import missing
from features.encoders.base import Sound, Video, import_extra

FORMATS = (
    "apng,asf,av1,avi,dv,flv,gif,gxf,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,swf,vc1,vvc,webm,wtv,yuv4mpegpipe"
)
"""Containers that may be opened: none that refers to other files or addresses, as playlists do,
and no single images."""
INDEXED = frozenset({"matroska", "mov"})
"""Containers that state how long their tracks are; others are read through once to know it."""
WITHOUT_KEYS = frozenset({"apng"})
"""Codecs whose frames all call themselves key frames, and build on others nevertheless."""
EPSILON = Fraction(2, 1_000_000)
"""Seconds by which a time may miss a frame's time stamp and still mean it: containers round their
beginning to microseconds, and floats round what is asked for."""
SHORTFALL_SECONDS = 1.0
"""By how much the frames may end before the container says."""


def decode(
    payload: bytes, *, limits: Limits, start: float = 0.0, end: float | None = None
) -> Video:
    """The file of a video → `Video`, from second `start` to `end`; no frame is decoded yet.

    Second 0 is where the file begins: its sound or its pictures, whichever is first. So cuts of
    the sound and of the pictures of one file belong together. BadPayload if there is no video in
    it, if the file is not whole, if its frames or the cut are beyond the limits, or if the cut
    is not within it. What is damaged inside is found when a frame there is asked for.
    """
    refuse_unordered(start=start, end=end)
    if reason := missing(payload):
        raise BadPayload(f"truncated video: {reason}", stage="decode")
    with _opened(payload, limits=limits) as (container, stream):
        _refuse_large_frames(stream, limits=limits)
        track = _track(container, stream)
        shape = (stream.codec_context.height, stream.codec_context.width)
    length = float(track.length)
    whole = max(length, track.file_length)
    if start >= length > 0 or (end is not None and end > whole + CUT_SLACK):
        reason = f"{_cut(start, end)} is not within the video, which has {length:g} s"
        raise BadPayload(reason, stage="decode")
    seconds = max(0.0, min(length, math.inf if end is None else end) - start)
    if seconds > limits.seconds:
        reason = (
            f"video of more than {limits.seconds:g} seconds; cut it by columns of `start` and "
            "`end`, or raise the limit `seconds`"
        )
        raise BadPayload(reason, stage="decode")
    return _Film(
        payload=payload,
        limits=limits,
        start=start,
        end=end,
        seconds=seconds,
        track=track,
        shape=shape,
    )


@dataclass(frozen=True, kw_only=True)
class _Track:
    """What a container says of its pictures."""

    origin: Fraction
    """Time stamp of second 0, in seconds."""
    length: Fraction
    """Seconds from second 0 until the last frame is no longer shown."""
    file_length: float
    """Seconds from second 0 until everything in the file ends."""
    ways: tuple[Way, ...]
    """How to come to a frame, the cheapest way first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Film(Video):
    """A file in memory, which is opened anew for each request: so threads share nothing."""

    payload: bytes
    limits: Limits
    start: float
    end: float | None
    seconds: float
    track: _Track
    shape: tuple[int, int]
    """Height and width, as they are coded."""

    def each_at(
        self, times: Sequence[float] | np.ndarray, *, size: tuple[int, int] | None = None
    ) -> Iterator[np.ndarray]:
        times = np.asarray(times, dtype=np.float64)
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError("`times` must be finite and ascend")
        if size is not None and min(size) < 1:
            raise ValueError(f"`size` is {size}; height and width must be at least 1")
        return self._each_at(times.tolist(), size=size)

    def frames_at(
        self, times: Sequence[float] | np.ndarray, *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        height, width = size or self.shape
        if len(times) * height * width * 3 > self.limits.values:
            reason = (
                f"{len(times):,} frames of {width} x {height} pixels are more than the limit of "
                f"{self.limits.values:,} values; take fewer, or smaller ones"
            )
            raise BadPayload(reason, stage="decode")
        return super().frames_at(times, size=size)

    def sound(self) -> Sound:
        return audio.decode(self.payload, limits=self.limits, start=self.start, end=self.end)

    def _each_at(
        self, times: Sequence[float], *, size: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        """Frames by the cheapest way; if that misleads, the rest by the next one."""
        done = 0
        for way in self.track.ways:
            try:
                for pixels in self._by(way, times[done:], size=size):
                    yield pixels
                    done += 1
                return
            except (Misled, Damage) as error:
                # Counting helps against time stamps that go backwards, and nothing else.
                if way == "count" or (way == "all" and isinstance(error, Damage)):
                    raise BadPayload(f"damaged video: {error}", stage="decode") from error

    def _by(
        self, way: Way, times: Sequence[float], *, size: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        painter = Painter()
        shape: tuple[int, int] | None = size
        with _opened(self.payload, limits=self.limits) as (container, stream):
            begin = Fraction(0) if way == "count" else self.track.origin
            ticks = [
                math.floor(
                    (begin + Fraction(self.start) + Fraction(time) + EPSILON) / stream.time_base
                )
                for time in times
            ]
            if way == "seek":
                _load_index(container, stream, last=ticks[-1])
            walk = Walk(container, stream, way=way, limits=self.limits)
            for tick in ticks:
                pixels = painter.paint(walk.frame_at(tick), size=shape)
                shape = shape or (pixels.shape[0], pixels.shape[1])
                yield pixels


@contextmanager
def _opened(payload: bytes, *, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """The container and its best video stream, decoding in this thread alone."""
    av = import_extra("av", extra="video")
    most = {"max_pixels": str(limits.pixels), "threads": "1"}
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", **most}
    try:
        container = av.open(io.BytesIO(payload), options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        reason = f"not a video of a known format, or damaged: {short(error)}"
        raise BadPayload(reason, stage="decode") from error
    with container:
        still = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & still]
        if not streams:
            raise BadPayload("there is no video in the file", stage="decode")
        best = container.streams.best("video")
        stream = next(
            (s for s in streams if best is not None and s.index == best.index), streams[0]
        )
        if stream.codec_context is None:
            raise BadPayload("there is no decoder for the video in the file", stage="decode")
        stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        stream.codec_context.thread_count = 1
        yield container, stream


def _refuse_large_frames(stream: Any, *, limits: Limits) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > limits.pixels:
        reason = f"video with frames of more than {limits.pixels:,} pixels"
        raise BadPayload(reason, stage="decode")
    if width < 1 or height < 1:
        raise BadPayload("damaged video: its frames have no size", stage="decode")


def _track(container: Any, stream: Any) -> _Track:
    """Reads the first packet, or all where the container does not say how long it is."""
    names = container.format.name.split(",")
    base, period = stream.time_base, ticks_a_frame(stream)
    origin = Fraction(container.start_time or 0, 1_000_000)
    stated = (container.duration or 0) / 1e6
    length = _stated_length(container, stream, origin=origin)
    count, last, counted = 0, None, False
    try:
        for packet in container.demux(stream):
            if packet.size == 0 and packet.pts is None:
                continue
            if count == 0:
                # An AVI knows no order of showing other than that of its packets.
                mixed = "avi" in names and stream.codec_context.has_b_frames
                counted = packet.pts is None or bool(mixed)
            count += 1
            if length is not None and not counted:
                break
            if packet.pts is not None:
                last = max(last or 0, packet.pts + (packet.duration or period))
    except import_extra("av", extra="video").FFmpegError as error:
        raise BadPayload(f"damaged video: {short(error)}", stage="decode") from error
    if not count:
        raise BadPayload("video without frames", stage="decode")
    if counted:
        length = count * period * base
    elif length is None:
        assert last is not None, "frames that are not counted have time stamps"
        length = last * base - origin
        if stated - float(origin) > float(length) / 0.9 + SHORTFALL_SECONDS:
            reason = f"truncated video: {float(length):.1f} of {stated:.1f} seconds are there"
            raise BadPayload(reason, stage="decode")
    ways: tuple[Way, ...] = ("seek", "skip", "all", "count")
    if counted:
        ways = ("count",)
    elif stream.codec_context.name in WITHOUT_KEYS:
        ways = ("all", "count")
    return _Track(origin=origin, length=length, file_length=stated, ways=ways)


def _stated_length(container: Any, stream: Any, *, origin: Fraction) -> Fraction | None:
    """When the track ends, counted from second 0, as a container says that is to be trusted."""
    names = container.format.name.split(",")
    if INDEXED.isdisjoint(names):
        return None
    if stream.duration:
        begin = stream.start_time or 0
        return Fraction((begin + stream.duration) * stream.time_base - origin)
    tag = stream.metadata.get("DURATION", "").split(":")
    if len(tag) == 3:
        try:
            hours, minutes, seconds = (Fraction(part.strip("\0")) for part in tag)
        except ValueError:
            return None
        return hours * 3600 + minutes * 60 + seconds - origin
    return Fraction(container.duration, 1_000_000) if container.duration else None


def _load_index(container: Any, stream: Any, *, last: int) -> None:
    """Have a Matroska file's index read, which FFmpeg does at the first jump."""
    far = (last - (stream.start_time or 0)) * stream.time_base > 10
    if far and "matroska" in container.format.name.split(","):
        container.seek(last, stream=stream)
        container.seek(stream.start_time or 0, stream=stream)


def _cut(start: float, end: float | None) -> str:
    return f"the cut from {start:g} s to {'its end' if end is None else f'{end:g} s'}"
