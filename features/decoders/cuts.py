"""Cuts of a recording: which frames they are, and whether they lie within it."""

from __future__ import annotations

import math

from features.decoders.base import BadPayload, Limits

CUT_SLACK = 0.05
"""Seconds by which a cut may end after its recording: tables are rounded, and codecs pad."""


def refuse_unordered(*, start: float, end: float | None) -> None:
    """BadPayload if a cut begins before zero, or does not end after it has begun."""
    if not (0 <= start < math.inf and (end is None or start < end < math.inf)):
        reason = f"{_named(start, end)} is no part of a recording"
        raise BadPayload(reason, stage="decode")


def frames_of_cut(*, start: float, end: float | None, rate: int, frames: int) -> tuple[int, int]:
    """First frame of a cut, and the one after its last, in a recording of so many frames.

    BadPayload if the cut does not lie in the recording, or has no frame.
    """
    first = round(start * rate)
    last = frames if end is None else round(end * rate)
    if frames and (first >= frames or last > frames + CUT_SLACK * rate):
        reason = f"{_named(start, end)} is not within the recording, which has {frames / rate:g} s"
        raise BadPayload(reason, stage="decode")
    last = min(last, frames)
    if last <= first:
        raise BadPayload("sound of zero frames", stage="decode")
    return first, last


def refuse_large(frames: int, *, rate: int, channels: int, limits: Limits) -> None:
    """BadPayload if a sound, or the cut of one, has more frames than the limits allow."""
    if frames > limits.seconds * rate or frames * channels > limits.values:
        reason = f"sound of more than {limits.seconds:g} seconds or {limits.values:,} samples"
        raise BadPayload(reason, stage="decode")


def _named(start: float, end: float | None) -> str:
    return f"the cut from {start:g} s to {'its end' if end is None else f'{end:g} s'}"
