"""A candidate on live encoders, from YAML to a champion that answers raw rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from features.storage import LocalStorage
from features.store import Store
from tests.training.live_world import LiveWorld, save_bert
from tests.workflows import command
from training.candidate import read_predictions
from workflows import tracking
from workflows.pipeline import ConfigurationError, load_pipeline
from workflows.search import standing

pytestmark = pytest.mark.slow


def pipeline_of(folder: Path, **changes: object) -> Path:
    """The YAML of the table of `LiveWorld`, beside it."""
    value = {
        "name": "words",
        "dataset": {"path": "table.parquet", "id": "id", "split": "split"},
        "features": {
            "caption": {
                "column": "caption",
                "encoder": {"type": "huggingface_text", "model": "./bert"},
            },
            "photo": {"column": "photo", "encoder": {"type": "hog", "size": 32}},
        },
        "task": {"target": "label"},
        "candidates": [
            {
                "type": "finetune",
                "head": {"type": "early", "width": 8, "learning_rate": 1e-2},
                "encoders": {"caption": "full"},
                "encoder_learning_rate": 1e-3,
            }
        ],
        "training": {"max_epochs": 3, "batch_size": 16},
        "store": "store-of-words",
    }
    path = folder / "words.yaml"
    path.write_text(yaml.safe_dump(value | changes, sort_keys=False))
    return path


def save_table(folder: Path) -> None:
    """A table of the columns that the YAML names."""
    frame = pd.DataFrame({"id": ["a"], "caption": ["b"], "photo": [b"c"], "label": [0]})
    frame.assign(split="train").to_parquet(folder / "table.parquet", index=False)


def test_a_champion_scores_through_the_encoder_that_was_tuned(
    tmp_path: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    world = LiveWorld(tmp_path)
    path = pipeline_of(tmp_path)
    code, out, err = command.sensorium(capsys, "run", path)
    assert code == 0, out + err
    pipeline = load_pipeline(path)
    store = Store(LocalStorage(tmp_path / "store-of-words"))
    snapshot = store.latest("words")
    assert snapshot is not None
    (done,) = standing(pipeline, snapshot=snapshot).candidates
    assert done.record is not None and done.record.status == "fitted"
    answers = read_predictions(store, done.fingerprint)
    rows = answers["row"].to_pylist()
    raw = world.world.frame.iloc[rows][["caption", "photo"]]

    import mlflow

    with tracking.connected(pipeline.tracking_uri):
        model = mlflow.pyfunc.load_model("models:/words@champion")
        found = model.predict(raw)
    known = found["probabilities"].notna().to_numpy()  # but for rows without anything
    assert known.mean() > 0.8
    np.testing.assert_allclose(
        np.array(found["probabilities"][known].tolist()),
        np.array(answers["probabilities"].to_pylist())[known],
        atol=2e-3,
    )
    inputs = model.unwrap_python_model().inputs
    assert inputs["caption"].encoder_fingerprint != (
        snapshot.modalities["caption"].encoder_fingerprint
    )
    assert inputs["photo"].encoder_fingerprint == snapshot.modalities["photo"].encoder_fingerprint

    code, out, err = command.sensorium(capsys, "run", path)
    assert code == 0, out + err
    assert "every candidate is in the store" in out + err


def test_what_a_retrieval_searches_may_be_a_space_of_tuned_encoders(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    save_table(tmp_path)
    aligned = {"type": "finetune", "head": {"type": "alignment"}, "encoders": {"caption": "lora"}}
    options = {"task": {"type": "retrieval"}}
    pipeline = load_pipeline(pipeline_of(tmp_path, candidates=[aligned], **options))
    assert pipeline.spec.candidates[0].name == "finetune-alignment"
    fused = aligned | {"head": {"type": "early"}}
    with pytest.raises(ConfigurationError, match=r"candidates\.0\.type: .*no common space"):
        load_pipeline(pipeline_of(tmp_path, candidates=[fused], **options))


def test_an_encoder_without_weights_is_refused_where_it_is_named(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    save_table(tmp_path)
    candidate = {"type": "finetune", "head": {"type": "early"}, "encoders": {"photo": "full"}}
    path = pipeline_of(tmp_path, candidates=[candidate])
    with pytest.raises(
        ConfigurationError, match=r"candidates\.0\.encoders\.photo: the encoder 'hog'.*: caption"
    ):
        load_pipeline(path)
