"""Videos: which frame is shown at a time, how few are decoded for it, and what is refused."""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from features.columns import Cut, PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.decoders.video import _Film, decode
from features.encoders.base import Video
from features.payloads import open_payload
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
        with pytest.raises(ValueError, match=r"count|rate"):
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


@pytest.mark.parametrize(
    ("codec", "format"),
    [
        ("libx264", "mp4"),
        ("libx265", "matroska"),
        ("mpeg4", "mp4"),
        ("mpeg2video", "mpegts"),
        ("libvpx-vp9", "webm"),
        ("libsvtav1", "mp4"),
    ],
)
def test_every_way_leads_to_the_same_frame(codec: str, format: str) -> None:
    rate = 25 if codec == "mpeg2video" else 10
    options = {"bf": "3"} if codec.startswith(("mpeg", "libx264")) else None
    video = opened(film(120, codec=codec, format=format, rate=rate, group=24, options=options))
    assert isinstance(video, _Film)
    found = video.sample(count=17)
    for way in ("skip", "all"):
        by_it = replace(video, track=replace(video.track, ways=(way,)))
        np.testing.assert_array_equal(by_it.sample(count=17), found)
    first = replace(video, track=replace(video.track, ways=video.track.ways[:1]))
    np.testing.assert_array_equal(first.sample(count=17), found)


def test_frames_agree_with_opencv() -> None:
    payload = film(30, size=(96, 128))
    found = opened(payload).frames_at(np.arange(30) / 10 + 0.05)
    capture = cv2.VideoCapture(io.BytesIO(payload), cv2.CAP_FFMPEG, [])
    for frame in found:
        ok, expected = capture.read()
        assert ok
        assert coarse_difference(frame, expected[:, :, ::-1]) < 4
    assert not capture.read()[0]


# ---------------------------------------------------------------- how few are decoded


def budget(frames: int) -> Limits:
    return Limits(decoded_pixels=frames * PIXELS)


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts"])
def test_only_what_leads_to_a_frame_is_decoded(format: str) -> None:
    payload = film(250, format=format)
    video = opened(payload, limits=budget(4 * 16))
    assert numbers(video.sample(count=4)) == [31, 93, 156, 218]
    assert numbers(opened(payload, limits=budget(16)).frames_at([24.85])) == [248]
    reason = refusal(lambda: opened(payload, limits=budget(100)).sample(count=30))
    assert "decoded_pixels" in reason


def test_each_frame_of_intra_video_is_reached_alone() -> None:
    payload = film(200, codec="mjpeg", format="mov", pixels="yuvj420p")
    assert numbers(opened(payload, limits=budget(8)).sample(count=4)) == [25, 75, 125, 175]


def test_a_film_of_one_key_frame_costs_no_more_than_the_limit() -> None:
    options = {"x264-params": "scenecut=0:bframes=0"}
    payload = film(250, group=1000, options=options)
    reason = refusal(lambda: opened(payload, limits=budget(120)).sample(count=4))
    assert "few key frames" in reason
    # The whole is decoded once, and not once for each frame.
    assert numbers(opened(payload, limits=budget(260)).sample(count=50))[-1] == 247


def without_sync_samples(mp4: bytes) -> bytes:
    """All frames called key frames, which they are not."""
    assert mp4.count(b"stss") == 1
    return mp4.replace(b"stss", b"free")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "libsvtav1"])
def test_key_frames_that_are_none_are_seen_through(codec: str) -> None:
    payload = without_sync_samples(film(60, codec=codec, group=20))
    assert numbers(opened(payload).sample(count=12)) == list(range(2, 60, 5))


