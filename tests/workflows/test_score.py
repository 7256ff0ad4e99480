"""Batch scoring: every row as the registered model answers it, through the store, resumable."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.spec import ShardSize
from features.storage import LocalStorage
from tests.workflows.command import sensorium
from training.answering import predict
from workflows import tracking
from workflows.serving import score

Shapes = Any


@dataclass(frozen=True)
class Done:
    """How a command ended, and all that it said, on one line."""

    code: int
    output: str


pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def scored(
    ray_cluster: None,
    champion_uri: str,
    fitted_shapes: Shapes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """`sensorium score` with the champion, into OUT; the table is shuffled, so that nothing of the
    pipeline's shards fits, and no payload is new.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", champion_uri)
    monkeypatch.setattr(score, "SHARD_ROWS", ShardSize(min=32, target=64, max=128))
    monkeypatch.chdir(fitted_shapes.folder)
    # The others' store is to stay as it is.
    own = tmp_path / "store"
    shutil.copytree(fitted_shapes.store.storage.root, own)
    table = fitted_shapes.table().sample(frac=1, random_state=0)
    table = table.drop(columns=["shape", "split"]).rename(columns={"sample_id": "number"})
    table.to_parquet("shuffled.parquet")

    def run(*options: str, out: Path = tmp_path / "out") -> Done:
        command = ["score", "shapes", "shuffled.parquet", out, "--id", "number", "--store", own]
        command += options
        code, said, errors = sensorium(capsys, *command)
        return Done(code=code, output=" ".join((said + errors).split()))

    try:
        yield run
    finally:
        (fitted_shapes.folder / "shuffled.parquet").unlink()


def read(folder: Path) -> pd.DataFrame:
    """The answers, by a reader that knows nothing of this project."""
    about = json.loads((folder / "_manifest.json").read_text())
    assert about["classes"] == [10, 11, 12]
    return pd.read_parquet(folder)


def test_all_rows_are_answered_in_order_as_the_registered_model_does(
    scored: Any, fitted_shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    done = scored("--shapley", "--embeddings")
    assert done.code == 0, done.output
    assert "leak" not in done.output, "nothing is trained on this table"
    assert "nothing to do: every embedding is in the store" in done.output or (
        "0 payloads embedded" in done.output
    ), done.output
    found = read(tmp_path / "out")
    table = pd.read_parquet("shuffled.parquet")
    assert found.number.tolist() == table.number.astype(str).tolist()

    with tracking.connected(str(mlflow.get_tracking_uri())):
        model = mlflow.pyfunc.load_model("models:/shapes@champion")
        expected = model.predict(table[["text", "picture"]].reset_index(drop=True))
    known = expected.prediction.notna()
    assert found.prediction.notna().tolist() == known.tolist()
    assert found.prediction[known].tolist() == expected.prediction[known].tolist()
    np.testing.assert_allclose(
        np.stack(found.probabilities[known]), np.stack(expected.probabilities[known]), atol=1e-6
    )
    assert [list(names) for names in found.missing] == expected.missing.tolist()
    assert found.problems.fillna("").tolist() == expected.problems.fillna("").tolist()
    assert found.problems.notna().any(), "one payload is broken"

    # What each modality adds sums to the answer less that to nothing at all.
    record = next(r for r in fitted_shapes.records if r.name == "early")
    fitted = model.unwrap_python_model().fitted()
    nothing = predict(
        fitted,
        record=record,
        embeddings={m: np.zeros((1, part["dim"])) for m, part in record.modalities.items()},
        presence={m: np.zeros(1, bool) for m in record.modalities},
    )
    rows = np.flatnonzero(known)
    added = sum(np.stack(found[f"shapley.{m}"].iloc[rows]) for m in record.modalities)
    gained = np.stack(found.probabilities.iloc[rows]) - nothing
    np.testing.assert_allclose(added, gained, atol=1e-5)
    for name, column in (("caption", "text"), ("photo", "picture")):
        there = found[f"embedding.{name}"].notna()
        assert there.sum() > 0.8 * len(found)
        assert not there[table[column].isna().to_numpy()].any()


def test_a_scoring_that_was_killed_goes_on_and_one_that_is_done_does_nothing(
    scored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without Ray: what it is told of a shard is done here.
    monkeypatch.setattr(
        score, "in_actors", lambda worker, argument, items: map(worker(argument), items)
    )
    whole = tmp_path / "whole"
    assert scored(out=whole).code == 0
    out = tmp_path / "out"
    scored(out=out)
    names = sorted(path.name for path in out.glob("part-*"))
    assert names == sorted(path.name for path in whole.glob("part-*")) and len(names) > 1
    # As a kill leaves it: some files, and no manifest.
    (out / names[0]).unlink()
    (out / "_manifest.json").unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in names[1:]}
    done = scored(out=out)
    assert f"1 file to write, {len(names) - 1} there" in done.output
    assert {name: (out / name).stat().st_mtime_ns for name in names[1:]} == kept
    for name in [*names, "_manifest.json"]:
        assert (out / name).read_bytes() == (whole / name).read_bytes()

    def must_not(*_: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr("workflows.cluster.Connection.open", must_not)
    done = scored(out=out)
    assert done.code == 0 and "nothing to do: every answer is there" in done.output


def test_a_folder_of_other_answers_is_refused(scored: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = scored()
    assert done.code == 1 and "holds mine.txt and is not of a scoring" in done.output
    (tmp_path / "out" / "mine.txt").unlink()
    answer_claim = {"model": "models:/shapes/7", "candidate": "another"}
    LocalStorage(tmp_path / "out").replace("_scoring.json", json.dumps(answer_claim).encode())
    done = scored()
    assert done.code == 1 and "holds the answers of models:/shapes/7" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--id", "nr"], "the table has no column 'nr'; did you mean 'number'?"),
        (["--tracking", "sqlite:////nowhere/mlflow.db"], "no such file"),
        (["--format", "cvs"], "there is no format 'cvs'; did you mean 'csv'?"),
    ],
)
def test_what_cannot_be_is_a_wrong_use(scored: Any, options: list[str], said: str) -> None:
    done = scored(*options)
    assert done.code == 2, done.output
    assert said in done.output


def test_a_model_that_is_not_there_is_named_with_those_that_are(
    champion_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", champion_uri)
    code, _, errors = sensorium(capsys, "score", "shape", "x.parquet", tmp_path)
    assert code == 1
    assert "no model 'shape' is registered here; did you mean 'shapes'?" in " ".join(errors.split())


def test_a_fusion_has_no_space_to_search(
    champion_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", champion_uri)
    code, _, errors = sensorium(capsys, "search", "shapes", "a flat bar")
    said = " ".join(errors.split())
    assert code == 2 and "of the type 'early', which has no space" in said
    assert "alignment and cca make one" in said
