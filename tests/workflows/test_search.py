"""`search:` and ensembles in the YAML, from the file to the champion."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from features.storage import LocalStorage
from features.store import Store
from tests.workflows import command
from training.candidate import read_predictions
from workflows import tracking
from workflows.pipeline import ConfigurationError, Pipeline, StageError, load_pipeline
from workflows.search import described, standing

SPACE = {"learning_rate": {"low": 0.005, "high": 0.05, "log": True}}
SEARCH = {"of": "early", "trials": 2, "generation": 2, "rungs": 2, "reduction": 2,
          "finalists": 1, "seeds": 1, "space": SPACE}  # fmt: skip


def pipeline_of(folder: Path, **changes: Any) -> Path:
    candidates = [
        {"type": "single", "modality": "caption", "width": 8, "dropout": 0, "learning_rate": 0.02},
        {"type": "early", "width": 16, "dropout": 0, "learning_rate": 0.02},
        {"type": "early", "name": "slower", "width": 16, "dropout": 0, "learning_rate": 0.01},
        {"type": "soup", "of": ["early", "slower"]},
        {"type": "average", "of": ["soup", "single-caption"]},
        {"type": "translation", "width": 8, "adversary": "none"},
        {"type": "filled", "of": ["single-caption", "translation"]},
        *(
            [{"type": "soup", "name": "best", "of": ["early-search"]}]
            if "search" in changes
            else []
        ),
    ]
    value: dict[str, Any] = {
        "name": "shapes",
        "features": {
            "caption": {"column": "text", "encoder": {"type": "hashing", "dim": 64}},
            "photo": {
                "column": "picture",
                "encoder": {"type": "hog", "size": 16, "pixels_per_cell": 8},
            },
        },
        "task": {"target": "shape"},
        "candidates": candidates,
        "training": {"max_epochs": 4, "batch_size": 24},
        "dataset": {"path": "table.parquet", "split": "split", "max_bad_fraction": 0.1},
        **changes,
    }
    path = folder / "shapes.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.mark.slow
def test_what_is_searched_and_joined_is_compared_registered_and_answers(
    shapes_table: Path, tmp_path: Path, mlflow_uri: str, ray_cluster: object, capsys
) -> None:
    folder = tmp_path / "shapes"
    shutil.copytree(shapes_table, folder)
    path = pipeline_of(folder, search=[SEARCH], promotion={"metric": "log_loss"})
    code, out, err = command.sensorium(capsys, "run", path)
    assert code == 0, out + err
    said = " ".join((out + err).split())
    assert "early-search: trials 1 to 2 of 2, 2 epochs" in said
    pipeline = load_pipeline(path)
    store = Store(LocalStorage(pipeline.store_root))
    snapshot = store.latest("shapes")
    found = standing(pipeline, snapshot=snapshot)
    done = found.candidates
    assert all(c.record is not None and c.record.status == "fitted" for c in done)
    names = [candidate.spec.name for candidate in done]
    (search,) = found.searches
    best = search.best.spec.name
    declared = ["single-caption", "early", "slower", "soup", "average"]
    declared += ["translation", "filled", "best"]
    assert names == [*declared, best]
    assert described(search) in said
    of_search = next(c.record for c in done if c.spec.name == "best")
    assert [member["name"] for member in of_search.members] == [best]
    assert all(name in said for name in names)

    # The report shows them, and MLflow keeps what was searched.
    page = pipeline.report_path.read_text()
    text = " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).split())
    assert "learning_rate of early , in 2 trials ." in text
    assert f"with loss {search.best.reached[-1]:.3f} on validation" in text
    assert re.search(r"Trial learning_rate 2 epochs 4 epochs How far \d+ 0\.\d+", text)
    assert "average is the mean of the answers of soup, single-caption ." in text

    # Each can be the champion: it answers raw rows as it did when it was evaluated.
    import mlflow

    for name in ("average", "filled"):
        record = next(c.record for c in done if c.spec.name == name)
        with tracking.connected(pipeline.tracking_uri) as client:
            experiment = client.get_experiment_by_name("shapes")
            logged = client.search_logged_models(experiment_ids=[experiment.experiment_id])
            (ours,) = (m for m in logged if m.tags["sensorium.candidate"] == record.fingerprint)
            model = mlflow.pyfunc.load_model(ours.model_uri)
        answers = read_predictions(store, record.fingerprint)
        raw = pd.read_parquet(folder / "table.parquet").iloc[answers["row"].to_pylist()]
        found = model.predict(raw[["text", "picture"]], params={"base": str(folder)})
        known = found["probabilities"].notna().to_numpy()  # but for rows without anything
        assert known.mean() > 0.9
        np.testing.assert_allclose(
            np.array(found["probabilities"][known].tolist()),
            np.array(answers["probabilities"].to_pylist())[known],
            atol=1e-4,
        )
    with tracking.connected(pipeline.tracking_uri) as client:
        (parent,) = client.search_runs(
            [experiment.experiment_id], "tags.`sensorium.role` = 'pipeline'"
        )
        kept = client.download_artifacts(parent.info.run_id, "searches/early-search.json")
    trials = json.loads(Path(kept).read_text())["trials"]
    assert [trial["number"] for trial in trials] == [0, 1]
    assert sum(trial["stopped"] for trial in trials) == 1
    # What was filled in is told.
    assert "filled" in model.metadata.signature.outputs.input_names()
    alone = model.predict(raw[["picture"]], params={"base": str(folder)})
    expected = [[] if "photo" in missing else ["caption"] for missing in alone["missing"]]
    assert alone["filled"].tolist() == expected and ["caption"] in expected

    code, out, err = command.sensorium(capsys, "run", path)
    assert code == 0, out + err
    assert "every candidate is in the store" in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": [{**SEARCH, "of": "erly"}]}, r"search\.0\.of: .*'erly'; did you mean 'early'"),
        ({"search": [SEARCH, SEARCH]}, r"search\.1\.of: 'early' is searched already"),
        ({"search": SEARCH}, r"search: `search` is a list: begin its entries with `- of:"),
        (
            {"search": [{**SEARCH, "space": {"widht": [8, 16]}}]},
            r"search\.0\.space\.widht: .*did you mean 'width'\? allowed: dropout, learning_rate",
        ),
        (
            {"search": [{**SEARCH, "space": {"dropout": {"low": 0.1, "high": 1.5}}}]},
            r"search\.0\.space\.dropout\.high: .*less than 1 \(value: 1\.5\)",
        ),
        (
            {"search": [{**SEARCH, "space": {"dropout": {"low": 0.5, "high": 0.1}}}]},
            r"search\.0\.space\.dropout.*`low` 0\.5 is not below `high` 0\.1",
        ),
        (
            {"search": [{**SEARCH, "space": {"width": [8, 16]}}]},
            r"candidates\.7\.of\.0: what 'early-search' finds differs in `width`",
        ),
        ({"search": [{**SEARCH, "rungs": 4}]}, r"search\.0\.rungs: .*8 epochs or more"),
        ({"search": [{**SEARCH, "of": "soup"}]}, r"search\.0\.of: 'soup' .* no fields to search"),
        (
            {"candidates": [{"type": "early"}, {"type": "late", "name": "early-search-00"}],
             "search": [SEARCH]},
            r"candidates\.1\.name: 'early-search-00' is what the search of 'early'",
        ),
        (
            {"candidates": [{"type": "early"}, {"type": "soup", "of": ["early", "erly"]}]},
            r"candidates\.1\.of\.1: there is no candidate 'erly'; did you mean 'early'",
        ),
        (
            {"candidates": [{"type": "average", "of": ["early", "late"]}, {"type": "early"},
                            {"type": "late"}]},
            r"candidates\.0\.of\.0: the candidate 'early' stands below this one",
        ),
        (
            {"candidates": [{"type": "early"}, {"type": "late"},
                            {"type": "soup", "of": ["early", "late"]}]},
            r"candidates\.2\.of\.1: 'late' differs from 'early' in `type`",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_its_place(changes: dict[str, Any], message: str, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_pipeline(pipeline_of(tmp_path, **changes))


def test_the_digest_follows_what_ensembles_are_made_of_and_what_is_searched(tmp_path) -> None:
    def digest(**changes: Any) -> str:
        pipeline: Pipeline = load_pipeline(pipeline_of(tmp_path, **changes))
        return pipeline.digest

    def of(*names: str, rates: tuple[float, float] = (0.1, 0.2)) -> list[dict[str, Any]]:
        fits = [
            {"type": "early", "name": name, "learning_rate": rate}
            for name, rate in zip(names, rates, strict=True)
        ]
        return [*fits, {"type": "late"}, {"type": "average", "of": [names[0], "late"]}]

    assert digest(candidates=of("a", "b")) == digest(candidates=of("x", "y"))
    # The same two fits, by each other's names: the average is of the other one.
    swapped = of("a", "b")
    swapped[3] = {"type": "average", "of": ["b", "late"]}
    assert digest(candidates=of("a", "b")) != digest(candidates=swapped)
    assert digest(search=[SEARCH]) != digest()
    assert digest(search=[{**SEARCH, "seed": 1}]) != digest(search=[SEARCH])


def test_a_search_that_lacks_optuna_is_an_error_of_the_stage(
    fitted_shapes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = pipeline_of(
        tmp_path, search=[SEARCH], store=fitted_shapes.pipeline.store_root, candidates=[
            {"type": "early", "width": 16}]
    )  # fmt: skip
    with pytest.raises(StageError, match=r"sensorium\[search\]"):
        standing(load_pipeline(path), snapshot=fitted_shapes.snapshot)
