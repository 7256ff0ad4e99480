"""The walk through a video's packets to the frames at some times, decoding as few as it can.

Between two key frames, each picture builds on others; before the key frame that leads to the
wanted picture, nothing has to be decoded, and nor have pictures on the way that no other builds
on. Packets are read ahead until that key frame is certain, and what lies before it is dropped;
where the container has an index, it is not read at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from features.decoders.base import BadPayload, Limits, short
from features.encoders.base import import_extra

Way = Literal["seek", "skip", "all", "count"]
"""How to come to a frame: by the index, by dropping what is not needed, by decoding all from the
first frame on, or so and by counting frames, since their time stamps are missing or wrong."""

SEEK_SECONDS = 2.0
"""How far away a key frame must be for a jump to be cheaper than reading up to it."""

LEAPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
"""Decoders that can leave out, frame by frame, what no other frame builds on."""


class Misled(Exception):
    """The key frames or time stamps are not what they said; another way may lead there."""


class Damage(Exception):
    """The frames on this way cannot be decoded whole; what cannot is the message."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A decoded frame, and since when it is shown, in ticks of its stream's time base."""

    since: int
    frame: Any


class Walk:
    """A way through an open container; it goes forwards only."""

    def __init__(self, container: Any, stream: Any, *, way: Way, limits: Limits) -> None:
        self._errors: Any = import_extra("av", extra="video").FFmpegError
        self._container, self._stream, self._codec = container, stream, stream.codec_context
        self._way, self._limits = way, limits
        self._packets: Iterator[Any] = container.demux(stream)
        self._period = ticks_a_frame(stream)
        self._read_to: int | None = None
        """Up to where packets have been read, in ticks."""
        self._waiting: deque[Any] = deque()
        self._decoded: deque[Shown] = deque()
        self._shown: Shown | None = None
        self._last: int | None = None
        """Time stamp of the frame that was decoded last."""
        self._begun_at: int | None = None
        """Time stamp of the key frame at which the decoder has begun; None for the first packet."""
        self._target: int | None = None
        """Time stamp of the frame that is wanted, if it is among the packets read ahead."""
        self._drained = False
        self._pixels = 0

    def frame_at(self, tick: int) -> Any:
        """The last frame that is shown since `tick` or earlier, or else the first frame.

        Raises Misled or Damage if this way does not lead to it, and BadPayload if it is beyond
        the limits, or not there.
        """
        try:
            return self._frame_at(tick)
        except self._errors as error:
            raise Damage(short(error)) from error

    def _frame_at(self, tick: int) -> Any:
        if self._way == "seek":
            self._jump(tick)
        if self._way in ("seek", "skip"):
            self._read_ahead(tick)
        while True:
            while self._decoded and self._decoded[0].since <= tick:
                self._shown = self._decoded.popleft()
            if self._decoded or self._drained:
                break
            self._decode_next()
        if self._shown is None and self._decoded and self._begun_at is None:
            return self._decoded[0].frame
        if self._shown is None:
            raise Misled("no frame was decoded where one must be")
        if self._target is not None and self._shown.since < self._target:
            raise Misled("the frame that is due was not decoded")
        if not self._decoded:
            self._refuse_early_end()
        return self._shown.frame

    def _jump(self, tick: int) -> None:
        """Go to the last key frame before `tick` that the index knows, if it is far ahead."""
        index, place = self._stream.index_entries, tick
        least = round(SEEK_SECONDS / self._stream.time_base) + (self._read_to or 0)
        moved = False
        while True:
            found = index.search_timestamp(place) if len(index) else -1
            stamp = index[found].timestamp if found >= 0 else None
            if not moved and (stamp is None or stamp < least):
                return
            if stamp is None:
                raise Misled("the index does not lead to the frame")
            self._container.seek(stamp, stream=self._stream)
            moved = True
            self._packets = self._container.demux(self._stream)
            self._begin_at(None)
            first = next(self._packets, None)
            if first is None:
                raise Misled("the index leads to the end")
            # An index may hold decoding times, which are earlier than those of showing.
            if first.is_keyframe and first.pts is not None and first.pts <= tick:
                self._begin_at(first)
                return
            place = stamp - 1

    def _read_ahead(self, tick: int) -> None:
        """Read until no packet before `tick` can come any more; drop what no frame needs."""
        while self._read_to is None or self._read_to <= tick:
            packet = next(self._packets, None)
            if packet is None:
                break
            leads_there = packet.is_keyframe and packet.pts is not None and packet.pts <= tick
            if leads_there and self._read_to is not None:
                self._begin_at(packet)
            else:
                self._waiting.append(packet)
                self._note(packet)
        stamps = (packet.pts for packet in self._waiting if packet.pts is not None)
        self._target = max((stamp for stamp in stamps if stamp <= tick), default=None)

    def _note(self, packet: Any) -> None:
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is not None and (packet.dts is not None or packet.is_keyframe):
            self._read_to = max(stamp, self._read_to if self._read_to is not None else stamp)

    def _begin_at(self, packet: Any | None) -> None:
        """Forget what was read and decoded; `packet` is the key frame where decoding begins."""
        self._waiting.clear()
        self._decoded.clear()
        self._shown = self._last = None
        self._drained = False
        self._codec.flush_buffers()
        if packet is not None:
            self._begun_at = packet.pts
            self._waiting.append(packet)
            self._note(packet)

    def _decode_next(self) -> None:
        """Give the decoder one more packet."""
        packet = self._waiting.popleft() if self._waiting else next(self._packets, None)
        if packet is None:
            self._drained = True
            return
        self._note(packet)
        if self._codec.name in LEAPING:
            target = self._target if packet.pts is not None else None
            on_the_way = target is not None and packet.pts < target
            self._codec.skip_frame = "NONREF" if on_the_way else "DEFAULT"
        try:
            frames = self._codec.decode(packet)
        except EOFError:  # the decoder has been drained
            frames = []
        except self._errors:
            if self._last is None and self._way in ("all", "count"):
                return  # a recording may begin amid pictures that build on earlier ones
            raise
        if packet.size == 0 and packet.pts is None:
            self._drained = True
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Any) -> None:
        self._pixels += frame.width * frame.height
        if frame.width * frame.height > self._limits.pixels:
            reason = f"video with frames of more than {self._limits.pixels:,} pixels"
            raise BadPayload(reason, stage="decode")
        if self._pixels > self._limits.decoded_pixels:
            reason = (
                f"more than {self._limits.decoded_pixels:,} pixels (`decoded_pixels`) lie on the "
                "way to its frames: it is large, and has few key frames"
            )
            raise BadPayload(reason, stage="decode")
        since = frame.pts
        if self._way == "count" or since is None:
            since = 0 if self._last is None else self._last + self._period
        if self._begun_at is not None and since < self._begun_at:
            return  # builds on what lies before the key frame
        if self._begun_at is not None and self._last is None and not frame.key_frame:
            raise Misled("a key frame is none")
        if frame.is_corrupt:
            raise Damage("a frame is not whole")
        if self._last is not None and since <= self._last:
            raise Misled("time stamps go backwards")
        self._last = since
        self._decoded.append(Shown(since=since, frame=frame))

    def _refuse_early_end(self) -> None:
        """BadPayload if the index knows key frames after the last frame that could be read."""
        index = self._stream.index_entries
        if self._way == "count" or not len(index) or self._last is None:
            return
        found = index.search_timestamp(2**62)
        if found >= 0 and index[found].timestamp > self._last:
            there = float((self._last - index[0].timestamp) * self._stream.time_base)
            reason = f"damaged video: no frame can be read after second {there:.1f}"
            raise BadPayload(reason, stage="decode")


def ticks_a_frame(stream: Any) -> int:
    """How long a frame is shown that does not say so itself, by the stream's rate."""
    rate = stream.guessed_rate or stream.average_rate or Fraction(25)
    return max(1, round(1 / (rate * stream.time_base)))
