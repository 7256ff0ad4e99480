"""A week of a scheduled pipeline, on MLflow's own server and a store in S3, as its users see it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from features.encoders.image import HogSpec
from features.encoders.text import HashingSpec
from features.storage import Storage, open_storage
from features.store import Store
from features.verification import verify
from tests.conftest import BUCKET, make_bucket
from tests.workflows.command import sensorium
from tests.workflows.conftest import MlflowServer
from tests.workflows.in_process import without_ray
from workflows.cluster import Connection

YAML = """
name: week
dataset:
  path: {root}/table.parquet
  split: split
  slices: [language]
  shard_rows: {{min: 64, target: 128, max: 256}}
features:
  caption: {{column: text, encoder: {{type: hashing, dim: 64}}}}
  photo: {{column: photo, encoder: {{type: hog, size: 16, pixels_per_cell: 8}}}}
task: {{target: shape}}
candidates:
  - {{type: single, modality: photo, width: 8, dropout: 0, learning_rate: 0.02}}
  - {{type: early, width: 16, dropout: 0, learning_rate: 0.02}}
training: {{max_epochs: 12, batch_size: 32, patience: 12}}
promotion: {{min_gain: 0.0}}
store: {root}/store
tracking: {{model: {model}, experiment: {model}}}
"""
SHAPES = ("flat", "upright", "slanted")
WORDS = {
    "flat": ("flat", "level", "even"),
    "upright": ("upright", "erect", "vertical"),
    "slanted": ("slanted", "tilted", "oblique"),
}
"""What a shape is called. At first the training rows know one word of each three."""
NOTHING = re.compile(r"Nothing to do: unchanged since the last run")


class Week:
    """The pipeline, its table in S3, and the commands that are typed."""

    def __init__(self, folder: Path, *, root: str, server: MlflowServer, capsys: Any) -> None:
        self.model = f"week-{uuid.uuid4().hex[:8]}"
        self.storage: Storage = open_storage(root)
        self.store = Store(open_storage(f"{root}/store"))
        self._root, self._server, self._capsys = root, server, capsys
        (folder / "week.yaml").write_text(YAML.format(root=root, model=self.model))

    def arrive(self, table: pd.DataFrame) -> None:
        """Today's table."""
        sink = io.BytesIO()
        table.to_parquet(sink, index=False)
        self.storage.replace("table.parquet", sink.getvalue())

    def type(self, *words: str, code: int = 0) -> str:
        """What a command says."""
        ended, out, err = sensorium(self._capsys, *words)
        assert ended == code, out + err
        return err + out

    def run(self, *, code: int = 0) -> tuple[str, dict[str, Any]]:
        """What the scheduled run says, and its line of JSON."""
        said = self.type("run", "week.yaml", "--json", code=code)
        told: dict[str, Any] = json.loads(said.splitlines()[-1])
        assert told["exit_code"] == code
        return said, told

    def champion(self) -> str:
        of = json.loads(self.type("lineage", self.model, "--json"))
        assert "champion" in of["aliases"]
        return str(of["version"])

    def lineage(self, version: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.type("lineage", f"models:/{self.model}/{version}", "--json")
        )
        return found

    def users(self, *options: str) -> list[str]:
        """The versions of this model that use a snapshot or an encoder."""
        found = json.loads(self.type("lineage", *options, "--json"))
        return sorted(str(of["version"]) for of in found if of["model"] == self.model)

    def answers(self, uri: str, *, out: str) -> pd.DataFrame:
        """The answers of a model to the whole table."""
        place = f"{self._root}/{out}"
        self.type("score", uri, f"{self._root}/table.parquet", place)
        storage = open_storage(place)
        parts = sorted(name for name in storage.list("") if name.endswith(".parquet"))
        return pd.concat([pd.read_parquet(io.BytesIO(storage.read(part))) for part in parts])

    def state(self) -> dict[str, Any]:
        """Every file of the store with its time, and every row of MLflow's database."""
        with contextlib.closing(sqlite3.connect(self._server.database)) as connection:
            rows = list(connection.iterdump())
        return {"rows": rows} | {e.path: e.modified for e in self.store.storage.walk()}


