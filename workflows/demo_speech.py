"""Spoken digits: espeak-ng's voices, heard in a room.

espeak-ng's oscillators and noise run on from one word to the next, so what a word sounds like
depends on all the words before it. All words are therefore spoken in one order by one fresh
process with a set seed, and are then the same samples each time.

Run as a program, with a folder as argument, this file is that process.
"""

from __future__ import annotations

import ctypes
import io
import json
import subprocess
import sys
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

RATE = 16_000
"""Sampling rate of the demo's sounds, in Hz."""

VOICES = {"en": "en-us", "zh": "cmn", "ja": "ja"}
"""Language → espeak-ng's voice for it."""

WORDS = {
    "en": (
        *(("zero", "zero", "zero", "oh"), ("one",), ("two",), ("three",), ("four",)),
        *(("five",), ("six",), ("seven",), ("eight",), ("nine",)),
    ),
    "zh": (
        *(("零",), ("一", "一", "一", "幺"), ("二", "二", "二", "两"), ("三",), ("四",)),
        *(("五",), ("六",), ("七",), ("八",), ("九",)),
    ),
    "ja": (
        *(("ゼロ", "れい"), ("いち",), ("に",), ("さん",), ("よん", "よん", "し")),
        *(("ご",), ("ろく",), ("なな", "なな", "しち"), ("はち",), ("きゅう", "きゅう", "く")),
    ),
}
"""Language → for each digit the words for it, as often as they are said."""

SPEAKERS = {
    "train": (
        *("m1", "m2", "m4", "m6", "m8", "f1", "f2", "f4", "Alex", "Annie", "aunty", "belinda"),
        *("benjamin", "boris", "ed", "edward", "grandma", "iven", "john", "pedro", "victor"),
    ),
    "validation": ("m3", "f5", "grandpa", "linda", "pablo"),
    "test": ("m7", "f3", "Andrea", "antonio", "michel", "robert"),
}
"""Split → the voice variants of espeak-ng that speak in it, and in no other."""

_SPEECH = {"rate": 1, "pitch": 3, "range": 4}
_SYNCHRONOUS = 2
_UTF8 = 1
_FULL_SCALE = 32767


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One word as someone says it."""

    text: str
    language: str
    speaker: str
    rate: int
    """Words per minute, 80 to 450."""
    pitch: int
    """0 to 99; 50 is the variant's own."""
    range: int
    """Liveliness of the pitch, 0 to 99; 50 is the variant's own."""


def speak(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """What espeak-ng says: for each utterance float32 `[T]` at 16 kHz, dry, peak 1.

    Always the same samples for the same list; an utterance elsewhere in a list differs in
    phase and noise. Raises ImportError, naming the extra to install, without the packages of
    the demo, and RuntimeError with espeak-ng's own words if it fails.
    """
    from features.encoders.base import import_extra

    import_extra("espeakng_loader", extra="demo")
    soxr = import_extra("soxr", extra="demo")
    with tempfile.TemporaryDirectory(prefix="sensorium-speech-") as name:
        folder = Path(name)
        request = json.dumps([asdict(utterance) for utterance in utterances])
        (folder / "utterances.json").write_text(request)
        program = [sys.executable, "-P", __file__, name]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"espeak-ng did not speak (exit code {done.returncode}):\n{done.stderr.strip()}"
            )
        rate = int((folder / "rate.txt").read_text())
        lengths = np.load(folder / "lengths.npy")
        samples = np.load(folder / "samples.npy")
    words = np.split(samples.astype(np.float64), np.cumsum(lengths)[:-1])
    resampled = (soxr.resample(_trim(word), rate, RATE) for word in words)
    return [(word / np.abs(word).max()).astype(np.float32) for word in resampled]


