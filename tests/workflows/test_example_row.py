"""The report's lines that load the champion: run as they stand, on every form of payload."""

from __future__ import annotations

import dataclasses
import html
import os
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from features.encoders.table import TableSpec
from features.spec import FeatureSpec
from tests.features.films import film
from tests.workflows.report_cases import digits
from workflows.inputs import Input, column_names, example_cells
from workflows.reporting.data_findings import ModalityFindings
from workflows.reporting.findings import ReportData
from workflows.reporting.report import _commands, render
from workflows.scoring import SensoriumModel
from workflows.serving.cells import payloads
from workflows.serving.places import Places
from workflows.serving.signature import example

RECORD = [{"age": a, "ward": w, "code": c} for a, w, c in ((1.5, "west", "7"), (3.0, "east", "8"))]
SERIES = {"type": "series", "channels": 1, "scaling": "none"}
SCALE = {"center": 0.5, "scale": 2.0}
FEATURES: dict[str, dict[str, Any]] = {
    "text": {"column": "said", "encoder": {"type": "hashing"}},
    "letter": {"column": "file", "uri": True, "encoder": {"type": "hashing"}},
    "image": {"column": "it's a photo", "encoder": {"type": "hog"}},
    "sound": {"column": "wav", "encoder": {"type": "audio_statistics"}},
    "cut": {
        "column": "long", "start": "from", "end": "to", "encoder": {"type": "audio_statistics"}
    },
    "late": {"column": "late", "start": "after", "encoder": {"type": "audio_statistics"}},
    "film": {"column": "clip", "encoder": {"type": "video_frames", "image": {"type": "hog"}}},
    "track": {"column": "clip", "encoder": {"type": "audio_statistics"}},
    "signal": {"column": "signal", "encoder": SERIES},
    "timed": {"column": "timed", "encoder": {**SERIES, "time": 0}},
    "vitals": {
        "column": "vitals",
        "encoder": {"type": "series", "channels": 3, "statistics": {"channels": [SCALE] * 3}},
    },
    "leads": {"columns": ["t", "I", "II"], "encoder": {**SERIES, "channels": 2, "time": 0}},
    "alone": {"columns": ["lonely"], "encoder": SERIES},
    "record": {
        "columns": ["age", "ward", "code"],
        "encoder": TableSpec(categorical=("code",)).fitted(RECORD).model_dump(mode="json"),
    },
    "field": {"columns": ["height"], "encoder": TableSpec().fitted([{"height": 2.0}]).model_dump()},
    "vector": {"column": "clip_embedding", "encoder": {"type": "vector", "dim": 512}},
    "short": {"column": "short", "encoder": {"type": "vector", "dim": 2}},
}  # fmt: skip


def inputs(*names: str) -> dict[str, Input]:
    found = {}
    for name in names or FEATURES:
        feature = FeatureSpec.model_validate(FEATURES[name])
        encoder = feature.encoder
        found[name] = Input(
            columns=feature.payload_columns,
            encoder=encoder.model_dump(mode="json"),
            encoder_fingerprint=encoder.fingerprint(),
            dim=encoder.load().dim,
        )
    return found


def report_of(items: dict[str, Input]) -> ReportData:
    modalities = tuple(
        ModalityFindings(
            name=name, cells=example_cells(item), kind=item.columns.kind, encoder="", options="",
            fingerprint="", dim=item.dim, present=1, missing=0, bad=0,
        )
        for name, item in items.items()
    )  # fmt: skip
    return dataclasses.replace(digits(), modalities=modalities)


def snippet(items: dict[str, Input]) -> str:
    """The lines under "Load the champion"."""
    texts = {command["title"]: command["text"] for command in _commands(report_of(items))}
    return texts["Load the champion"]


def frame_of(code: str, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The rows that the lines ask the model about."""
    asked: list[pd.DataFrame] = []

    class Model:
        predict = staticmethod(asked.append)

    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda uri: None)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda uri: Model)
    exec(code, {})
    (frame,) = asked
    return frame


@pytest.fixture
def files(tmp_path: Path) -> str:
    """A folder with the files that the example row names."""
    folder = tmp_path / "path/to"
    os.makedirs(folder)
    (folder / "text.txt").write_text("a sentence in a file")
    Image.new("RGB", (32, 32), "red").save(folder / "image.png")
    tone = np.sin(np.arange(32_000) / 9).astype(np.float32)
    soundfile.write(folder / "sound.wav", tone, 16_000)
    (folder / "video.mp4").write_bytes(film(10, sound=True))
    return str(tmp_path)


@pytest.mark.parametrize("name", FEATURES)
def test_the_model_takes_the_row_that_the_report_shows(
    name: str, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SensoriumModel()
    model.inputs, model._encoders, model._proven = inputs(name), {}, {}
    model._lock, model._folder = threading.Lock(), Path(files)
    rows = frame_of(snippet(model.inputs), monkeypatch)
    columns = model.inputs[name].columns
    assert list(rows.columns) == list(columns.names) and len(rows) == 1
    problems: list[list[str]] = [[]]
    values = payloads(rows, columns=columns)
    embedded = model._embed(name, values=values, base=files, problems=problems)
    assert problems == [[]] and set(embedded) == {0}
    # The example that MLflow keeps beside the model is of the same form, but for files, which are
    # in it where they are easily made, so that a server takes it too.
    shown = example(model.inputs)
    inline = {name: str(cell)[:5] == "data:" for name, cell in shown.iloc[0].items()}
    assert any(inline.values()) == (columns.kind in ("image", "audio") or columns.uri)
    for column, cell in shown.iloc[0].items():
        assert inline[column] or cell == rows.iloc[0][column]
    places = None if columns.kind == "video" else Places()
    values = payloads(shown.iloc[:1], columns=columns, places=places)
    embedded = model._embed(name, values=values, base=files, problems=problems)
    assert problems == [[]] and set(embedded) == {0}
    assert shown.iloc[1].isna().all()
    model._proven = {}
    monkeypatch.setattr(model, "fitted", lambda: None)
    model.load()
    assert set(model._proven) == ({name} if columns.kind != "video" else set())


def test_all_columns_stand_in_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    items = inputs()
    rows = frame_of(snippet(items), monkeypatch)
    assert list(rows.columns) == column_names(items)
    assert "'clip_embedding': [1.0] * 512," in snippet(items)
    page = html.unescape(render(report_of(items)))
    assert f'<h3>Load the champion</h3><pre tabindex="0">{snippet(items)}</pre>' in page


def test_of_many_columns_some_are_shown_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = [f"column {n}" for n in range(100)]
    encoder = TableSpec().fitted([dict.fromkeys(columns, 1.0)])
    feature = FeatureSpec(columns=tuple(columns), encoder=encoder)
    item = Input(
        columns=feature.payload_columns, encoder=encoder.model_dump(mode="json"),
        encoder_fingerprint="", dim=encoder.dim,
    )  # fmt: skip
    code = snippet({"many": item})
    assert list(frame_of(code, monkeypatch).columns) == columns[:24]
    assert "# and 76 more columns; what is left out is missing" in code
