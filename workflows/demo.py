"""The demo's data: digits drawn by hand, spoken and written, in three languages.

Made from real parts without a download: the scans of handwritten digits that scikit-learn
carries, the voices of espeak-ng, and sentences. No modality is enough alone, about 15 % of
each are missing, and a handful of payloads are broken.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoders.base import import_extra
from features.storage import LocalStorage
from workflows.demo_sentences import write_sentence
from workflows.demo_speech import SPEAKERS, WORDS, Utterance, in_a_room, speak, wav_bytes

TABLE = "samples.parquet"
LANGUAGES = ("en", "zh", "ja")
MISSING = 0.15
"""Share of each modality that is null."""

FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
"""First scan of each form in scikit-learn's file.

Each writer filled in one form of the same 130 digits; a form begins where they begin again
(some have lost a few to the scanner). Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998, doi:10.24432/C50P49.
"""

SCANS = 1797
"""Scans in scikit-learn's file."""

FORM_SPLITS = (
    *("train", "test", "train", "train", "validation", "train", "test"),
    *("train", "train", "validation", "train", "test", "train", "validation"),
)
"""Split of each form, and so of its writer."""

SNR = (12.0, 30.0)
"""Least and greatest signal-to-noise ratio of the sounds, in dB."""

_METADATA = b"sensorium.demo"


@dataclass(frozen=True, kw_only=True)
class DigitSample:
    """One sample before it is written; a modality is None where it is missing."""

    sample_id: str
    digit: int
    language: str
    speaker: str
    writer: str
    split: str
    sentence: str | None
    scan: np.ndarray | None
    """Float `[8, 8]`, ink from 0 to 16."""
    utterance: Utterance | None

    @property
    def complete(self) -> bool:
        """Whether no modality is missing."""
        return None not in (self.sentence, self.utterance) and self.scan is not None