def in_a_room(dry: np.ndarray, *, snr: float, rng: np.random.Generator) -> np.ndarray:
    """A dry sound `[T]` as a microphone in a room hears it: float32 `[T']` in -1..1.

    Echoes that die away exponentially (a reverberation time of 0.1 to 0.4 s), a duller or
    brighter microphone, noise whose power falls as 1/f^a, and another level. `snr` is the
    ratio of the word's mean power to the noise's, in dB.
    """
    before, after = (int(RATE * rng.uniform(0.02, 0.15)) for _ in range(2))
    reverberation = rng.uniform(0.1, 0.4)
    times = np.arange(int(RATE * reverberation)) / RATE
    echoes = rng.standard_normal(times.size) * 10 ** (-3 * times / reverberation)
    echoes *= rng.uniform(0.1, 0.4) / np.linalg.norm(echoes)
    echoes[0] = 1.0
    tilt = rng.uniform(-0.3, 0.3)
    wet = np.convolve(_convolve(dry, echoes), [1.0, tilt])
    power = np.mean(np.square(wet[: dry.size]))
    heard = np.concatenate([np.zeros(before), wet[: dry.size + RATE // 10], np.zeros(after)])
    noise = _coloured_noise(heard.size, exponent=rng.uniform(0.2, 1.4), rng=rng)
    heard = heard + noise * np.sqrt(power / 10 ** (snr / 10))
    return (heard * (rng.uniform(0.15, 0.9) / np.abs(heard).max())).astype(np.float32)


def wav_bytes(sound: np.ndarray) -> bytes:
    """A mono sound `[T]` in -1..1 as a WAV file of 16-bit PCM at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(sound * _FULL_SCALE).astype("<i2").tobytes())
    return buffer.getvalue()


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The full linear convolution, by FFT of a length that is quick."""
    size = first.size + second.size - 1
    length = 1 << (size - 1).bit_length()
    spectrum = np.fft.rfft(first, length) * np.fft.rfft(second, length)
    return np.fft.irfft(spectrum, length)[:size]


def _coloured_noise(size: int, *, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Noise `[size]` of mean power 1 whose power density falls as 1/f^exponent above 60 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequencies = np.fft.rfftfreq(size, 1 / RATE)
    noise = np.fft.irfft(spectrum * np.maximum(frequencies, 60.0) ** (-exponent / 2), size)
    return noise / np.sqrt(np.mean(np.square(noise)))


def _trim(word: np.ndarray) -> np.ndarray:
    """The word without the silence (1 % of its peak) before and after it."""
    loud = np.flatnonzero(np.abs(word) > 0.01 * np.abs(word).max(initial=0.0))
    if not loud.size:
        raise RuntimeError("espeak-ng gave silence for a word; is its voice data complete?")
    return word[loud[0] : loud[-1] + 1]


def _say_all(folder: Path) -> None:
    """Read `utterances.json` in a folder; write `rate.txt`, `lengths.npy` and `samples.npy`."""
    import espeakng_loader

    # A link, since espeak-ng takes no path of more than about 200 characters.
    data = Path(espeakng_loader.get_data_path())
    (folder / "espeak-ng-data").symlink_to(data)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng finds no data in {data}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    heard: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def listen(samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(listen)
    words: list[np.ndarray] = []
    for utterance in _requested(folder):
        voice = f"{VOICES[utterance.language]}+{utterance.speaker}"
        # A variant that is not there is left out by espeak-ng without a word.
        variant = data / "voices" / "!v" / utterance.speaker
        if not variant.is_file() or library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for name, code in _SPEECH.items():
            library.espeak_SetParameter(code, getattr(utterance, name), 0)
        text = utterance.text.encode()
        heard.clear()
        if library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None):
            raise RuntimeError(f"espeak-ng cannot say {utterance.text!r} as {voice!r}")
        words.append(np.frombuffer(b"".join(heard), np.int16))
    np.save(folder / "lengths.npy", np.array([word.size for word in words]))
    np.save(folder / "samples.npy", np.concatenate(words))
    (folder / "rate.txt").write_text(str(rate))


def _requested(folder: Path) -> list[Utterance]:
    return [Utterance(**fields) for fields in json.loads((folder / "utterances.json").read_text())]


if __name__ == "__main__":
    _say_all(Path(sys.argv[1]))
