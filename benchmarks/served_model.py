"""A fitted model of texts, images and sounds, registered in a database of its own, to be served."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from PIL import Image

from benchmarks.without_ray import embedded, fitted
from features.snapshot import Snapshot
from features.storage import LocalStorage
from features.store import Store
from training.candidate import CandidateRecord
from workflows import scoring
from workflows.inputs import inputs_of
from workflows.pipeline import Pipeline, load_pipeline
from workflows.tracking import connected

NAME = "served"
WORDS = ("low", "middle", "high")
YAML = """
name: served
dataset: {{path: table.parquet, id: id, split: split}}
features:
  caption: {{column: text, encoder: {caption}}}
  photo: {{column: picture, encoder: {photo}}}
  voice: {{column: sound, encoder: {voice}}}
  about: {{columns: [age, ward], encoder: {{type: table, numeric: [age], categorical: [ward]}}}}
task: {{target: level}}
candidates: [{{type: early, width: 32, dropout: 0, learning_rate: 0.01}}]
training: {{max_epochs: 12, batch_size: 32, calibration: temperature}}
"""
ENCODERS = {
    "caption": "{type: hashing, dim: 256}",
    "photo": "{type: hog, size: 64, pixels_per_cell: 16}",
    "voice": "{type: audio_statistics, n_mels: 16}",
}


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Where it is, and rows that it answers."""

    folder: Path
    uri: str
    """Of the tracking database."""
    rows: pd.DataFrame
    """The test rows: `text`, `picture` and `sound` as paths, `age`, `ward`."""
    record: CandidateRecord

    @property
    def model(self) -> str:
        return f"models:/{NAME}@champion"

    def inline(self) -> pd.DataFrame:
        """The rows with files as data URIs."""
        return self.rows.assign(
            **{name: self.rows[name].map(self._inline) for name in ("picture", "sound")}
        )

    def _inline(self, path: str) -> str:
        return data_uri((self.folder / path).read_bytes())

    def environment(self) -> dict[str, str]:
        """For a process that serves it."""
        return {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        }


def data_uri(content: bytes, *, kind: str = "") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def make_served_model(
    folder: Path, *, rows: int = 120, database: bytes = b"", encoders: dict[str, str] | None = None
) -> ServedModel:
    """Draw, embed, fit and register, without Ray; `database` is one with MLflow's empty tables."""
    folder.mkdir(parents=True, exist_ok=True)
    table = _table(folder, rows=rows)
    (folder / "served.yaml").write_text(YAML.format(**{**ENCODERS, **(encoders or {})}))
    if database:
        (folder / "mlflow.db").write_bytes(database)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    pipeline = load_pipeline(folder / "served.yaml")
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = embedded(pipeline)
    record = fitted(pipeline, store, snapshot)[0].record
    assert record is not None
    _register(pipeline, store=store, snapshot=snapshot, record=record, uri=uri, folder=folder)
    test = table[table.split == "test"].reset_index(drop=True)
    chosen = test[["text", "picture", "sound", "age", "ward"]]
    return ServedModel(folder=folder, uri=uri, rows=chosen, record=record)


def _table(folder: Path, *, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    for name in ("pictures", "sounds"):
        (folder / name).mkdir(exist_ok=True)
    made: list[dict[str, Any]] = []
    for i in range(rows):
        level = int(rng.integers(3))
        drawn = rng.integers(0, 90, size=(64, 64, 3)).astype(np.uint8)
        drawn[20 * level : 20 * level + 10] = 255
        Image.fromarray(drawn).save(folder / f"pictures/{i}.png")
        tone = np.sin(np.arange(4000) * (0.05 + 0.1 * level)) * 0.5 + rng.normal(0, 0.05, 4000)
        buffer = io.BytesIO()
        soundfile.write(buffer, tone.astype(np.float32), 8000, format="WAV", subtype="PCM_16")
        (folder / f"sounds/{i}.wav").write_bytes(buffer.getvalue())
        made.append(
            {
                "id": f"r{i:04}",
                "text": f"it is {WORDS[level]}, says number {i}",
                "picture": f"pictures/{i}.png",
                "sound": f"sounds/{i}.wav",
                "age": float(20 + 20 * level + rng.normal(0, 8)),
                "ward": "north" if rng.random() < 0.5 else "south",
                "level": WORDS[level],
                "split": ("train", "train", "validation", "test")[i % 4],
            }
        )
    table = pd.DataFrame(made)
    # Every modality is missing somewhere, so that the model has learned to do without it.
    for place, column in enumerate(("text", "picture", "sound")):
        table.loc[table.index % 16 == 4 + place, column] = None
    table.to_parquet(folder / "table.parquet")
    return table


def _register(
    pipeline: Pipeline,
    *,
    store: Store,
    snapshot: Snapshot,
    record: CandidateRecord,
    uri: str,
    folder: Path,
) -> None:
    import mlflow

    with connected(uri) as client:
        experiment = client.create_experiment(NAME, artifact_location=str(folder / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            inputs = inputs_of(record, features=pipeline.spec.features, snapshot=snapshot)
            logged = scoring.log_model(store=store, record=record, inputs=inputs)
        version = mlflow.register_model(logged, NAME)
        client.set_registered_model_alias(NAME, "champion", version.version)