@pytest.mark.parametrize("format", ["mp4", "mpegts", "matroska"])
@pytest.mark.parametrize("how", ["open groups", "gradual refresh"])
def test_groups_that_lean_on_each_other(how: str, format: str) -> None:
    codec = "libx265" if how == "open groups" else "libx264"
    options = {
        "open groups": {"x265-params": "open-gop=1:bframes=4:scenecut=0:log-level=none"},
        "gradual refresh": {"x264-params": "intra-refresh=1:bframes=0"},
    }[how]
    payload = film(120, codec=codec, format=format, group=12, options=options)
    assert numbers(opened(payload).sample(count=40)) == list(range(1, 120, 3))


def test_a_recording_that_begins_amid_a_group() -> None:
    payload = film(
        60,
        format="mpegts",
        group=20,
        container={"pat_period": "0.1"},
        options={"x264-params": "scenecut=0"},
    )
    late = payload[len(payload) // 6 // 188 * 188 :]
    video = opened(late)
    assert number_of(video.frames_at([0.0])[0]) == 20
    assert numbers(video.sample(count=4))[-1] >= 50


def test_a_change_of_size_in_the_middle() -> None:
    small = film(10, format="mpegts")
    stamps = list(range(12, 22))  # since the first begins at 0.2 s
    pictures = [cv2.resize(picture(i), (128, 96)) for i in range(10)]
    large = film(
        10,
        format="mpegts",
        size=(96, 128),
        stamps=stamps,
        base=Fraction(1, 10),
        pictures=pictures,
    )
    frames = opened(small + large).frames_at([0.05, 0.95, 1.05, 1.95])
    assert frames.shape == (4, 48, 64, 3)
    assert numbers(frames) == [0, 9, 0, 9]


# ---------------------------------------------------------------- what it looks like


@pytest.mark.parametrize("how", MATRICES)
def test_the_display_matrix_is_applied(how: str, tmp_path: Path) -> None:
    shown = picture(37)
    turns = {"90": 1, "180": 2, "270": 3, "mirrored": 0, "mirrored, 90": 1, "0": 0}[how]
    stored = shown[:, ::-1] if how.startswith("mirrored") and how == "mirrored" else shown
    if how == "mirrored, 90":
        stored = shown.swapaxes(0, 1)
    elif turns:
        stored = np.rot90(shown, turns)
    stored = np.ascontiguousarray(stored)
    payload = turned(film(4, pictures=[stored] * 4, size=stored.shape[:2]), how)
    frame = opened(payload).sample(count=1)[0]
    assert frame.shape == shown.shape
    assert number_of(frame) == 37
    assert coarse_difference(frame, shown) < 8
    half = opened(payload).sample(count=1, size=(24, 40))[0]
    assert half.shape == (24, 40, 3)
    if not how.startswith("mirrored"):  # which OpenCV does not know
        path = tmp_path / "film.mp4"
        path.write_bytes(payload)
        ok, expected = cv2.VideoCapture(str(path)).read()
        assert ok and coarse_difference(frame, expected[:, :, ::-1]) < 4


COLOURS = np.array([[250, 20, 20], [20, 230, 30], [30, 40, 240], [128, 128, 128]], dtype=np.uint8)


def panels(alpha: bool = False) -> np.ndarray:
    """Four panels of a colour each, `[48, 64, 3]`; with alpha, the left half is transparent."""
    pixels = COLOURS.repeat(16, axis=0)[None].repeat(48, axis=0)
    if not alpha:
        return pixels
    opacity = np.full((48, 64, 1), 255, dtype=np.uint8)
    opacity[:, :16] = 0
    opacity[:, 16:32] = 128
    return np.concatenate([pixels, opacity], axis=2)


@pytest.mark.parametrize(
    ("codec", "format", "pixels", "options"),
    [
        ("libx264", "mp4", "yuv420p", {}),
        ("libx264", "mp4", "yuv444p", {}),
        ("libx264", "mp4", "yuv422p10le", {}),
        ("mjpeg", "mov", "yuvj420p", {}),
        ("prores", "mov", "yuv422p10le", {}),
        ("ffv1", "matroska", "yuv420p16le", {}),
        ("libx264rgb", "matroska", "rgb24", {}),
        ("png", "mov", "rgb48be", {}),
        ("gif", "gif", "rgb8", {}),
    ],
)
def test_colours_of_odd_formats(codec: str, format: str, pixels: str, options: Any) -> None:
    payload = film(
        3, codec=codec, format=format, pixels=pixels, options=options, pictures=[panels()] * 3
    )
    frame = opened(payload).sample(count=1)[0]
    for i, colour in enumerate(COLOURS):
        found = frame[12:36, 16 * i + 4 : 16 * i + 12].mean(axis=(0, 1))
        assert np.abs(found - colour).max() < (40 if pixels == "rgb8" else 8)


def test_the_colour_matrix_that_a_file_names_is_used() -> None:
    yuv = av.VideoFrame.from_ndarray(panels(), format="rgb24").reformat(
        format="yuv444p", dst_colorspace="ITU709"
    )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = 1  # BT.709
        yuv.pts = 0
        out.mux(stream.encode(yuv))
        out.mux(stream.encode(None))
    frame = opened(buffer.getvalue()).sample(count=1)[0]
    assert np.abs(frame[24, 8::16].astype(int) - COLOURS).max() < 5


def test_grey_of_8_and_16_bits() -> None:
    for pixels, codec in (("gray", "ffv1"), ("gray16le", "ffv1"), ("gray16be", "png")):
        format = "mov" if codec == "png" else "matroska"
        payload = film(5, codec=codec, format=format, pixels=pixels)
        frames = opened(payload).sample(count=5)
        assert numbers(frames) == [0, 1, 2, 3, 4]
        assert (frames.max(axis=3) == frames.min(axis=3)).all()


@pytest.mark.parametrize(
    ("codec", "format", "pixels"),
    [("png", "mov", "rgba"), ("apng", "apng", "rgba"), ("ffv1", "matroska", "yuva444p")],
)
def test_what_is_transparent_stands_on_white(codec: str, format: str, pixels: str) -> None:
    stills = [panels(alpha=True)] * 2
    payload = film(2, codec=codec, format=format, pixels=pixels, pictures=stills)
    frame = opened(payload).sample(count=1)[0][24, 8::16].astype(int)
    half = (COLOURS[1].astype(int) + 255) / 2
    expected = [[255, 255, 255], half, COLOURS[2], COLOURS[3]]
    assert np.abs(frame - np.array(expected)).max() < 6


def test_frames_are_resized_at_once() -> None:
    video = opened(film(10, size=(96, 128)))
    whole, small = video.sample(count=3), video.sample(count=3, size=(24, 20))
    assert small.shape == (3, 24, 20, 3)
    for frame, expected in zip(small, whole, strict=True):
        resized = cv2.resize(expected, (20, 24), interpolation=cv2.INTER_AREA)
        assert np.abs(frame.astype(int) - resized).mean() < 8
    with pytest.raises(ValueError, match="at least 1"):
        list(video.each_at([0.5], size=(0, 4)))


# ---------------------------------------------------------------- cuts


@pytest.mark.parametrize("format", ["mp4", "matroska", "mpegts", "avi"])
def test_a_cut_has_its_own_times(format: str) -> None:
    payload = film(50, format=format)
    video = opened(payload, start=1.0, end=3.0)
    assert video.seconds == pytest.approx(2.0)
    assert numbers(video.sample(count=4)) == [12, 17, 22, 27]
    assert numbers(opened(payload, start=4.0).sample(count=2)) == [42, 47]
    assert opened(payload, start=4.0, end=5.04).seconds == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("start", "end", "says"),
    [
        (-1.0, None, "no part of a recording"),
        (2.0, 2.0, "no part of a recording"),
        (3.0, 2.0, "no part of a recording"),
        (float("nan"), None, "no part of a recording"),
        (5.0, None, "from 5 s to its end is not within the video, which has 5 s"),
        (4.0, 5.2, "not within the video"),
    ],
)
def test_a_cut_outside_the_video_is_refused(start: float, end: float | None, says: str) -> None:
    assert says in refusal(lambda: opened(film(50), start=start, end=end))