@pytest.fixture
def week(
    ray_cluster: None,
    s3_endpoint: str,
    mlflow_server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Week:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.chdir(tmp_path)
    make_bucket(BUCKET)
    root = f"s3://{BUCKET}/week-{uuid.uuid4().hex}"
    return Week(tmp_path, root=root, server=mlflow_server, capsys=capsys)


def rows(count: int, *, split: str, words: int, first: int) -> pd.DataFrame:
    """Drawings of bars, of which two in three are missing, each described by one of so many words
    for its shape.
    """
    rng = np.random.default_rng([first, count])
    found = []
    for number in range(first, first + count):
        shape = SHAPES[int(rng.integers(3))]
        found.append(
            {
                "sample_id": f"s{number:04}",
                "text": f"a {WORDS[shape][int(rng.integers(words))]} bar, number {number}",
                "photo": drawn(shape, rng=rng) if rng.random() < 1 / 3 else None,
                "shape": shape,
                "language": "en" if number % 3 else "fr",
                "split": split,
            }
        )
    return pd.DataFrame(found)


def drawn(shape: str, *, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 120, size=(16, 16)).astype(np.uint8)
    if shape == "flat":
        pixels[6:10] = 255
    elif shape == "upright":
        pixels[:, 6:10] = 255
    else:
        np.fill_diagonal(pixels, 255)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def poisoned(table: pd.DataFrame) -> pd.DataFrame:
    """Every training row labelled as the next shape; the test rows keep the truth."""
    following: Mapping[str, str] = dict(zip(SHAPES, (*SHAPES[1:], SHAPES[0]), strict=True))
    labels = table["shape"].where(table["split"] != "train", table["shape"].map(following))
    return table.assign(shape=labels)


def test_a_week(week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    monday = pd.concat(
        [
            rows(150, split="train", words=1, first=0),
            rows(60, split="validation", words=3, first=1000),
            rows(150, split="test", words=3, first=2000),
        ]
    )
    # Day 1: there is no champion yet, and the best candidate becomes it.
    week.arrive(monday)
    said, told = week.run()
    assert (told["status"], told["champion_before"], told["champion_after"]) == ("done", None, "1")
    assert "version 1 is the champion now" in said
    first = week.answers(f"models:/{week.model}@champion", out="monday")
    assert len(first) == len(monday)

    # Day 2: nothing is new. No model is loaded, Ray is not asked, nothing is written.
    before = week.state()
    with monkeypatch.context() as patch:
        for owner, name in ((HashingSpec, "load"), (HogSpec, "load"), (Connection, "open")):
            patch.setattr(owner, name, refuse)
        said, told = week.run()
    assert told["status"] == "unchanged" and NOTHING.search(said)
    assert week.state() == before

    # What follows is computed in this process, by the code that Ray's workers run.
    without_ray(monkeypatch)

    # Day 3: rows with the words that were unknown. The better model takes over.
    wednesday = pd.concat([monday, rows(150, split="train", words=3, first=5000)])
    week.arrive(wednesday)
    said, told = week.run()
    assert (told["status"], told["champion_before"], told["champion_after"]) == ("done", "1", "2")
    assert told["reused"] + told["copied"] > 0, "what was embedded on Monday is not again"
    assert re.search(r"accuracy gain > 0 .* pass", said), said
    assert "version 2 is the champion now" in said

    # Day 4: poisoned labels. No payload is embedded again; the gate refuses, the alias stays.
    week.arrive(poisoned(wednesday))
    said, told = week.run(code=3)
    assert (told["status"], told["champion_before"], told["champion_after"]) == (
        "refused", "2", "2",
    )  # fmt: skip
    assert (told["embedded"], told["shards"]) == (0, 0)
    assert re.search(r"accuracy gain > 0 .* FAIL|fail", said), said
    assert week.champion() == "2"
    said, told = week.run()
    assert told["status"] == "unchanged", "a refusal is told once"

    # Back to Monday's champion, by hand; what it answers is what it answered.
    week.type("rollback", week.model, "--reason", "a complaint")
    assert week.champion() == "1"
    week.arrive(monday)
    pd.testing.assert_frame_equal(
        week.answers(week.model, out="after-the-rollback"), first, check_exact=True
    )

    # Day 5: the labels are mended. That model is known, and a person has taken it back.
    week.arrive(wednesday)
    said, told = week.run()
    assert told["champion_after"] == "1" and "taken back" in said
    assert told["fitted"] == 0
    week.type("rollback", week.model, "--to", "2")
    assert week.champion() == "2"

    moves = json.loads(week.type("history", week.model, "--json"))
    assert [(move["kind"], move["before"], move["after"]) for move in moves] == [
        ("promoted", None, "1"),
        ("promoted", "1", "2"),
        ("rolled back", "2", "1"),
        ("rolled back", "1", "2"),
    ]
    assert moves[2]["verdict"] == "a complaint"
    assert_lineage(week)
    snapshot = week.store.latest("week")
    assert snapshot is not None and verify(week.store, snapshot).damages == []


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a run with nothing to do goes on to work")


def assert_lineage(week: Week) -> None:
    """Every version says what it came of, and is found by it."""
    versions = [week.lineage(number) for number in ("1", "2", "3")]
    assert [of["parent"] for of in versions] == [None, "1", "2"]
    assert [of["gate"] for of in versions] == ["passed", "passed", "refused"]
    assert len({of["snapshot"] for of in versions}) == 3
    assert versions[1]["encoders"].keys() == {"caption", "photo"}
    for of in versions:
        snapshot = week.store.read_snapshot(of["snapshot"])
        assert of["sources"] == [str(week.storage.root) + "/table.parquet"]
        for name, told in of["encoders"].items():
            assert snapshot.modalities[name].encoder_fingerprint[:10] in told
        assert re.fullmatch(r"[0-9a-f]{32}", of["config"]) and of["code"] and of["run"]
        assert week.users("--snapshot", of["snapshot"]) == [of["version"]]
    encoder = week.store.read_snapshot(versions[0]["snapshot"]).modalities["photo"]
    assert week.users("--encoder", encoder.encoder_fingerprint) == ["1", "2", "3"]
