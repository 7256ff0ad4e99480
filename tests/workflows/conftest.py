"""A tiny pipeline with a table, a store and fitted candidates, for the tests of stage 3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from benchmarks.servers import mlflow_server as serve_mlflow
from benchmarks.without_ray import embedded, fitted
from features.snapshot import Snapshot
from features.storage import LocalStorage
from features.store import Store
from training.candidate import CandidateRecord, PlannedCandidate
from workflows.pipeline import Pipeline, load_pipeline
from workflows.promotion.promote import promote

ROWS = 240
YAML = """
name: shapes
dataset:
  path: table.parquet
  split: split
  slices: [language]
  shard_rows: {{min: 32, target: 64, max: 128}}
features:
  caption: {{column: {text}, encoder: {{type: hashing, dim: 64}}}}
  photo: {{column: picture, encoder: {{type: hog, size: {size}, pixels_per_cell: 8}}}}
task: {{target: shape}}
candidates:
  - {{type: single, modality: caption, width: 8, dropout: 0, learning_rate: 0.02}}
  - {{type: single, modality: photo, width: 8, dropout: 0, learning_rate: 0.02}}
  - {{type: early, width: 16, dropout: 0, learning_rate: 0.02}}
training: {{max_epochs: 8, batch_size: 24, patience: 8}}
promotion: {{{promotion}}}
"""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """A folder with a table of shapes, drawn and described, and what was made of it."""

    folder: Path
    pipeline: Pipeline
    store: Store
    snapshot: Snapshot
    planned: Sequence[PlannedCandidate]

    @property
    def records(self) -> list[CandidateRecord]:
        return [plan.record for plan in self.planned if plan.record is not None]

    def elsewhere(self, folder: Path, **options: Any) -> Shapes:
        """The same made of the table in another folder, with other options of `make_shapes`."""
        return make_shapes(folder, **options)

    def table(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "table.parquet")


@pytest.fixture(scope="session")
def shapes_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 drawings of bars with a sentence each; some of either are missing, one is broken."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(7)
    (folder / "pictures").mkdir()
    rows = []
    for i in range(ROWS):
        shape = int(rng.integers(3)) + 10
        drawn = rng.integers(0, 120, size=(16, 16)).astype(np.uint8)
        if shape == 10:
            drawn[6:10] = 255
        elif shape == 11:
            drawn[:, 6:10] = 255
        else:
            np.fill_diagonal(drawn, 255)
        picture = f"pictures/{i}.png"
        Image.fromarray(drawn).save(folder / picture)
        said = shape if rng.random() < 0.8 else int(rng.integers(3)) + 10
        word = {10: "flat", 11: "upright", 12: "slanted"}[said]
        rows.append(
            {
                "sample_id": f"s{i:03}",
                "text": None if rng.random() < 0.15 else f"a {word} bar, number {i}",
                "picture": None if rng.random() < 0.15 else picture,
                "shape": shape,
                "language": "en" if i % 3 else "fr",
                "split": "train" if i < 120 else "validation" if i < 160 else "test",
            }
        )
    (folder / "pictures" / "200.png").write_bytes(b"\x89PNG cut short")
    rows[200]["picture"] = "pictures/200.png"
    rows[201]["shape"] = None
    table = pa.Table.from_pylist(rows)
    pa.parquet.write_table(table, folder / "table.parquet")
    return folder


def make_shapes(folder: Path, *, promotion: str = "", size: int = 16, text: str = "text") -> Shapes:
    """Embed the table of a folder into the store beside it and fit the candidates, without Ray."""
    (folder / "shapes.yaml").write_text(YAML.format(promotion=promotion, size=size, text=text))
    pipeline = load_pipeline(folder / "shapes.yaml")
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = embedded(pipeline)
    planned = fitted(pipeline, store, snapshot)
    return Shapes(folder=folder, pipeline=pipeline, store=store, snapshot=snapshot, planned=planned)


@pytest.fixture(scope="session")
def fitted_shapes(shapes_table: Path) -> Shapes:
    """The tiny pipeline, embedded and fitted; nothing is recorded in MLflow yet."""
    return make_shapes(shapes_table)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them; to make one takes seconds."""
    from workflows.tracking import connected

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    with connected(f"sqlite:///{path}") as client:
        client.search_experiments()
        client.search_registered_models()
    return path


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """A running server of MLflow's."""

    uri: str
    database: Path


@pytest.fixture(scope="session")
def mlflow_server(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """MLflow's own server, with a database of its own; it keeps the artifacts too."""
    folder = tmp_path_factory.mktemp("server")
    database = folder / "mlflow.db"
    shutil.copyfile(empty_database, database)
    with serve_mlflow(database, artifacts=f"{folder}/artifacts", environment={}) as uri:
        yield MlflowServer(uri=uri, database=database)


@pytest.fixture
def mlflow_uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a database of the test's own, which pipelines use."""
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(empty_database, path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def champion_uri(
    fitted_shapes: Shapes, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A tracking URI whose model `shapes` has a champion."""
    path = tmp_path_factory.mktemp("champion") / "mlflow.db"
    path.write_bytes(empty_database.read_bytes())
    uri = f"sqlite:///{path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        done = promote(
            pipeline=fitted_shapes.pipeline,
            store=fitted_shapes.store,
            snapshot=fitted_shapes.snapshot,
            records=fitted_shapes.records,
        )
    assert done.promoted and done.winner == "early"
    return uri
