"""Sounds: the bytes of a file → float32 samples at the file's own rate.

libsndfile reads WAV, FLAC, OGG, MP3 and their like. What it does not know (M4A, AAC, the sound
track of a video) is read by PyAV, if that is installed.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np

from features.decoders import sound_track
from features.decoders.base import BadPayload, Limits, short
from features.decoders.cuts import frames_of_cut, refuse_large, refuse_unordered
from features.encoders.base import Sound, import_extra

BLOCK_FRAMES = 2**16
"""Frames that are decoded at once where a cut's beginning cannot be sought."""
_SIZES_IN_LOG = re.compile(
    r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
_WHOLLY_KNOWN = (b"fLaC", b"caff", b"FORM")
"""How files begin that libsndfile refuses only if they are damaged."""
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
"""Largest page of an Ogg file (RFC 3533)."""


def decode(
    payload: bytes | BinaryIO, *, limits: Limits, start: float = 0.0, end: float | None = None
) -> Sound:
    """The file of a sound or video → `Sound`, from second `start` to `end`.

    The samples are those from `round(start * rate)` up to `round(end * rate)` of the whole. Only
    the part of the file around them is decoded, unless the format has no index (MP3, AAC without
    a container): then all up to `end` is. `payload` may be a file open for reading, so that a
    long one need not be held. BadPayload if the sound cannot be decoded whole, or if the cut is
    empty or not within it.
    """
    refuse_unordered(start=start, end=end)
    soundfile = import_extra("soundfile", extra="audio")
    file: BinaryIO = io.BytesIO(payload) if isinstance(payload, bytes) else payload
    facts = _Facts.of(file)
    try:
        opened = soundfile.SoundFile(file)
    except soundfile.SoundFileError as error:
        reason = f"not a sound of a known format, or damaged: {short(error)}"
        if facts.head.startswith(_WHOLLY_KNOWN) or facts.truncated:
            raise BadPayload(reason, stage="decode") from error
        return sound_track.decode(file, limits=limits, start=start, end=end, refusal=reason)
    with opened:
        guessed = opened.format == "MP3" and not facts.states_length
        if not (guessed and sound_track.is_installed()):
            try:
                samples = _read(opened, facts=facts, limits=limits, start=start, end=end)
            except soundfile.SoundFileError as error:
                raise BadPayload(f"damaged sound: {short(error)}", stage="decode") from error
            if not np.isfinite(samples).all():
                raise BadPayload("sound with samples that are not finite", stage="decode")
            return Sound(samples=np.ascontiguousarray(samples), rate=opened.samplerate)
    return sound_track.decode(file, limits=limits, start=start, end=end, refusal="damaged MP3")


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the first and last bytes of a file say, and libsndfile does not tell."""

    head: bytes
    states_length: bool
    """Whether an MP3 says how long it is. Without a Xing or Info tag, its length is a guess."""
    truncated: bool
    """Whether the file is Ogg whose last page is not whole, or AVI that says it is longer."""

    @classmethod
    def of(cls, file: BinaryIO) -> Self:
        head = file.read(8192)
        size = file.seek(0, os.SEEK_END)
        truncated = False
        if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
            truncated = int.from_bytes(head[4:8], "little") + 8 > size
        elif head.startswith(b"OggS"):
            file.seek(max(0, size - 2 * _OGG_PAGE_BYTES))
            truncated = _is_truncated_ogg(file.read())
        file.seek(0)
        return cls(
            head=head,
            states_length=b"Xing" in head or b"Info" in head,
            truncated=truncated,
        )


def _is_truncated_ogg(tail: bytes) -> bool:
    """Whether the last page in the last bytes of an Ogg file is cut short."""
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return True
    header = tail[page : page + 27 + 255]
    if len(header) < 27 or len(header) < 27 + header[26]:
        return True
    lengths = header[27 : 27 + header[26]]
    return page + 27 + len(lengths) + sum(lengths) > len(tail)


def _read(
    opened: Any, *, facts: _Facts, limits: Limits, start: float, end: float | None
) -> np.ndarray:
    """float32 `[channels, T]` of a file that libsndfile has opened."""
    rate, frames, channels = opened.samplerate, opened.frames, opened.channels
    whole = start == 0 and end is None
    if whole:  # before anything else: the length of a damaged file can be anything
        refuse_large(frames, rate=rate, channels=channels, limits=limits)
    _refuse_truncated(opened.extra_info)
    if facts.truncated:
        raise BadPayload("truncated sound: its last page is not whole", stage="decode")
    first, last = frames_of_cut(start=start, end=end, rate=rate, frames=frames)
    refuse_large(last - first, rate=rate, channels=channels, limits=limits)
    if opened.subtype.startswith("MPEG"):
        # Of varying bit rate, it can only be sought in by guess; and soundfile seeks on each read.
        opened.seekable = lambda: False
    if opened.seekable():
        opened.seek(first)
    else:  # as GSM and G.721 are
        for position in range(0, first, BLOCK_FRAMES):
            opened.read(min(BLOCK_FRAMES, first - position), dtype="float32")
    samples = opened.read(last - first, dtype="float32", always_2d=True)
    due = last
    if opened.format == "MP3":
        # The last two frames of 1152 samples may be delay of the codec.
        due = min(last, frames - 2 * 1152) if facts.states_length else first
    if first + len(samples) < due:
        reason = f"truncated sound: {first + len(samples)} of {frames} frames are there"
        raise BadPayload(reason, stage="decode")
    if not len(samples):
        raise BadPayload("sound of zero frames", stage="decode")
    return np.asarray(samples.T)


def _refuse_truncated(log: str) -> None:
    """Raise BadPayload if a WAV, AIFF, AU or CAF file ends before its samples do.

    libsndfile reads what there is and tells it only in its log. Programs that stream write a
    size near 2**32, which promises nothing.
    """
    for stated, there in _SIZES_IN_LOG.findall(log):
        if int(there) < int(stated) < 2**32 - 2**16:
            reason = f"truncated sound: {there} of {stated} bytes are there"
            raise BadPayload(reason, stage="decode")
