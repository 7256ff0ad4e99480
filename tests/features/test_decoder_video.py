"""Videos: which frame is shown at a time, how few are decoded for it, and what is refused."""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from features.columns import Cut, PayloadColumns, open_payload
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.decoders.video import decode
from features.encoders.base import Video
from tests.features.films import MATRICES, film, number_of, numbers, picture, turned

PIXELS = 48 * 64
KINDS = [
    ("libx264", "mp4", "yuv420p"),
    ("libx264", "matroska", "yuv420p"),
    ("libx264", "mpegts", "yuv420p"),
    ("libx264", "flv", "yuv420p"),
    ("libx264", "avi", "yuv420p"),
    ("libx264", "h264", "yuv420p"),
    ("libx265", "mp4", "yuv420p10"),
    ("libvpx-vp9", "webm", "yuv420p"),
    ("libvpx", "webm", "yuv420p"),
    ("libsvtav1", "mp4", "yuv420p"),
    ("mpeg4", "avi", "yuv420p"),
    ("mpeg4", "nut", "yuv420p"),
    ("mpeg2video", "mpeg", "yuv420p"),
    ("mpeg4", "asf", "yuv420p"),
    ("mjpeg", "avi", "yuvj420p"),
    ("mjpeg", "mov", "yuvj420p"),
    ("prores", "mov", "yuv422p10le"),
    ("ffv1", "matroska", "yuv420p10"),
    ("gif", "gif", "rgb8"),
    ("apng", "apng", "rgba"),
    ("rawvideo", "yuv4mpegpipe", "yuv420p"),
]


def opened(payload: bytes, **options: Any) -> Video:
    return decode(payload, limits=options.pop("limits", DEFAULT_LIMITS), **options)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(BadPayload) as caught:
        call()
    assert caught.value.stage == "decode"
    return caught.value.reason


def every_frame(payload: bytes) -> list[np.ndarray]:
    """All frames, decoded one after the other by PyAV."""
    with av.open(io.BytesIO(payload)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def coarse_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of blocks' means: conversions differ in how they spread colours."""
    height, width, _ = one.shape
    difference = one.astype(float) - other
    blocks = difference.reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))
    return float(np.abs(blocks).max())


# ---------------------------------------------------------------- which frame


@pytest.mark.parametrize(("codec", "format", "pixels"), KINDS)
def test_the_frame_at_a_time_is_the_one_that_is_shown_then(
    codec: str, format: str, pixels: str
) -> None:
    rate = 25 if codec == "mpeg2video" else 10
    video = opened(film(codec=codec, format=format, pixels=pixels, rate=rate))
    assert video.seconds == pytest.approx(50 / rate)
    assert numbers(video.sample(count=5)) == [5, 15, 25, 35, 45]
    assert numbers(video.sample(count=1)) == [25]
    assert numbers(video.sample(rate=rate / 5)) == list(range(2, 50, 5))
    times = np.random.default_rng(0).uniform(0, 50, 20)
    assert numbers(video.frames_at(times / rate)) == np.floor(times).astype(int).tolist()
    ends = [0.0, 0.99 / rate, 1 / rate, 49 / rate, 50 / rate, 100.0]
    assert numbers(video.frames_at(ends)) == [0, 0, 1, 49, 49, 49]


def test_times_of_even_samples() -> None:
    video = opened(film(30))
    np.testing.assert_allclose(video.times(count=2), [0.75, 2.25])
    np.testing.assert_allclose(video.times(rate=1), [0.5, 1.5, 2.5])
    np.testing.assert_allclose(video.times(rate=0.5), [1.0])
    np.testing.assert_allclose(video.times(rate=0.6), [0.5 / 0.6, 1.5 / 0.6])
    np.testing.assert_allclose(video.times(rate=0.01), [1.5])
    for wrong in ({}, {"count": 1, "rate": 1.0}, {"count": 0}, {"rate": 0.0}, {"rate": np.inf}):
        with pytest.raises(ValueError, match="count|rate"):
            video.times(**wrong)


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_frames_of_varying_length(format: str) -> None:
    stamps = [0, 10, 500, 520, 1490, 3000, 3010]
    video = opened(film(7, format=format, stamps=stamps, base=Fraction(1, 1000), group=3))
    times = [0.0, 0.009, 0.010, 0.4, 0.499, 0.5, 0.51, 0.52, 1.4, 1.5, 2.99, 3.0, 3.005, 3.02]
    expected = [np.searchsorted(stamps, 1000 * time + 1e-6, side="right") - 1 for time in times]
    assert numbers(video.frames_at(times)) == expected
    shuffled = np.random.default_rng(1).permutation(len(times))
    again = numbers(video.frames_at(np.array(times)[shuffled]))
    assert again == np.array(expected)[shuffled].tolist()


def test_before_the_first_frame_the_first_is_shown() -> None:
    stamps = [i + 20 for i in range(10)]
    payload = film(10, format="mpegts", stamps=stamps, base=Fraction(1, 10), sound=True)
    video = opened(payload)
    begin = 1024 / 8000  # AAC begins with one frame of silence
    assert video.seconds == pytest.approx(begin + 3.0, abs=1e-3)
    assert numbers(video.frames_at(begin + np.array([0.0, 1.0, 2.25, 2.65]))) == [0, 0, 2, 6]


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts", "avi"])
def test_frames_are_those_of_decoding_everything_to_the_last_bit(format: str) -> None:
    payload = film(
        60,
        format=format,
        group=13,
        container={"movflags": "+faststart"} if format == "mp4" else None,
    )
    video = opened(payload)
    expected = every_frame(payload)
    few = np.array([3.05, 5.95, 0.15, 3.05, 4.55])
    plain = [np.asarray(video.frames_at([time])[0], dtype=int) for time in few]
    together = video.frames_at(few)
    for time, alone, one in zip(few, plain, together, strict=True):
        np.testing.assert_array_equal(alone, one)
        assert coarse_difference(one, expected[int(time * 10)]) < 4


def test_frames_agree_with_opencv() -> None:
    payload = film(30, size=(96, 128))
    found = opened(payload).frames_at(np.arange(30) / 10 + 0.05)
    capture = cv2.VideoCapture(io.BytesIO(payload), cv2.CAP_FFMPEG, [])
    for frame in found:
        ok, expected = capture.read()
        assert ok
        assert coarse_difference(frame, expected[:, :, ::-1]) < 4
    assert not capture.read()[0]