def test_the_sound_track_of_a_cut_belongs_to_its_pictures() -> None:
    payload = film(50, sound=True)
    whole = opened(payload)
    assert whole.sound().samples.shape[1] / whole.sound().rate == pytest.approx(5, abs=0.2)
    sound = opened(payload, start=2.0, end=3.0).sound()
    assert (sound.rate, sound.samples.shape) == (8000, (1, 8000))
    loudest = np.abs(np.fft.rfft(sound.samples[0])).argmax()
    assert loudest == 300
    assert "no sound" in refusal(lambda: opened(film(5)).sound())


def test_one_file_is_two_modalities(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(film(50, sound=True))
    cut = Cut(whole="film.mp4", start=3.0, end=4.0)
    seen, heard = (
        open_payload(
            cut,
            columns=PayloadColumns(kind=kind, columns=("film",), start="from", end="to"),
            folder=str(tmp_path),
        )
        for kind in ("video", "audio")
    )
    assert numbers(seen.sample(count=2)) == [32, 37]
    assert np.abs(np.fft.rfft(heard.samples[0])).argmax() == 400


# ---------------------------------------------------------------- what is refused


def test_limits_are_told_by_name() -> None:
    payload = film(50)
    assert "more than 3,071 pixels" in refusal(lambda: opened(payload, limits=Limits(pixels=3071)))
    reason = refusal(lambda: opened(payload, limits=Limits(seconds=4.9)))
    assert "more than 4.9 seconds" in reason and "`start`" in reason
    assert opened(payload, limits=Limits(seconds=2), start=1, end=3).seconds == 2
    few = Limits(values=10 * PIXELS * 3)
    assert len(opened(payload, limits=few).sample(count=10)) == 10
    assert len(opened(payload, limits=few).sample(count=40, size=(24, 32))) == 40
    reason = refusal(lambda: opened(payload, limits=few).sample(count=11))
    assert "11 frames of 64 x 48 pixels" in reason
    # One by one, any number can be had.
    many = opened(payload, limits=few)
    assert sum(1 for _ in many.each_at(many.times(count=50))) == 50


def test_a_size_that_only_the_frames_tell_is_limited() -> None:
    small = film(10, format="mpegts")
    large = film(10, format="mpegts", size=(480, 640), stamps=range(10, 20), base=Fraction(1, 10))
    video = opened(small + large, limits=Limits(pixels=10_000))
    assert number_of(video.frames_at([0.5])[0]) == 5
    refusal(lambda: video.frames_at([1.5]))


@pytest.mark.parametrize(
    ("codec", "format", "pixels"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "fragments", "yuv420p"),
        ("libx264", "matroska", "yuv420p"),
        ("libvpx-vp9", "webm", "yuv420p"),
        ("mpeg4", "avi", "yuv420p"),
        ("libx264", "flv", "yuv420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_a_truncated_file_is_refused(codec: str, format: str, pixels: str) -> None:
    container = {"movflags": "+faststart"} if format == "mp4" else None
    if format == "fragments":
        format, container = "mp4", {"movflags": "frag_keyframe+empty_moov"}
    payload = film(50, codec=codec, format=format, pixels=pixels, container=container)
    assert numbers(opened(payload).sample(count=2)) == [12, 37]
    for share in (0.3, 0.6, 0.9):
        part = payload[: int(len(payload) * share)]
        reason = refusal(lambda part=part: opened(part).sample(count=8))
        assert "truncated" in reason or (format == "flv" and "damaged" in reason)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(film(5))
    image = io.BytesIO()
    Image.fromarray(picture(1)).save(image, "PNG")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile {secret}\n".encode()
    for payload in (b"not a video at all", image.getvalue(), playlist, concat, bytes(5000), b"\0"):
        assert "not a video of a known format" in refusal(lambda payload=payload: opened(payload))


def test_sound_and_covers_are_no_video() -> None:
    def made(*, cover: bool, format: str) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=format) as out:
            voice = out.add_stream("aac", rate=8000, layout="mono")
            if cover:
                still = out.add_stream("mjpeg", rate=1)
                still.width, still.height, still.pix_fmt = 64, 48, "yuvj420p"
                still.disposition = av.stream.Disposition.attached_pic
                frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24")
                out.mux(still.encode(frame.reformat(format="yuvj420p")))
                out.mux(still.encode(None))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            out.mux(voice.encode(frame))
            out.mux(voice.encode(None))
        return buffer.getvalue()

    for cover in (False, True):
        payload = made(cover=cover, format="mp4")
        assert refusal(lambda payload=payload: opened(payload)) == "there is no video in the file"


def damaged(payload: bytes, *, share: float, size: int = 400) -> bytes:
    at = int(len(payload) * share)
    noise = np.random.default_rng(0).bytes(size)
    return payload[:at] + noise + payload[at + size :]


@pytest.mark.parametrize(
    ("codec", "format", "pixels"),
    [
        ("libx264", "mp4", "yuv420p"),
        ("mjpeg", "mov", "yuvj420p"),
        ("libvpx-vp9", "mp4", "yuv420p"),
        ("libx265", "mp4", "yuv420p"),
        ("mpeg4", "mp4", "yuv420p"),
    ],
)
def test_damage_matters_to_the_frames_that_build_on_it(
    codec: str, format: str, pixels: str
) -> None:
    payload = film(100, codec=codec, format=format, pixels=pixels)
    video = opened(damaged(payload, share=0.45, size=3000))
    assert numbers(video.frames_at([0.5, 2.5, 8.5, 9.5])) == [5, 25, 85, 95]
    bad = 0
    for time in np.arange(35, 60) / 10 + 0.05:
        try:
            video.frames_at([time])
        except BadPayload as error:
            assert error.reason.startswith("damaged video: ")
            bad += 1
    assert bad >= 1
    assert "damaged" in refusal(lambda: video.sample(count=50))


def test_a_hole_in_matroska_is_seen_though_ffmpeg_leaps_over_it() -> None:
    payload = film(100, format="matroska")
    for share in (0.2, 0.45, 0.8):
        reason = refusal(lambda share=share: opened(damaged(payload, share=share, size=3000)))
        assert "is not readable" in reason


# ---------------------------------------------------------------- the object


def test_times_that_do_not_ascend_are_refused_where_order_matters() -> None:
    video = opened(film(10))
    for times in ([0.5, 0.2], [float("nan")]):
        with pytest.raises(ValueError, match="ascend"):
            video.each_at(times)
    with pytest.raises(ValueError, match="one frame at least"):
        video.frames_at([])
    assert numbers(video.frames_at([0.55, 0.25, 0.55])) == [5, 2, 5]


def test_one_frame_is_a_video() -> None:
    for codec, format, pixels in (("libx264", "mp4", "yuv420p"), ("gif", "gif", "rgb8")):
        video = opened(film(1, codec=codec, format=format, pixels=pixels))
        assert numbers(video.sample(count=3)) == [0, 0, 0]
        assert numbers(video.sample(rate=0.1)) == [0]


def test_a_video_is_shared_by_threads_and_pickled() -> None:
    video = opened(film(100, format="matroska"))
    expected = video.sample(count=10)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: video.sample(count=10), range(8)):
            np.testing.assert_array_equal(found, expected)
    again = pickle.loads(pickle.dumps(video))
    np.testing.assert_array_equal(again.sample(count=10), expected)


def test_without_pyav_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return real(name, *args, **kwargs)

    payload = film(2)
    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.partition(".")[0] == "av"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'sensorium\[video\]'"):
        opened(payload)
