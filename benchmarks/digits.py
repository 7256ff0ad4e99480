"""Spoken digits beside handwritten ones, one speaker left out: what fusing gains on real data.

    python -m benchmarks.digits [--quick] [--sounds DIR] [--folder DIR]

`--sounds` names a folder of the Free Spoken Digit Dataset (`{digit}_{speaker}_{index}.wav`, CC
BY-SA 4.0, DOI 10.5281/zenodo.1342401); the images are scikit-learn's handwritten digits. A
recording is paired with an image of its digit that no other split has. In each fold one speaker is
for the test alone, so the voice is as new to the model as the handwriting. Of an image the left
or the right half is shown alone: whole, they are read almost without an error.

The options are the same in all folds, and chosen without the speaker that a fold tests: of a
fold's two other speakers, one was trained on and the other's voice asked with, and the other way
round. The normalisation, the further speeds, positives by class and the temperature together had
the best mean recall within each of the three pairs of speakers, so every fold chooses alike.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from benchmarks.measure import ENVIRONMENT, ROOT
from benchmarks.results import Target, report
from features.storage import LocalStorage
from features.store import Store
from training.candidate import CandidateRecord, read_predictions
from training.evaluation.bootstrap import bootstrap_interval
from workflows.pipeline import load_pipeline

SOUNDS = ROOT.parent / "shared" / "data" / "fsdd"
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
SINGLES = ("sound", "image")
FUSIONS = ("early", "late", "attention")
VALIDATION_FROM = 40
"""Recordings of the training speakers with this index and above are for validation."""
SPEEDS = (0.9, 1.1)
"""At which a training recording is in the table too: Ko et al. 2015, "Audio augmentation for speech
recognition" (Interspeech). A voice sounds like another, of a longer or a shorter vocal tract."""
FEATURES = {
    "sound": {
        "column": "sound",
        "encoder": {
            "type": "audio_statistics",
            "features": "mfcc",
            "rate": 8000,
            "n_fft": 256,
            "hop": 80,
            "n_mels": 26,
            "segments": 5,
            "normalize": "mean_variance",
        },
    },
    "image": {"column": "image", "encoder": {"type": "hog", "size": 32, "pixels_per_cell": 8}},
}
CANDIDATES = [
    *({"type": "single", "name": m, "modality": m} for m in SINGLES),
    *({"type": kind} for kind in FUSIONS),
    {
        "type": "alignment",
        "dim": 32,
        "positives": "class",
        "temperature": 0.2,
        "learn_temperature": False,
    },
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one fold, and write nothing")
    parser.add_argument("--sounds", type=Path, default=SOUNDS, help="the folder of recordings")
    parser.add_argument("--folder", type=Path, help="where tables and stores are kept")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.gettempdir()) / "sensorium-benchmarks"
    table = recordings(options.sounds)
    speakers = sorted(set(table["speaker"]))
    lines, right, recalls = [], dict[str, list[np.ndarray]](), []
    for speaker in speakers[: 1 if options.quick else None]:
        folder = base / "digits" / speaker
        fold = run_fold(table, left_out=speaker, folder=folder)
        for name, answers in fold.right.items():
            right.setdefault(name, []).append(answers)
        recalls.append(fold.recall)
        shown = [f"{answers.mean():.3f}" for answers in fold.right.values()]
        lines.append([speaker, *shown, f"{fold.recall:.3f}", f"{fold.recall / fold.chance:.1f} ×"])
        print("  ", *lines[-1], flush=True)
    joined = {name: np.concatenate(parts) for name, parts in right.items()}
    best = max(FUSIONS, key=lambda name: float(joined[name].mean()))
    intervals = {name: bootstrap_interval(answers) for name, answers in joined.items()}
    lines.append(
        ["all", *(f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in intervals.values()), "", ""]
    )
    gains = {m: bootstrap_interval(joined["early"] * 1.0 - joined[m]) for m in SINGLES}
    report(
        "digits",
        head=("speaker left out", *joined, "sound → image recall@1", "of chance"),
        rows=lines,
        targets=[
            *(
                Target(
                    what=f"early against {m} alone, lower end of its gain",
                    limit=0.0,
                    found=gain.low,
                    at_least=True,
                )
                for m, gain in gains.items()
            ),
            Target(
                what="least recall@1 of an image of the digit that is heard, times chance",
                limit=5,
                found=min(recalls) / 0.1,
                at_least=True,
            ),
        ],
        libraries=("scikit-learn",),
        remarks=[
            f"{len(table):,} recordings of {len(speakers)} speakers beside halves of images; "
            "accuracy on the speaker that is left out. Early fusion gains "
            + " and ".join(
                f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] over the {m} alone"
                for m, gain in gains.items()
            )
            + f" (paired bootstrap, 95 %); the best fusion is {best}. Recall: of an image of the "
            "same digit, by the sound of an unheard speaker, among the halves of the test. "
            "Training recordings are in the table at "
            f"{' and '.join(map(str, SPEEDS))} of their speed as well, for all candidates alike."
        ],
        write=not options.quick,
    )