def make_digits(
    *,
    folder: Path,
    samples: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the demo's table, images and sounds; returns the path of the table.

    The same bytes for the same `samples` and `seed`. The table is written last: if it is
    there, nothing is written. `samples` takes that many of the 1,797, evenly from all writers;
    `on_progress` hears how many samples of how many are done.

    The table `samples.parquet` has the columns sample_id, sentence, drawing and speech (paths
    relative to the folder), digit, language, speaker, writer and split. No speaker and no
    writer is in two splits. Seven payloads are broken: two drawings cut off, one that is not
    there, a sound of no frames, one cut off, one that is not there, and a text of blanks.

    Raises ValueError if the folder holds a table of other `samples` or `seed`, or if `samples`
    is not within 30 to 1,797; ImportError, naming the extra to install, without the packages
    of the demo.
    """
    folder = Path(folder).absolute()
    count = SCANS if samples is None else samples
    made_of = {"samples": count, "seed": seed}
    table = folder / TABLE
    if table.exists():
        _check_made_of(table, made_of)
        return table
    if not 30 <= count <= SCANS:
        raise ValueError(f"samples is {count}; the demo has from 30 to 1,797 samples")
    plan = _plan(samples=count, seed=seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "sounds").mkdir(exist_ok=True)
    utterances = [sample.utterance for sample in plan if sample.utterance is not None]
    words = iter(speak(utterances))
    rows = []
    for number, sample in enumerate(plan):
        rng = np.random.default_rng([seed, 1, number])
        drawing = speech = None
        if sample.scan is not None:
            drawing = f"images/{sample.sample_id}.png"
            (folder / drawing).write_bytes(draw(sample.scan, rng=rng))
        if sample.utterance is not None:
            speech = f"sounds/{sample.sample_id}.wav"
            sound = in_a_room(next(words), snr=rng.uniform(*SNR), rng=rng)
            (folder / speech).write_bytes(wav_bytes(sound))
        rows.append(_row(sample, drawing=drawing, speech=speech))
        if on_progress is not None:
            on_progress(number + 1, len(plan))
    complete = [number for number, sample in enumerate(plan) if sample.complete]
    chosen = np.random.default_rng([seed, 2]).choice(complete, size=7, replace=False)
    _break(folder, [rows[number] for number in chosen])
    _write_table(folder, rows, made_of)
    return table


def draw(scan: np.ndarray, *, rng: np.random.Generator) -> bytes:
    """A scan (ink 0 to 16, `[8, 8]`) as a grey 32×32 PNG: faint, noisy, and smudged at times.

    Ink is dark on light, unevenly lit paper; one drawing in four has a pale sticker over
    some of it.
    """
    imaging = import_extra("PIL.Image", extra="demo")
    ink = imaging.fromarray((scan * (255 / 16)).astype(np.uint8))
    ink = ink.resize((32, 32), imaging.Resampling.BICUBIC)
    height, width = np.mgrid[-1:1:32j, -1:1:32j]
    slope = rng.uniform(-25, 25, size=2)
    paper = rng.uniform(205, 240) + slope[0] * height + slope[1] * width
    pixels = paper - np.asarray(ink, dtype=np.float64) * rng.uniform(0.3, 0.85)
    if rng.random() < 0.25:
        top, left = rng.integers(2, 20, size=2)
        tall, wide = rng.integers(7, 14, size=2)
        pixels[top : top + tall, left : left + wide] = paper.mean() + rng.uniform(-30, 10)
    pixels += rng.standard_normal(pixels.shape) * rng.uniform(4, 24)
    buffer = io.BytesIO()
    imaging.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _plan(*, samples: int, seed: int) -> list[DigitSample]:
    """The samples, in the order of the scans; each but the sound depends on its scan alone."""
    scans, digits = _load_scans()
    edges = np.arange(samples + 1) * len(scans) // samples
    chosen = np.random.default_rng([seed, 0]).integers(edges[:-1], edges[1:])
    return [_plan_sample(int(at), scans[at], int(digits[at]), seed=seed) for at in chosen]


def _plan_sample(at: int, scan: np.ndarray, digit: int, *, seed: int) -> DigitSample:
    rng = np.random.default_rng([seed, 3, at])
    form = int(np.searchsorted(FORM_STARTS, at, side="right")) - 1
    split = FORM_SPLITS[form]
    language = str(rng.choice(LANGUAGES))
    speaker = str(rng.choice(SPEAKERS[split]))
    words = WORDS[language][digit]
    utterance = Utterance(
        text=words[rng.integers(len(words))],
        language=language,
        speaker=speaker,
        rate=int(rng.integers(110, 230)),
        pitch=int(rng.integers(30, 71)),
        range=int(rng.integers(30, 71)),
    )
    sentence = write_sentence(digit=digit, language=language, rng=rng)
    missing = rng.random(3) < MISSING
    while missing.all():
        missing = rng.random(3) < MISSING
    return DigitSample(
        sample_id=f"digit-{at:04d}",
        digit=digit,
        language=language,
        speaker=speaker,
        writer=f"form-{form + 1:02d}",
        split=split,
        sentence=None if missing[0] else sentence,
        scan=None if missing[1] else scan,
        utterance=None if missing[2] else utterance,
    )


def _load_scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


def _row(sample: DigitSample, *, drawing: str | None, speech: str | None) -> dict[str, Any]:
    return {
        "sample_id": sample.sample_id,
        "sentence": sample.sentence,
        "drawing": drawing,
        "speech": speech,
        "digit": sample.digit,
        "language": sample.language,
        "speaker": sample.speaker,
        "writer": sample.writer,
        "split": sample.split,
    }


def _break(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Break one payload of each of seven complete rows, and its file with it."""
    cut, cut_too, lost_drawing, empty, cut_sound, lost_sound, blank = rows
    for row in (cut, cut_too):
        _cut(folder / row["drawing"], share=0.5)
    (folder / lost_drawing["drawing"]).unlink()
    (folder / empty["speech"]).write_bytes(wav_bytes(np.zeros(0)))
    _cut(folder / cut_sound["speech"], share=0.0)
    (folder / lost_sound["speech"]).unlink()
    blank["sentence"] = " \u3000 "


def _cut(path: Path, *, share: float) -> None:
    """Keep a file's first 20 bytes and `share` of the rest."""
    data = path.read_bytes()
    path.write_bytes(data[: 20 + int(share * (len(data) - 20))])


def _write_table(folder: Path, rows: list[dict[str, Any]], made_of: dict[str, int]) -> None:
    text = ("sample_id", "sentence", "drawing", "speech")
    groups = ("language", "speaker", "writer", "split")
    schema = pa.schema(
        [
            *(pa.field(name, pa.string()) for name in text),
            pa.field("digit", pa.int64()),
            *(pa.field(name, pa.string()) for name in groups),
        ],
        metadata={_METADATA: json.dumps(made_of, sort_keys=True)},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    LocalStorage(folder).write_once(TABLE, sink.getvalue())


def _check_made_of(table: Path, made_of: dict[str, int]) -> None:
    """ValueError if a table was made with other settings; one changed by hand is left alone."""
    written = (pq.read_schema(table).metadata or {}).get(_METADATA)
    if written is not None and json.loads(written) != made_of:
        old = ", ".join(f"{name} {value}" for name, value in json.loads(written).items())
        new = ", ".join(f"{name} {value}" for name, value in made_of.items())
        raise ValueError(
            f"{table} was made with {old}, not {new}; give another folder, or delete this one"
        )
