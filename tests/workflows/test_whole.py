"""The main job, smaller: from the demo's table to a champion that answers raw rows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from features.storage import LocalStorage
from features.store import Store
from tests.workflows import command
from tests.workflows.in_process import without_ray
from training.candidate import read_predictions
from workflows.pipeline import load_pipeline
from workflows.search import standing

pytestmark = pytest.mark.slow


def sensorium(capsys, *arguments):
    """Exit code of a command, and all that it printed."""
    code, out, err = command.sensorium(capsys, *arguments)
    return code, out + err


@pytest.fixture(scope="module")
def world(tmp_path_factory, ray_cluster):
    """The demo's data, 400 samples of it, with a pipeline of few and short candidates."""
    from workflows.demo import make_digits

    folder = tmp_path_factory.mktemp("whole")
    make_digits(folder=folder, samples=400)
    recipe = Path(__file__).parents[2] / "workflows/recipes/digits.yaml"
    pipeline = yaml.safe_load(recipe.read_text())
    pipeline["dataset"]["max_bad_fraction"] = 0.05
    pipeline["dataset"]["shard_rows"] = {"min": 16, "target": 32, "max": 96}
    pipeline["candidates"] = [
        {"type": "single", "name": "speech", "modality": "speech"},
        {"type": "late", "name": "late"},
        {"type": "alignment", "name": "alignment"},
    ]
    pipeline["training"] = {"workers": 2, "batch_size": 64, "max_epochs": 12, "patience": 12}
    write(folder, pipeline)
    return folder


def write(folder, pipeline):
    (folder / "digits.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def read(folder):
    return yaml.safe_load((folder / "digits.yaml").read_text())


def tree(folder):
    """Time of change of everything that a run writes."""
    roots = [folder / name for name in ("store", "mlartifacts", "mlflow.db", "digits-report.html")]
    files = [p for root in roots for p in (root.rglob("*") if root.is_dir() else [root])]
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file()}


def plan_rows(output):
    """Per modality, the numbers of the plan's table: reused, copied, to embed."""
    found = {}
    for line in output.splitlines():
        cells = line.split()
        if cells and cells[0] in {"sentence", "drawing", "speech"} - set(found):
            numbers = [int(cell) for cell in cells[3:6]]
            found[cells[0]] = dict(zip(("reused", "copied", "to_embed"), numbers, strict=True))
    return found


def test_the_whole_runs_and_names_its_champion(world, capsys):
    code, output = sensorium(capsys, "run", world / "digits.yaml")
    assert code == 0, output
    assert "champion digits version 1" in output
    assert re.search(r"test accuracy 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", output)
    assert "7 bad payloads in quarantine" in output
    report = world / "digits-report.html"
    assert str(report) in output and report.stat().st_size > 10_000
    assert f"mlflow ui --backend-store-uri sqlite:///{world}/mlflow.db" in output


def test_a_second_run_changes_nothing_and_says_so(world, capsys):
    before = tree(world)
    code, output = sensorium(capsys, "run", world / "digits.yaml")
    assert code == 0 and "Nothing to do" in output
    assert tree(world) == before


