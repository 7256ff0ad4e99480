"""Payloads of every kind, made in memory: common ones, and odd ones that real tables hold too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.base import EncoderSpec, Series, Sound, Video

COUNT = 6
"""Common payloads of a kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip(Video):
    """A video whose frames are in memory."""

    frames: np.ndarray
    """uint8 `[T, H, W, 3]`, shown for equal times."""
    seconds: float

    def each_at(
        self, times: Sequence[float] | np.ndarray, *, size: tuple[int, int] | None = None
    ) -> Iterator[np.ndarray]:
        height, width = size or self.frames.shape[1:3]
        rows = np.arange(height) * self.frames.shape[1] // height
        columns = np.arange(width) * self.frames.shape[2] // width
        for time in times:
            place = int(np.clip(time * len(self.frames) / self.seconds, 0, len(self.frames) - 1))
            yield self.frames[place][rows][:, columns]

    def sound(self) -> Sound:
        return _tone(seconds=self.seconds, channels=1, rate=16_000)


def common_payloads(spec: EncoderSpec) -> list[Any]:
    """Payloads of the spec's kind, decoded, of different content and length.

    What a spec says of its input by the names of the built-in encoders is kept: `dim` of a
    vector, `channels` of a series, the columns `numeric` and `categorical` of a record.
    """
    random = np.random.default_rng(0)
    match spec.kind:
        case "text":
            words = ["ein", "small", "text", "数字", "سبعة", "two words", "🙂", "0x7f"]
            return [" ".join(random.permutation(words)[: 1 + i]) * (1 + i) for i in range(COUNT)]
        case "image":
            sides = [(32, 32), (48, 64), (64, 48), (33, 97), (224, 224), (32, 32)]
            return [_picture(random, height=h, width=w) for h, w in sides]
        case "audio":
            forms = [(0.5, 1, 16_000), (1.0, 2, 44_100), (2.3, 1, 8_000), (0.3, 6, 48_000)]
            forms += [(1.0, 1, 22_050), (3.1, 2, 16_000)]
            return [_tone(seconds=s, channels=c, rate=r) for s, c, r in forms]
        case "video":
            return [_clip(random, frames=4 + 5 * i, seconds=0.5 + i) for i in range(COUNT)]
        case "series":
            width = _channels(spec)
            made = [random.normal(size=(20 + 30 * i, width)).cumsum(axis=0) for i in range(COUNT)]
            made[1][3:7] = np.nan
            return [_series(values, timed=i == 2) for i, values in enumerate(made)]
        case "table":
            return [_record(spec, random) for _ in range(COUNT)]
        case "vector":
            return list(random.normal(size=(COUNT, _dim(spec))))


def odd_payloads(spec: EncoderSpec) -> dict[str, Any]:
    """Payloads by what is odd about them: an encoder embeds them, or says why it cannot."""
    random = np.random.default_rng(1)
    match spec.kind:
        case "text":
            return {
                "an empty text": "",
                "a text of blanks": " \n\t",
                "one letter": "a",
                "a text without letters": "\u200b\u0301…",
                "a text of 200,000 letters": "long words " * 20_000,
            }
        case "image":
            return {
                "an image of 1 x 1": np.zeros((1, 1, 3), dtype=np.uint8),
                "an image of 1 x 500": _picture(random, height=1, width=500),
                "an image of 3000 x 20": _picture(random, height=3000, width=20),
                "an image of 2000 x 2000": _picture(random, height=2000, width=2000),
                "a black image": np.zeros((40, 40, 3), dtype=np.uint8),
            }
        case "audio":
            silence = np.zeros((1, 16_000), dtype=np.float32)
            return {
                "a sound of one sample": Sound(samples=silence[:, :1], rate=16_000),
                "silence": Sound(samples=silence, rate=16_000),
                "a sound of 30 Hz": Sound(samples=silence[:, :100], rate=30),
                "a sound of a minute": _tone(seconds=60, channels=2, rate=48_000),
            }
        case "video":
            return {
                "a video of one frame": _clip(random, frames=1, seconds=0.04),
                "a video of 1 x 1": Clip(frames=np.zeros((5, 1, 1, 3), np.uint8), seconds=1.0),
                "a video of an hour": _clip(random, frames=60, seconds=3600.0),
            }
        case "series":
            width = _channels(spec)
            return {
                "a series without a step": _series(np.empty((0, width))),
                "a series of one step": _series(np.ones((1, width))),
                "a series of gaps": _series(np.full((10, width), np.nan)),
                "a constant series": _series(np.full((50, width), 3.0)),
                "a series of another width": _series(np.ones((10, width + 1))),
                "a series of 200,000 steps": _series(random.normal(size=(200_000, width))),
                "a series of huge values": _series(np.full((10, width), 1e300)),
            }
        case "table":
            record = _record(spec, random)
            odd: dict[str, Any] = {
                "a record without values": dict.fromkeys(record),
                "a record without columns": {},
                "a record of huge numbers": {
                    name: 1e300 if isinstance(cell, float) else cell
                    for name, cell in record.items()
                },
            }
            return odd
        case "vector":
            dim = _dim(spec)
            return {
                "a vector without numbers": np.empty(0),
                "a vector of zeros": np.zeros(dim),
                "a vector with NaN": np.full(dim, np.nan),
                "a vector with an infinity": np.full(dim, np.inf),
                "a vector of another width": np.ones(dim + 1),
                "a vector of huge numbers": np.full(dim, 1e300),
            }


def _picture(random: np.random.Generator, *, height: int, width: int) -> np.ndarray:
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def _tone(*, seconds: float, channels: int, rate: int) -> Sound:
    time = np.arange(max(1, round(seconds * rate))) / rate
    pitches = 220 * (1 + np.arange(channels))[:, None]
    samples = 0.3 * np.sin(2 * np.pi * pitches * time) * np.exp(-time / seconds)
    return Sound(samples=samples.astype(np.float32), rate=rate)


def _clip(random: np.random.Generator, *, frames: int, seconds: float) -> Clip:
    return Clip(frames=random.integers(0, 256, (frames, 36, 48, 3), np.uint8), seconds=seconds)


def _series(values: np.ndarray, *, timed: bool = False) -> Series:
    times = np.arange(len(values)) * 1.5 if timed else None
    return Series(values=values.astype(np.float64), times=times)


def _record(spec: EncoderSpec, random: np.random.Generator) -> dict[str, Any]:
    numbers = getattr(spec, "numeric", None) or ()
    names = getattr(spec, "categorical", None) or ()
    if not numbers and not names:
        numbers, names = ("number",), ("name",)
    cells: dict[str, Any] = {name: float(random.normal()) for name in numbers}
    return cells | {name: str(random.choice(["a", "b", "c"])) for name in names}


def _dim(spec: EncoderSpec) -> int:
    dim = getattr(spec, "dim", None)
    return dim if isinstance(dim, int) else 16


def _channels(spec: EncoderSpec) -> int:
    channels = getattr(spec, "channels", None)
    return channels if isinstance(channels, int) else 2
