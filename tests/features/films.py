"""Films whose every frame tells its number, made in memory for the tests of videos."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
BLOCK = 8


def picture(number: int, *, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 `[H, W, 3]`: the number in 8 blocks, black or white, at the top; a texture below."""
    grey = np.random.default_rng(number).integers(60, 200, (height, width, 1), dtype=np.uint8)
    # Grey, with a tint, since codecs keep colours less sharp.
    pixels = grey.repeat(4, axis=0).repeat(4, axis=1)[:height, :width] + np.array(
        [40, 0, 20], dtype=np.uint8
    )
    for bit in range(8):
        left = bit * width // 8
        pixels[: 2 * BLOCK, left : left + width // 8] = 255 if number >> bit & 1 else 0
    return pixels


def number_of(frame: np.ndarray) -> int:
    """The number that a frame tells."""
    number, width = 0, frame.shape[1]
    for bit in range(8):
        left = bit * width // 8
        block = frame[4 : 2 * BLOCK - 4, left + 2 : left + width // 8 - 2].mean()
        assert block < 80 or block > 175, f"block {bit} is neither black nor white: {block}"
        number |= int(block > 175) << bit
    return number


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def film(
    count: int = 50,
    *,
    codec: str = "libx264",
    format: str = "mp4",
    rate: int = 10,
    pixels: str = "yuv420p",
    group: int = 10,
    stamps: Sequence[int] | None = None,
    base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: bool = False,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pictures: Sequence[np.ndarray] | None = None,
) -> bytes:
    """A file with `count` numbered frames, a key frame every `group`.

    `stamps` are the frames' times in units of `base`; else they come `rate` a second. The sound,
    if there is any, is a tone of `100 (1 + s)` Hz in second `s`, as long as the frames.
    """
    handle, path = tempfile.mkstemp()
    os.close(handle)
    height, width = size
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    try:
        with av.open(path, "w", format=format, options=container or {}) as out:
            stream: Any = out.add_stream(codec, rate=rate, options=quiet | (options or {}))
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.gop_size = group
            if codec != "libsvtav1":
                stream.codec_context.bit_rate = 4_000_000
            if base is not None:
                stream.codec_context.time_base = base
            voice: Any = out.add_stream("aac", rate=8000, layout="mono") if sound else None
            for i in range(count):
                array = pictures[i] if pictures else picture(i % 256, height=height, width=width)
                frame = av.VideoFrame.from_ndarray(
                    array, format="rgba" if array.shape[2] == 4 else "rgb24"
                )
                frame = frame.reformat(format=pixels)
                frame.pts = stamps[i] if stamps is not None else i
                frame.time_base = base if base is not None else Fraction(1, rate)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            if voice is not None:
                out.mux(_tone(voice, seconds=count / rate))
        with open(path, "rb") as file:
            return file.read()
    finally:
        os.remove(path)
        # SVT-AV1 gives its caller real-time priority, and no other process its processor from then.
        if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _tone(voice: Any, *, seconds: float) -> list[Any]:
    time = np.arange(round(seconds * 8000)) / 8000
    samples = (0.5 * np.sin(2 * np.pi * 100 * (1 + np.floor(time)) * time)).astype(np.float32)
    packets = []
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(
            samples[None, start : start + 1024], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        packets += voice.encode(frame)
    return packets + voice.encode(None)


MATRICES = {
    "0": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored, 90": (0, 1, 1, 0),
}
"""a, b, c, d of the display matrix, by how the picture is turned clockwise to be shown."""


def turned(mp4: bytes, how: str) -> bytes:
    """The same film with another display matrix in its track header."""
    a, b, c, d = (value << 16 for value in MATRICES[how])
    at = mp4.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return mp4[:at] + matrix + mp4[at + 36 :]
