"""Sounds: decoded as soundfile, librosa, SciPy and FFmpeg have them; cuts; what is refused."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import pytest
import soundfile
from scipy.io import wavfile

from features.decoders import audio, sound_track
from features.decoders.base import BadPayload, Limits
from features.encoders import Sound
from features.payloads import decode

RATE = 16_000
SPEECH = Path(__file__).parents[3] / "shared" / "data" / "fsdd"


def music(seconds: float = 4.0, *, rate: int = RATE) -> np.ndarray:
    """A rising and a steady tone that swell, float64 `[T, 2]`: no second is like another."""
    time = np.arange(int(seconds * rate)) / rate
    rising = 0.4 * np.sin(2 * np.pi * (200 + 150 * time) * time)
    steady = 0.3 * np.sin(2 * np.pi * 700 * time) * (0.6 + 0.4 * np.sin(5 * time))
    return np.stack([rising, steady], axis=1)


def wav(samples: np.ndarray, *, rate: int = 8000, format: str = "WAV", **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, **options)
    return buffer.getvalue()


def ffmpeg(
    samples: np.ndarray,
    *,
    format: str,
    codec: str,
    rate: int = RATE,
    video: bool = False,
    late: float = 0.0,
    path: Path | None = None,
    **options: str,
) -> bytes:
    """A file as FFmpeg writes it: a sound track, with a video track before it if asked for."""
    buffer = io.BytesIO()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(str(path) if path else buffer, "w", format=format, options=options) as container:
        frames = []
        if video:
            pictures: Any = container.add_stream("mpeg4", rate=10)
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
            frames = [
                av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")
                for i in range(int((len(samples) / rate + late) * 10))
            ]
        track: Any = container.add_stream(codec, rate=rate)
        track.layout = layout
        if codec == "aac":  # its made-up noise depends on what was decoded before
            track.codec_context.options = {"aac_pns": "0"}
        shown = 0
        for start in range(0, len(samples), 1024):
            while shown < len(frames) and shown / 10 <= start / rate + late:
                frames[shown].pts = shown
                container.mux(pictures.encode(frames[shown]))
                shown += 1
            values = np.ascontiguousarray(samples[start : start + 1024].T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(values, format="fltp", layout=layout)
            frame.sample_rate = rate
            frame.pts = start + int(late * rate)
            container.mux(track.encode(frame))
        for later in frames[shown:]:
            later.pts = shown
            shown += 1
            container.mux(pictures.encode(later))
        if video:
            container.mux(pictures.encode())
        container.mux(track.encode())
    return path.read_bytes() if path else buffer.getvalue()


def sound(data: Any, **options: Any) -> Sound:
    found = decode(data, kind="audio", **options)
    assert isinstance(found, Sound)
    assert found.samples.dtype == np.float32
    assert found.samples.flags.c_contiguous
    return found


def refusal(data: Any, **options: Any) -> str:
    with pytest.raises(BadPayload) as caught:
        decode(data, kind="audio", **options)
    assert caught.value.stage == "decode"
    assert "0x" not in caught.value.reason
    assert "BytesIO" not in caught.value.reason
    return caught.value.reason


# ---------------------------------------------------------------- what libsndfile reads

EXACT = [
    ("WAV", "PCM_U8", 2**-7),
    ("WAV", "PCM_16", 2**-15),
    ("WAV", "PCM_24", 2**-23),
    ("WAV", "PCM_32", 1e-7),
    ("WAV", "FLOAT", 1e-7),
    ("WAV", "DOUBLE", 1e-7),
    ("FLAC", "PCM_16", 2**-15),
    ("FLAC", "PCM_24", 2**-23),
    ("AIFF", "PCM_16", 2**-15),
    ("CAF", "ALAC_16", 2**-15),
]
LOSSY = [
    ("WAV", "ALAW"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("format", "subtype", "step"), EXACT)
def test_sound_is_decoded_channel_by_channel(format: str, subtype: str, step: float) -> None:
    samples = music(0.1)
    found = sound(wav(samples, rate=11025, format=format, subtype=subtype))
    assert found.rate == 11025
    assert found.samples.shape == (2, len(samples))
    np.testing.assert_allclose(found.samples, samples.T, atol=step)


@pytest.mark.parametrize(("format", "subtype"), LOSSY)
def test_lossy_sound_is_librosas(format: str, subtype: str) -> None:
    data = wav(music(1), rate=RATE, format=format, subtype=subtype)
    expected, rate = librosa.load(io.BytesIO(data), sr=None, mono=False)
    found = sound(data)
    assert found.rate == rate
    np.testing.assert_array_equal(found.samples, expected)
    length = min(len(music(1)), found.samples.shape[1])
    assert np.corrcoef(found.samples[1, :length], music(1)[:length, 1])[0, 1] > 0.99


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_wav_is_scipys(dtype: Any, tmp_path: Path) -> None:
    scaled = music(0.1)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        scaled = scaled * info.max / 2 + (128 if info.min == 0 else 0)
    wavfile.write(tmp_path / "a.wav", 44_100, scaled.astype(dtype))
    rate, expected = wavfile.read(tmp_path / "a.wav")
    full = {"u": 2**7, "i": 2.0 ** (8 * expected.itemsize - 1), "f": 1}[expected.dtype.kind]
    offset = 128 if expected.dtype.kind == "u" else 0
    found = sound((tmp_path / "a.wav").read_bytes())
    assert found.rate == rate
    np.testing.assert_allclose(found.samples, (expected.T.astype(float) - offset) / full, atol=1e-7)


def test_any_number_of_channels_and_any_rate() -> None:
    for channels, rate in ((1, 8000), (3, 22_050), (8, 192_000)):
        samples = np.random.default_rng(0).uniform(-0.9, 0.9, (300, channels))
        found = sound(wav(samples, rate=rate, subtype="FLOAT"))
        assert found.rate == rate
        np.testing.assert_allclose(found.samples, samples.T, atol=1e-7)


def test_wav_whose_writer_streamed_and_left_no_size_is_read() -> None:
    data = bytearray(wav(np.full((100, 1), 0.5)))
    place = data.index(b"data") + 4
    data[place : place + 4] = data[4:8] = b"\xff\xff\xff\xff"
    assert sound(bytes(data)).samples.shape == (1, 100)


def test_mp3_without_a_stated_length_is_read_to_its_end() -> None:
    ends_in_silence = music(20) * (np.arange(20 * RATE) < 2 * RATE)[:, None]
    buffer = io.BytesIO()
    options = {"format": "MP3", "bitrate_mode": "VARIABLE"}
    with soundfile.SoundFile(buffer, "w", RATE, 2, **options) as file:
        file.write(ends_in_silence)
    data = buffer.getvalue()
    tagless = data[data.index(data[:2], data.index(b"Xing")) :]
    with soundfile.SoundFile(io.BytesIO(tagless)) as file:
        assert file.frames < 15 * RATE, "libsndfile guesses, and stops there"
    assert abs(sound(tagless).samples.shape[1] - 20 * RATE) < 4 * 1152


@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not beside the project")
def test_real_speech_is_soundfiles() -> None:
    for path in sorted(SPEECH.glob("*.wav"))[::100]:
        expected, rate = soundfile.read(path, dtype="float32")
        found = sound(path.read_bytes())
        assert found.rate == rate == 8000
        np.testing.assert_array_equal(found.samples, expected[None])


# ---------------------------------------------------------------- what PyAV reads

TRACKS: dict[str, dict[str, Any]] = {
    "m4a": {"format": "ipod", "codec": "aac"},
    "mp4": {"format": "mp4", "codec": "aac", "video": True, "rate": 44_100},
    "mov": {"format": "mov", "codec": "pcm_s24le"},
    "alac": {"format": "mp4", "codec": "alac"},
    "mkv": {"format": "matroska", "codec": "aac", "video": True, "rate": 44_100},
    "mka": {"format": "matroska", "codec": "flac"},
    "webm": {"format": "webm", "codec": "libopus", "rate": 48_000},
    "avi": {"format": "avi", "codec": "libmp3lame", "video": True},
    "ts": {"format": "mpegts", "codec": "aac", "video": True},
    "aac": {"format": "adts", "codec": "aac"},
    "ac3": {"format": "ac3", "codec": "ac3", "rate": 48_000},
}
SOUGHT = ("m4a", "mp4", "mov", "alac", "mkv", "mka", "webm")
"""Those of which only a part is decoded."""
DELAYED = {"ts": 1024, "aac": 1024, "avi": 1105, "ac3": 256}
"""Samples that an encoder puts in front, where the container has no place to say so."""


def track(name: str, seconds: float = 4.0) -> tuple[np.ndarray, bytes]:
    options = TRACKS[name]
    samples = music(seconds, rate=options.get("rate", RATE))
    return samples, ffmpeg(samples, **options)


@pytest.mark.parametrize("name", TRACKS)
def test_sound_track_stands_where_it_was_put(name: str) -> None:
    samples, data = track(name)
    found = sound(data)
    assert found.rate == TRACKS[name].get("rate", RATE)
    delay = DELAYED.get(name, 0)
    there = found.samples[:, delay:]
    if name in ("m4a", "mp4", "mov", "alac", "mka"):
        assert there.shape == (2, len(samples)), "what a codec pads is no sound"
    else:
        assert 0 <= there.shape[1] - len(samples) + 1536 < 4 * 1536
    middle = slice(20_000, 40_000)
    error = there[:, middle] - samples[middle].T
    assert np.sqrt((error**2).mean()) < (1e-4 if name in ("mov", "alac", "mka") else 0.06)
    for shift in (-1, 1):
        shifted = samples[20_000 + shift : 40_000 + shift].T
        assert np.square(there[:, middle] - shifted).mean() > np.square(error).mean()


@pytest.mark.parametrize("subtype", ["u8", "s16le", "s32le", "f32le", "f64le"])
def test_samples_of_any_type_have_one_scale(subtype: str) -> None:
    samples = music(0.5)
    data = ffmpeg(samples, format="matroska", codec=f"pcm_{subtype}")
    found = sound(data).samples
    np.testing.assert_allclose(found, samples.T, atol=2**-6 if subtype == "u8" else 2**-14)


def test_sound_that_begins_late_or_is_mono(tmp_path: Path) -> None:
    samples = music(1.5)[:, :1]
    data = ffmpeg(samples, format="matroska", codec="pcm_s16le", video=True, late=0.5)
    found = sound(data).samples
    assert found.shape[0] == 1
    assert not found[:, : RATE // 2 - 1].any(), "cuts of sound and of pictures belong together"
    np.testing.assert_allclose(found[0, RATE // 2 :], samples[:, 0], atol=2**-14)


def test_file_without_sound_track_says_so() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        pictures: Any = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
    assert "no sound track" in refusal(buffer.getvalue())


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(music(0.1)))
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/a.wav\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/a.wav'\n",
    ]
    for text in lists:
        assert "known format" in refusal(text.encode())


# ---------------------------------------------------------------- cuts

CUTS = ((0, 0.5), (0.3, 0.31), (1.1234567, 2.7), (2.9, 3.99), (3.5, None))


def check_cuts(data: bytes, *, atol: float = 0.0) -> None:
    whole = sound(data)
    for start, end in CUTS:
        first = round(start * whole.rate)
        last = None if end is None else round(end * whole.rate)
        found = sound(data, start=start, end=end)
        assert found.rate == whole.rate
        np.testing.assert_allclose(found.samples, whole.samples[:, first:last], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("format", "subtype"), [*((f, s) for f, s, _ in EXACT), *LOSSY, ("WAV", "GSM610")]
)
def test_cut_is_that_slice_of_the_whole(format: str, subtype: str) -> None:
    samples = music()[:, :1] if subtype == "GSM610" else music()
    check_cuts(wav(samples, rate=RATE, format=format, subtype=subtype), atol=1e-6)


def test_cut_of_an_mp3_of_varying_bit_rate() -> None:
    samples = music(4) * (np.arange(4 * RATE) > 2 * RATE)[:, None]
    buffer = io.BytesIO()
    options = {"format": "MP3", "bitrate_mode": "VARIABLE"}
    with soundfile.SoundFile(buffer, "w", RATE, 2, **options) as file:
        file.write(samples)
    check_cuts(buffer.getvalue(), atol=1e-6)


@pytest.mark.parametrize("name", TRACKS)
def test_cut_of_a_sound_track_is_that_slice_of_the_whole(name: str) -> None:
    check_cuts(track(name)[1], atol=1e-6)


@pytest.mark.parametrize("name", SOUGHT)
def test_of_a_long_track_only_the_cut_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = track(name, 20)[1]
    decoded = []
    really = sound_track._samples

    def samples(frame: Any, channels: int) -> np.ndarray:
        decoded.append(frame.samples)
        return really(frame, channels)

    monkeypatch.setattr(sound_track, "_samples", samples)
    found = sound(data, start=15, end=15.5)
    assert sum(decoded) < 7 * found.rate, "a cluster of Matroska has 5 seconds"
    assert found.samples.shape == (2, found.rate // 2)


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def readinto(self, buffer: Any) -> int:
        got = super().readinto(buffer)
        self.count += got
        return got

    def read(self, size: int | None = -1, /) -> bytes:
        got = super().read(size)
        self.count += len(got)
        return got


@pytest.mark.parametrize("format", ["WAV", "FLAC", "mov", "mka"])
def test_of_a_long_file_only_the_part_of_the_cut_is_read(format: str) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (60 * RATE, 2))
    if format in TRACKS:
        data = ffmpeg(samples, **TRACKS[format])
    else:
        data = wav(samples, rate=RATE, format=format)
    file = Counted(data)
    found = audio.decode(file, limits=Limits(seconds=2), start=40, end=41)
    assert found.samples.shape == (2, RATE)
    assert file.count < len(data) / 5


def test_limits_count_the_length_of_the_cut() -> None:
    for data in (wav(music(), rate=RATE), track("m4a")[1], track("aac")[1]):
        limits = Limits(seconds=1, values=2 * RATE)
        assert sound(data, start=2, end=3, limits=limits).samples.shape == (2, RATE)
        assert "1 seconds" in refusal(data, start=2, end=3.1, limits=limits)
        assert "1 seconds" in refusal(data, start=2, limits=limits)
        assert "1 seconds" in refusal(data, limits=limits)
        assert "9 samples" in refusal(data, start=2, end=3, limits=Limits(values=9))


@pytest.mark.parametrize("name", ["wav", "mp3", "m4a", "mkv", "aac"])
def test_cut_outside_the_recording_is_refused(name: str) -> None:
    data = (
        wav(music(), rate=RATE, format=name.upper()) if name in ("wav", "mp3") else track(name)[1]
    )
    for start, end in ((9, None), (9, 10), (3, 5), (0, 60)):
        assert "not within the recording" in refusal(data, start=start, end=end)
    for start, end in ((2, 2), (3, 2), (-1, 2), (np.nan, 2), (0, np.nan), (0, np.inf)):
        assert "no part of a recording" in refusal(data, start=start, end=end)
    assert "zero frames" in refusal(data, start=2, end=2.00001)
    seconds = sound(data).samples.shape[1] / sound(data).rate
    assert sound(data, start=3, end=seconds + 0.04).samples.shape[1] > 0.9 * RATE


# ---------------------------------------------------------------- what is refused


def test_sound_of_zero_frames_is_refused() -> None:
    assert "zero frames" in refusal(wav(np.zeros((0, 1))))


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all", b"ID3\x04" + b"\0" * 40])
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    refusal(data)


@pytest.mark.parametrize(
    "format", ["WAV", "WAVEX", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC", "MP3", "OGG"]
)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_sound_is_refused(format: str, share: float) -> None:
    data = wav(np.random.default_rng(0).uniform(-0.9, 0.9, (40_000, 1)), rate=16_000, format=format)
    assert sound(data).samples.shape == (1, 40_000)
    reason = refusal(data[: int(len(data) * share)])
    assert "truncated" in reason or "damaged" in reason


@pytest.mark.parametrize("subtype", ["ALAC_16", "OPUS", "IMA_ADPCM"])
def test_other_truncated_sound_is_refused(subtype: str) -> None:
    format = {"ALAC_16": "CAF", "OPUS": "OGG"}.get(subtype, "WAV")
    data = wav(music(), rate=16_000, format=format, subtype=subtype)
    sound(data)
    refusal(data[: int(len(data) * 0.7)])


@pytest.mark.parametrize("name", sorted(set(TRACKS) - {"ts", "aac", "ac3"}))
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_track_is_refused(name: str, share: float) -> None:
    data = track(name)[1]
    reason = refusal(data[: int(len(data) * share)])
    assert "truncated" in reason or "damaged" in reason


def test_truncated_track_whose_header_comes_first_is_refused(tmp_path: Path) -> None:
    options = {"format": "ipod", "codec": "aac", "movflags": "faststart"}
    data = ffmpeg(music(), path=tmp_path / "a.m4a", **options)  # type: ignore[arg-type]
    sound(data)
    for share in (0.5, 0.9):
        reason = refusal(data[: int(len(data) * share)])
        assert "truncated" in reason or "damaged" in reason


def test_samples_that_are_no_numbers_are_refused() -> None:
    data = wav(np.array([0.0, np.nan, 0.0]), subtype="FLOAT")
    assert "not finite" in refusal(data)


def test_sound_too_long_to_hold_is_refused() -> None:
    second = Limits(seconds=1)
    assert "1 seconds" in refusal(wav(np.zeros((8001, 1))), limits=second)
    sound(wav(np.zeros((8000, 1))), limits=second)
    assert "199 samples" in refusal(wav(np.zeros((100, 2))), limits=Limits(values=199))


def test_any_damage_gives_a_sound_or_a_reason() -> None:
    rng = np.random.default_rng(1)
    good = [track(name, 0.5)[1] for name in ("m4a", "mkv", "webm", "avi")]
    good += [wav(music(0.2), format=format) for format in ("WAV", "FLAC", "OGG")]
    reasons = []
    for turn in range(210):
        data = bytearray(good[turn % len(good)])
        for place in rng.integers(len(data), size=6):
            data[place] = rng.integers(256)
        try:
            sound(bytes(data))
        except BadPayload as error:
            reasons.append(error.reason)
    assert len(reasons) > 20
    assert all("\n" not in reason and len(reason) < 220 for reason in reasons)


def test_missing_pyav_names_its_install_line(tmp_path: Path, monkeypatch: Any) -> None:
    data = track("m4a", 0.5)[1]
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "av" else find(name, *a)
    )
    assert "pip install 'sensorium[audio]'" in refusal(data)
    sound(wav(music(0.1)))
