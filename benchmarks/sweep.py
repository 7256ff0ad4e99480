"""Sixteen late fusions from a command to a table, beside Ludwig fitting the same sixteen.

    python -m benchmarks.sweep [--quick] [--rows N] [--repeats N] [--folder DIR] [--peers PYTHON]

`--peers` names a Python that can import ludwig. Its wheels want a torch for CUDA; beside one for
CPUs it works without what needs that, in a virtual environment of its own:

    pip install torch==2.13.0 numpy pandas scipy scikit-learn tqdm tabulate h5py pyyaml absl-py \
        requests dataclasses-json jsonschema marshmallow marshmallow-dataclass tensorboard \
        torchmetrics torchinfo psutil protobuf rich packaging retry pyarrow transformers datasets \
        sentencepiece sacremoses gpustat openpyxl xlrd lxml
    pip install --no-deps ludwig==0.11.0 torchvision==0.28.0 torchaudio==2.11.0
    rm VENV/lib/python3*/site-packages/torchaudio/lib/*.so
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks import command
from benchmarks.digits import right_answers
from benchmarks.measure import ENVIRONMENT, in_turn, run_variant, short
from benchmarks.processes import Share, run_watched
from benchmarks.results import Target, report
from benchmarks.tables import lists
from features.storage import LocalStorage
from features.store import Store
from training.evaluation.bootstrap import Interval, bootstrap_interval
from workflows.pipeline import load_pipeline

CLASSES, DIM, NOISE = 10, 64, 5.0
MODALITIES = ("caption", "photo", "speech")
WORKERS = min(2, os.cpu_count() or 1)
WIDTH, BATCH_SIZE, EVALUATION_BATCH_SIZE = 64, 256, 2048
EPOCHS = 60
"""This project's default; Ludwig's is 100."""
WARMUP, WEIGHT_DECAY, GRADIENT_CLIP = 0.1, 0.01, 1.0
CANDIDATES = [
    {"learning_rate": rate, "dropout": dropout, "seed": seed}
    for rate in (3e-4, 1e-3, 3e-3, 1e-2)
    for dropout in (0.1, 0.3)
    for seed in (0, 1)
]
OURS, PEER = "this project, `sensorium run`", "Ludwig, one after another"


def main() -> None:
    options = command.parse(__doc__, rows=10_000, quick=2_000, repeats=1)
    epochs = 3 if options.quick else EPOCHS
    folder = options.folder / str(options.rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, rows=options.rows)
    write_settings(folder, rows=options.rows, epochs=epochs)
    pipeline = write_pipeline(folder, epochs=epochs)
    right: dict[str, np.ndarray] = {}
    fit_seconds: dict[str, list[float]] = {OURS: [], PEER: []}
    versions: dict[str, str] = {}

    def project() -> Share:
        output, share = run_project(pipeline)
        right[OURS] = test_answers(pipeline)
        fit_seconds[OURS].append(stage_seconds(output))
        return share

    def peer() -> Share:
        facts, share = run_variant(
            "benchmarks.sweep_peer", "ludwig", folder=folder, python=options.peers, whole=True
        )
        right[PEER] = np.load(folder / "ludwig-right.npy")
        fit_seconds[PEER].append(facts["fit_seconds"])
        versions.update(facts["versions"])
        return share

    variants = {OURS: (len(CANDIDATES), project)}
    if has_ludwig(options.peers):
        variants[PEER] = (len(CANDIDATES), peer)
    found = in_turn(variants, repeats=options.repeats)
    ours, targets = found[OURS], list[Target]()
    if PEER in found:
        theirs = found[PEER]
        more = {
            "times as fast as Ludwig, by the clock": theirs.seconds / ours.seconds,
            "times as fast as Ludwig, by CPU time": ours.cpu_rate / theirs.cpu_rate,
        }
        targets = [Target(what=w, limit=3, found=f, at_least=True) for w, f in more.items()]
        gain = bootstrap_interval(right[OURS].mean(axis=0) - right[PEER].mean(axis=0))
        targets.append(
            Target(
                what="mean test accuracy, upper end of its gain over Ludwig's",
                limit=0,
                found=gain.high,
                at_least=True,
            )
        )
        remarks = [remark(versions, gain=gain)]
    else:
        remarks = ["Ludwig is left out: no Python that can import it was named."]
    report(
        "sweep",
        head=(
            "16 late fusions", "seconds", "least–most", "CPU s", "others' CPUs", "fitting alone, s",
            "best test accuracy", "mean",
        ),
        rows=[
            [
                name,
                short(series.seconds),
                series.seconds_spread,
                short(series.rows / series.cpu_rate),
                f"{series.foreign:.1f}",
                short(statistics.median(fit_seconds[name])),
                f"{right[name].mean(axis=1).max():.4f}",
                f"{right[name].mean():.4f}",
            ]
            for name, series in found.items()
        ],
        targets=targets,
        remarks=[
            f"{options.rows:,} rows, three modalities of {DIM} numbers, {CLASSES} classes; "
            "learning rates from 3e-4 to 1e-2, two dropouts, two seeds; "
            f"width {WIDTH}, batch {BATCH_SIZE}, {epochs} epochs without an early stop, the best "
            "epoch by validation loss kept. From "
            "a cold process and an empty store to the printed table: embeddings, sixteen fits on "
            f"{WORKERS} workers of a thread each, their comparison, the registered winner and the "
            "report are all in it.",
            *remarks,
        ],
        write=not options.quick,
    )  # fmt: skip


def remark(versions: dict[str, str], *, gain: Interval) -> str:
    """What Ludwig's process does, and how far apart the answers are."""
    return (
        f"Ludwig {versions['ludwig']} with torch {versions['torch']}, from the start of its "
        "process to the answers to the test rows, on all threads: a hidden layer a modality and a "
        "linear layer over all of them, with the same widths, norm, optimizer, schedule, epochs "
        "and batch; ReLU where this project has GELU, which it has not. Its data are put into its "
        "form once for all sixteen, from a file that has the vectors as the texts it wants, and it "
        "writes weights alone. Mean accuracy of the sixteen, this project's more than Ludwig's by "
        f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] (paired bootstrap, 95 %). "
        "AutoGluon-Multimodal was not tried beside it."
    )