def test_a_second_run_starts_neither_ray_nor_torch(world):
    code = (
        "import sys; sys.argv = ['sensorium', 'run', 'digits.yaml']\n"
        "from workflows.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('ray', 'torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=world, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip().endswith("[]"), found.stdout + found.stderr


def test_the_champion_answers_raw_rows_as_the_pipeline_did(world, tmp_path):
    """In a process that knows nothing but the URI, from another folder, modalities missing."""
    pipeline = load_pipeline(world / "digits.yaml")
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = store.latest("digits")
    code = """
import json, sys
import pandas as pd, mlflow
rows = pd.read_json("rows.jsonl", lines=True, dtype=False)
model = mlflow.pyfunc.load_model("models:/digits@champion")
answers = model.predict(rows)
without = model.predict(rows.drop(columns="drawing"))
print(json.dumps([answers["prediction"].tolist(), answers["probabilities"].map(list).tolist(),
                  without["prediction"].tolist(), model.metadata.run_id]))
"""
    table = pd.read_parquet(world / "samples.parquet")
    test = np.flatnonzero(table["split"] == "test")
    rows = table.loc[test, ["sentence", "drawing", "speech"]].astype(object)
    for column in ("drawing", "speech"):
        rows[column] = [None if pd.isna(v) else str(world / v) for v in rows[column]]
    rows = rows.where(rows.notna(), None)
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{world}/mlflow.db"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    labels, probabilities, without, run = json.loads(found.stdout.splitlines()[-1])
    (winner,) = [
        c.record
        for c in standing(pipeline, snapshot=snapshot).candidates
        if c.record.name in winner_of(world, run)
    ]
    expected = read_predictions(store, winner.fingerprint).to_pandas()
    expected = expected[expected["split"] == "test"].sort_values("row")
    np.testing.assert_array_equal(expected["row"], test)
    np.testing.assert_allclose(probabilities, np.stack(expected["probabilities"]), atol=1e-5)
    classes = np.array(winner.classes)
    np.testing.assert_array_equal(
        labels, classes[np.stack(expected["probabilities"]).argmax(axis=1)]
    )
    assert len(without) == len(test) and set(without) <= {None, *winner.classes}


def winner_of(world, run):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{world}/mlflow.db")
    return client.get_run(run).info.run_name


def test_plan_says_what_a_change_would_cost(world, capsys):
    table = pd.read_parquet(world / "samples.parquet")
    original = read(world)

    def plan(changed_table=None, changed_pipeline=None):
        if changed_table is not None:
            changed_table.to_parquet(world / "samples.parquet", index=False)
        if changed_pipeline is not None:
            write(world, changed_pipeline)
        code, output = sensorium(capsys, "plan", world / "digits.yaml")
        table.to_parquet(world / "samples.parquet", index=False)
        write(world, original)
        assert code == 0, output
        return plan_rows(output)

    row = int(np.flatnonzero(table["sentence"].notna())[77])
    edited = table.copy()
    edited.loc[row, "sentence"] = "an entirely new sentence: 5"
    found = plan(changed_table=edited)
    assert found["sentence"]["to_embed"] == 1 and found["sentence"]["copied"] > 0
    assert found["drawing"]["to_embed"] == found["speech"]["to_embed"] == 0

    relabelled = table.copy()
    relabelled.loc[row, "digit"] = (relabelled.loc[row, "digit"] + 1) % 10
    assert {part["to_embed"] for part in plan(changed_table=relabelled).values()} == {0}

    finer = json.loads(json.dumps(original))
    finer["features"]["speech"]["encoder"]["n_mels"] = 48
    found = plan(changed_pipeline=finer)
    assert found["speech"]["to_embed"] == int(table["speech"].notna().sum())
    assert found["sentence"]["to_embed"] == found["drawing"]["to_embed"] == 0

    assert {part["to_embed"] for part in plan().values()} == {0}


def test_over_budget_ends_with_4_and_the_reasons(world, capsys):
    original = read(world)
    strict = json.loads(json.dumps(original))
    strict["dataset"]["max_bad_fraction"] = 0
    write(world, strict)
    try:
        code, output = sensorium(capsys, "run", world / "digits.yaml")
    finally:
        write(world, original)
    assert code == 4
    for reason in ("there is no such file", "empty text", "zero frames", "truncated"):
        assert re.search(reason, output), (reason, output)
    assert "drawing" in output and "speech" in output and "sentence" in output


def test_a_changed_encoder_recomputes_its_modality_and_asks_the_champion_raw_rows(
    world, capsys, monkeypatch
):
    """A challenger of other encoders: the champion answers today's rows through its own."""
    original = read(world)
    finer = json.loads(json.dumps(original))
    finer["features"]["speech"]["encoder"]["n_mels"] = 48
    without_ray(monkeypatch)
    write(world, finer)
    before = tree(world)
    try:
        code, output = sensorium(capsys, "run", world / "digits.yaml")
    finally:
        write(world, original)
    after = tree(world)
    assert code in (0, 3), output
    assert re.search(r"champion digits version \d", output)
    kept = {path: time for path, time in before.items() if "/embeddings/" in path}
    assert {path: after[path] for path in kept} == kept
    made = {path.split("/")[-2] for path in set(after) - set(before) if "/embeddings/" in path}
    assert len(made) == 1