def recordings(folder: Path) -> pd.DataFrame:
    """Path, digit, speaker and index of each recording."""
    found = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.wav"))]
    rows = [
        {"sound": str(path), "digit": int(m[1]), "speaker": m[2], "index": int(m[3])}
        for path, m in found
        if m
    ]
    if not rows:
        raise SystemExit(f"{folder} holds no recordings; name their folder by --sounds")
    return pd.DataFrame(rows)


def with_speeds(table: pd.DataFrame, *, folder: Path) -> pd.DataFrame:
    """The table, and after it the training rows at other speeds, whose files go into a folder."""
    import soundfile
    import soxr

    folder.mkdir()
    parts = [table]
    trained = table[table["split"] == "train"]
    for speed in SPEEDS:
        paths = []
        for source in trained["sound"]:
            samples, rate = soundfile.read(source, dtype="float32")
            paths.append(str(folder / f"{Path(source).stem}-{speed}.wav"))
            soundfile.write(paths[-1], soxr.resample(samples, rate * speed, rate), rate)
        parts.append(trained.assign(sound=paths))
    return pd.concat(parts, ignore_index=True)


class Fold:
    """What was found with one speaker left out."""

    def __init__(self, right: dict[str, np.ndarray], *, recall: float, chance: float) -> None:
        self.right = right
        """Per candidate, bool `[N]` over the test rows."""
        self.recall, self.chance = recall, chance


def run_fold(table: pd.DataFrame, *, left_out: str, folder: Path) -> Fold:
    """Embed and train by the commands, from an empty store; then look at the test answers."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    split = np.where(table["index"] >= VALIDATION_FROM, "validation", "train")
    split = np.where(table["speaker"] == left_out, "test", split)
    made = with_speeds(table.assign(split=split), folder=folder / "sounds")
    made["image"] = paired_images(made["digit"], made["split"], folder=folder)
    made.insert(0, "id", [f"{i:05d}" for i in range(len(made))])
    made.to_csv(folder / "samples.csv", index=False)
    spec = {
        "name": "digits",
        "dataset": {"path": "samples.csv", "id": "id", "split": "split"},
        "features": FEATURES,
        "task": {"type": "classification", "target": "digit"},
        "candidates": CANDIDATES,
        "training": {"max_epochs": 60, "batch_size": 64},
        "store": "store",
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    for command in ("embed", "train"):
        run_command(command, path)
    store = Store(LocalStorage(folder / "store"))
    pipeline = load_pipeline(path)
    snapshot = store.latest("digits")
    assert snapshot is not None
    planned = pipeline.agenda.standing(store, snapshot=snapshot).candidates
    records = {c.record.name: c.record for c in planned if c.record is not None}
    (found,) = (
        item
        for item in records["alignment"].retrieval or ()
        if (item["query"], item["target"]) == ("sound", "image")
    )
    return Fold(
        {name: right_answers(store, records[name]) for name in (*SINGLES, *FUSIONS)},
        recall=found["class_recall"]["1"],
        chance=found["class_chance"]["1"],
    )


def right_answers(store: Store, record: CandidateRecord) -> np.ndarray:
    """Which test rows a candidate answers rightly, bool `[N]`."""
    answers = read_predictions(store, record.fingerprint).to_pandas()
    answers = answers[answers["split"] == "test"].sort_values("row")
    chosen = np.stack(answers["probabilities"].to_list()).argmax(axis=1)
    result: np.ndarray = chosen == answers["target"].to_numpy()
    return result


def paired_images(digits: Iterable[int], split: Iterable[str], *, folder: Path) -> list[str]:
    """The path of an image for each row: one of its digit, of a part that is its split's own."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    rng = np.random.default_rng(0)
    parts = {"train": (0.0, 0.55), "validation": (0.55, 0.7), "test": (0.7, 1.0)}
    pools: dict[tuple[int, str], np.ndarray] = {}
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(loaded.target == digit))
        for name, (start, stop) in parts.items():
            pools[digit, name] = own[int(start * len(own)) : int(stop * len(own))]
    chosen = []
    for digit, name in zip(digits, split, strict=True):
        number = int(rng.choice(pools[digit, name]))
        half = int(rng.integers(2))
        path = folder / "images" / f"{number}-{half}.png"
        if not path.exists():
            pixels = np.round(loaded.images[number] * 255 / 16).astype(np.uint8)
            pixels[:, 4 * half : 4 * half + 4] = 0
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(path)
        chosen.append(str(path))
    return chosen


def run_command(command: str, pipeline: Path) -> None:
    """A command of the project, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "workflows", command, str(pipeline)],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