def has_ludwig(python: str) -> bool:
    """Whether a Python has Ludwig; says what to do if it has not."""
    look = "import importlib.util as u, sys; sys.exit(u.find_spec('ludwig') is None)"
    if subprocess.run([python, "-c", look], capture_output=True).returncode == 0:
        return True
    print(
        "  Ludwig is left out: name a Python that has it by --peers; see the module's first lines"
    )
    return False


def splits(rows: int) -> np.ndarray:
    """Three quarters to train on, an eighth each to validate and test."""
    return np.array(["train"] * 6 + ["validation", "test"])[np.arange(rows) % 8]


def write_data(folder: Path, *, rows: int) -> None:
    """The table as numbers and, for Ludwig, as texts of the same numbers; none is missing."""
    if (folder / "text.parquet").exists():
        return
    rng = np.random.default_rng(0)
    codes = rng.integers(CLASSES, size=rows)
    numbers: dict[str, Any] = {"id": [f"r{i:07d}" for i in range(rows)], "split": splits(rows)}
    numbers["label"] = [f"class {code}" for code in codes]
    texts = dict(numbers)
    for modality in MODALITIES:
        means = rng.normal(size=(CLASSES, DIM)).astype(np.float32)
        noise = rng.standard_normal((rows, DIM), dtype=np.float32) * NOISE
        values = (means[codes] + noise) / np.float32(np.hypot(1, NOISE))
        numbers[modality] = lists(values)
        texts[modality] = [" ".join(map(str, row)) for row in values.tolist()]
    pq.write_table(pa.table(numbers), folder / "samples.parquet")
    pq.write_table(pa.table(texts), folder / "text.parquet")


def write_settings(folder: Path, *, rows: int, epochs: int) -> None:
    """What the peer's process is to do."""
    training_rows = int((splits(rows) == "train").sum())
    settings = {
        "modalities": MODALITIES,
        "candidates": CANDIDATES,
        "width": WIDTH,
        "batch_size": BATCH_SIZE,
        "evaluation_batch_size": EVALUATION_BATCH_SIZE,
        "epochs": epochs,
        "steps": epochs * -(-training_rows // BATCH_SIZE),
        "warmup": WARMUP,
        "weight_decay": WEIGHT_DECAY,
        "gradient_clip": GRADIENT_CLIP,
    }
    (folder / "sweep.json").write_text(json.dumps(settings), encoding="utf-8")


def write_pipeline(folder: Path, *, epochs: int) -> Path:
    """The YAML file of the same sweep, in a folder for all that its run makes."""
    spec = {
        "name": "sweep",
        "dataset": {"path": "../samples.parquet", "id": "id", "split": "split"},
        "features": {
            name: {"column": name, "encoder": {"type": "vector", "dim": DIM}} for name in MODALITIES
        },
        "task": {"type": "classification", "target": "label"},
        "candidates": [
            {"type": "late", "name": f"late-{i:02d}", "width": WIDTH, **candidate}
            | {"weight_decay": WEIGHT_DECAY}
            for i, candidate in enumerate(CANDIDATES)
        ],
        "training": {
            "workers": WORKERS,
            "batch_size": BATCH_SIZE,
            "max_epochs": epochs,
            "patience": epochs,
            "warmup": WARMUP,
            "gradient_clip": GRADIENT_CLIP,
        },
        "store": "store",
    }
    path = folder / "project" / "pipeline.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def run_project(pipeline: Path) -> tuple[str, Share]:
    """`sensorium run` in a process of its own, with nothing there of an earlier one."""
    for path in pipeline.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != pipeline:
            path.unlink()
    command_line = [sys.executable, "-m", "workflows", "run", str(pipeline)]
    watched = run_watched(command_line, env=ENVIRONMENT)
    (pipeline.parent / "output.txt").write_text(watched.output, encoding="utf-8")
    return watched.output, watched.share


def stage_seconds(output: str) -> float:
    """What the train stage says it took: `16 candidates fitted in 12.3 s`, or `1 min 5 s`."""
    (line,) = re.findall(r"candidates? fitted in (.*)", output)
    parts = re.findall(r"([\d.]+) ?(min|s)\b", line)
    return sum(float(value) * (60 if unit == "min" else 1) for value, unit in parts)


def test_answers(pipeline: Path) -> np.ndarray:
    """Which test rows each of the candidates answers rightly, bool `[16, N]`."""
    loaded = load_pipeline(pipeline)
    store = Store(LocalStorage(pipeline.parent / "store"))
    snapshot = store.latest("sweep")
    assert snapshot is not None, "the benchmark's run has committed no snapshot"
    planned = loaded.agenda.standing(store, snapshot=snapshot).candidates
    return np.stack([right_answers(store, c.record) for c in planned if c.record is not None])


if __name__ == "__main__":
    main()
