"""Sounds: the bytes of a file → float32 samples at the file's own rate, by libsndfile."""

from __future__ import annotations

import io
import re

import numpy as np

from features.decoders.base import BadPayload, Limits, short
from features.encoders.base import Sound, import_extra

_SIZES_IN_LOG = re.compile(
    r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)


def decode(
    payload: bytes, *, limits: Limits, start: float = 0.0, end: float | None = None
) -> Sound:
    """The file of a sound → `Sound`; BadPayload if it cannot be decoded whole."""
    soundfile = import_extra("soundfile", extra="audio")
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            if frames > limits.seconds * rate or frames * channels > limits.values:
                reason = (
                    f"sound of more than {limits.seconds:g} seconds or {limits.values:,} samples"
                )
                raise BadPayload(reason, stage="decode")
            _refuse_truncated(file.extra_info)
            samples = file.read(dtype="float32", always_2d=True)
            slack = _slack(payload) if file.format == "MP3" else 0
    except soundfile.SoundFileError as error:
        reason = f"not a sound of a known format, or damaged: {short(error)}"
        raise BadPayload(reason, stage="decode") from error
    if slack is not None and len(samples) < frames - slack:
        reason = f"truncated sound: {len(samples)} of {frames} frames are there"
        raise BadPayload(reason, stage="decode")
    if not len(samples):
        raise BadPayload("sound of zero frames", stage="decode")
    if not np.isfinite(samples).all():
        raise BadPayload("sound with samples that are not finite", stage="decode")
    return Sound(samples=np.ascontiguousarray(samples.T), rate=rate)


def _refuse_truncated(log: str) -> None:
    """Raise BadPayload if a WAV, AIFF, AU or CAF file ends before its samples do.

    libsndfile reads what there is and tells it only in its log. Programs that stream write a
    size near 2**32, which promises nothing.
    """
    for stated, there in _SIZES_IN_LOG.findall(log):
        if int(there) < int(stated) < 2**32 - 2**16:
            reason = f"truncated sound: {there} of {stated} bytes are there"
            raise BadPayload(reason, stage="decode")


def _slack(payload: bytes) -> int | None:
    """By how many frames an MP3 may be shorter than it says; None if it says nothing.

    Its length is a guess unless the first frame holds a Xing or Info tag; even then, the last
    two frames of 1152 samples may be delay of the codec.
    """
    start = payload[:8192]
    return 2 * 1152 if b"Xing" in start or b"Info" in start else None
