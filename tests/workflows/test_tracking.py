"""What is recorded in MLflow, and that the rest of the process does not notice."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from training.candidate import CandidateRecord
from workflows import tracking
from workflows.pipeline import StageError
from workflows.runs import clean, cut, epoch_metrics, final_metrics, flat, without_passwords

Shapes = Any
"""What the fixture `fitted_shapes` gives; see conftest.py."""


def log(
    client: Any, shapes: Shapes, *, uri: str, records: list[CandidateRecord], **options: Any
) -> tracking.LoggedTraining:
    """Record a training, with a name in the place of each model."""
    options.setdefault("log_model", lambda record: f"models:/{record.name}")
    return tracking.log_training(
        client,
        experiment="shapes",
        uri=uri,
        name="shapes",
        description=shapes.pipeline.spec.model_dump(mode="json"),
        store=shapes.store,
        snapshot=shapes.snapshot,
        records=records,
        on_event=lambda text: None,
        **options,
    )


def broken(record: CandidateRecord) -> CandidateRecord:
    """The same candidate, had its loss become infinite."""
    return dataclasses.replace(
        record,
        fingerprint="f" * 32,
        name="broken",
        status="failed",
        failure={"reason": "the loss is inf", "epoch": 1, "step": 7, "sample_ids": ["s001"]},
        best_epoch=None,
        metrics=None,
        epochs=[{"epoch": 0, "train_loss": float("nan"), "validation_loss": None, "seconds": 0.1}],
    )


def test_a_training_is_a_run_with_a_child_for_each_candidate(
    fitted_shapes: Shapes, mlflow_uri: str
) -> None:
    records = [*fitted_shapes.records, broken(fitted_shapes.records[0])]
    with tracking.connected(mlflow_uri) as client:
        logged = log(client, fitted_shapes, uri=mlflow_uri, records=records)
        parent = client.get_run(logged.parent)
        runs = {name: client.get_run(run) for name, run in logged.runs.items()}
        history = client.get_metric_history(logged.runs[records[2].fingerprint], "train_loss")
    assert logged.changed
    assert parent.info.status == "FINISHED"
    assert parent.data.params["features.caption.encoder.type"] == "hashing"
    assert len(runs) == 4
    assert all(run.data.tags["mlflow.parentRunId"] == logged.parent for run in runs.values())
    assert set(logged.models) == {r.fingerprint for r in records[:3]}

    early = runs[records[2].fingerprint]
    assert early.info.run_name == "early"
    assert early.data.params["candidate.width"] == "16"
    assert early.data.metrics["test.accuracy"] == records[2].metrics["test"]["accuracy"]
    losses = [(epoch["epoch"], epoch["train_loss"]) for epoch in records[2].epochs]
    assert [(point.step, point.value) for point in history] == losses
    assert len(losses) > 1
    for run in (parent, early):
        (entry,) = run.inputs.dataset_inputs
        assert entry.dataset.digest == fitted_shapes.snapshot.id
        assert fitted_shapes.store.storage.root in entry.dataset.source

    failed = runs["f" * 32]
    assert failed.info.status == "FAILED"
    assert "the loss is inf" in failed.data.tags["sensorium.failure"]
    assert "train_loss" not in failed.data.metrics, "NaN is no point of a curve"


def test_an_attempt_that_was_killed_is_completed_and_not_doubled(
    fitted_shapes: Shapes, mlflow_uri: str
) -> None:
    records = fitted_shapes.records

    def killed(record: CandidateRecord) -> str:
        if record.name == "single-photo":
            raise KeyboardInterrupt
        return f"models:/{record.name}"

    with tracking.connected(mlflow_uri) as client:
        with pytest.raises(KeyboardInterrupt):
            log(client, fitted_shapes, uri=mlflow_uri, records=records, log_model=killed)
        logged = log(client, fitted_shapes, uri=mlflow_uri, records=records)
        again = log(client, fitted_shapes, uri=mlflow_uri, records=records)
        experiment = client.get_experiment_by_name("shapes")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        points = client.get_metric_history(logged.runs[records[1].fingerprint], "train_loss")
    assert len(found) == 4
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len(points) == len(records[1].epochs)
    assert logged.changed and not again.changed
    assert again.runs == logged.runs
    assert again.models == logged.models


def test_searches_and_members_are_recorded_without_runs_of_their_own(
    fitted_shapes: Shapes, mlflow_uri: str
) -> None:
    members = [
        {"name": "a", "fingerprint": "1", "taken": True, "alone": 0.5, "with_it": 0.5},
        {"name": "b", "fingerprint": "2", "taken": False, "alone": 0.6, "with_it": 0.7},
    ]
    soup = dataclasses.replace(fitted_shapes.records[2], name="soup", members=members)
    search = {"name": "early-search", "trials": [{"number": 0, "rungs": [], "stopped": True}]}
    with tracking.connected(mlflow_uri) as client:
        logged = log(
            client,
            fitted_shapes,
            uri=mlflow_uri,
            records=[fitted_shapes.records[0], soup],
            searches={"early-search": search},
        )
        path = client.download_artifacts(logged.parent, "searches/early-search.json")
        kept = json.loads(Path(path).read_text())
        runs = {name: client.get_run(run) for name, run in logged.runs.items()}
        path = client.download_artifacts(logged.runs[soup.fingerprint], "members.json")
        told = json.loads(Path(path).read_text())
    assert kept == search
    assert len(runs) == 2
    tags = runs[soup.fingerprint].data.tags
    assert json.loads(tags["sensorium.members"]) == ["a"]
    assert json.loads(tags["sensorium.members_left_out"]) == ["b"]
    assert told["members"] == members
    single = runs[fitted_shapes.records[0].fingerprint]
    assert "sensorium.members" not in single.data.tags


def test_artifacts_lie_beside_the_database_not_in_the_working_directory(
    fitted_shapes: Shapes, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with tracking.connected(mlflow_uri) as client:
        logged = log(client, fitted_shapes, uri=mlflow_uri, records=fitted_shapes.records[:1])
        artifacts = client.list_artifacts(logged.parent)
    assert [item.path for item in artifacts] == ["pipeline.json"]
    assert list(here.iterdir()) == []
    assert list((tmp_path / "mlflow" / "mlartifacts").rglob("pipeline.json"))


def test_the_process_is_as_before(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    elsewhere = f"sqlite:///{tmp_path}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    before = dict(os.environ)
    level = logging.getLogger("mlflow").level
    with tracking.connected(mlflow_uri) as client:
        assert mlflow.get_tracking_uri() == mlflow_uri
        assert client.tracking_uri == mlflow_uri
    with pytest.raises(KeyboardInterrupt), tracking.connected(mlflow_uri):
        raise KeyboardInterrupt
    assert mlflow.get_tracking_uri() == elsewhere
    assert {**os.environ, "MLFLOW_DISABLE_TELEMETRY": ""} == {
        **before,
        "MLFLOW_DISABLE_TELEMETRY": "",
    }
    assert logging.getLogger("mlflow").level == level
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not mlflow.is_tracking_uri_set(), "what stood in the environment is no global now"


def test_making_a_database_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fitted_shapes: Shapes
) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    assert not tracking.there_is_a_database(uri)
    with tracking.connected(uri) as client:
        log(client, fitted_shapes, uri=uri, records=fitted_shapes.records[:1])
    assert tracking.there_is_a_database(uri)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_an_error_of_mlflow_names_the_place(mlflow_uri: str) -> None:
    with (
        pytest.raises(StageError, match=r"MLflow at sqlite:///.*mlflow.db: .*not found"),
        tracking.connected(mlflow_uri) as client,
    ):
        client.get_run("0" * 32)


def test_an_error_of_mlflow_does_not_tell_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_RETRIES": "0", "TIMEOUT": "2"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with (
        pytest.raises(StageError) as raised,
        tracking.connected("http://ml:s3cret-pw@127.0.0.1:9/x?token=s3cret-too") as client,
    ):
        client.get_run("0" * 32)
    text = str(raised.value)
    assert text.startswith("MLflow at http://…@127.0.0.1:9/x?token=… does not answer")
    assert text.count("127.0.0.1") > 1, "MLflow's own text names the place, too"
    assert "s3cret" not in text


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://someone:s3cret@db:5432/mlflow", "postgresql://…@db:5432/mlflow"),
        ("http://ml:s3/c@r3t@db/x", "http://…@db/x"),
        ("https://ghp_s3cret@host/a", "https://…@host/a"),
        ("http://ml:s3cret?key=s3cret@db/x", "http://…@…"),
        ("http://host/x?password=s3@cret", "http://…@…"),
        ("postgresql:///db?user=me&sslPassword=s3cret&a=1", "postgresql:///db?user=me&sslPassword=…&a=1"),
        ("s3://b/c?X-Amz-Signature=s3cret", "s3://b/c?X-Amz-Signature=…"),
        ("cannot reach 'redis://:s3cret@a' or http://u:s3cret@b", "cannot reach 'redis://…@a' or http://…@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("models:/shapes@champion", "models:/shapes@champion"),
        ("write to me@example.org?", "write to me@example.org?"),
    ],
)  # fmt: skip
def test_credentials_of_every_kind_are_left_out(uri: str, expected: str) -> None:
    assert without_passwords(uri) == expected
    assert without_passwords({"a": ["b", {"c": uri}], "d": 1}) == {
        "a": ["b", {"c": expected}],
        "d": 1,
    }


def test_passwords_are_recorded_nowhere(fitted_shapes: Shapes, mlflow_uri: str) -> None:
    uri = "postgresql://someone:s3cret@db.example:5432/mlflow"
    spec = fitted_shapes.pipeline.spec
    spec = spec.model_copy(
        update={
            "tracking": spec.tracking.model_copy(update={"uri": uri}),
            "store": "s3://key:s3cret@bucket/store",
        }
    )
    shapes = dataclasses.replace(
        fitted_shapes, pipeline=dataclasses.replace(fitted_shapes.pipeline, spec=spec)
    )
    with tracking.connected(mlflow_uri) as client:
        logged = log(client, shapes, uri=mlflow_uri, records=shapes.records[:1])
        run = client.get_run(logged.parent)
        artifact = Path(client.download_artifacts(logged.parent, "pipeline.json")).read_text()
    assert run.data.params["tracking.uri"].startswith("postgresql://…@db.example")
    assert "s3cret" not in f"{run.data.params} {run.data.tags} {artifact}"


def test_what_mlflow_would_refuse_is_made_fit(fitted_shapes: Shapes, mlflow_uri: str) -> None:
    record = dataclasses.replace(
        fitted_shapes.records[0],
        metrics={
            "validation": {"accuracy": 0.5, "loss": float("inf"), "recall@1": 0.25},
            "test": {"accuracy": 0.5},
        },
        spec={"type": "single", "modality": "caption", "note": "x" * 9000, "odd|name": 1},
    )
    with tracking.connected(mlflow_uri) as client:
        logged = log(client, fitted_shapes, uri=mlflow_uri, records=[record])
        data = client.get_run(logged.runs[record.fingerprint]).data
    assert data.metrics["validation.recall_1"] == 0.25
    assert "validation.loss" not in data.metrics
    assert len(data.params["candidate.note"]) == tracking.PARAM_LENGTH
    assert data.params["candidate.note"].endswith("…")
    assert data.params["candidate.odd_name"] == "1"


def test_points_do_not_move_when_they_are_logged_again(fitted_shapes: Shapes) -> None:
    record = dataclasses.replace(
        fitted_shapes.records[0],
        retrieval=[
            {
                "query": "a",
                "target": "b",
                "split": "test",
                "recall": {"1": 0.2, "5": None},
                "median_rank": 4.0,
            },
        ],
        epochs=[{"epoch": e, "train_loss": 0.5, "seconds": 0.1} for e in (0, 1)],
    )
    points = list(epoch_metrics(record, start=1000))
    assert points == list(epoch_metrics(record, start=1000))
    assert [(p.time, p.step) for p in points if p.key == "train_loss"] == [(1100, 0), (1200, 1)]
    final = {point.key: point.value for point in final_metrics(record, start=1000)}
    assert final["retrieval.test.a_to_b.recall_at_1"] == 0.2
    assert "retrieval.test.a_to_b.recall_at_5" not in final
    assert final["retrieval.test.a_to_b.median_rank"] == 4.0
    assert "retrieval.test.a_to_b.mean_average_precision" not in final
    assert final["parameters"] == record.parameters


def test_nested_values_become_dotted_texts() -> None:
    nested = {"a": {"b": 1, "c": [1, 2], "d": {"e": None}}, "f": "text"}
    assert flat(nested) == {"a.b": "1", "a.c": "[1, 2]", "a.d.e": "null", "f": "text"}
    assert cut("abcdef", length=6) == "abcdef"
    assert cut("abcdefg", length=6) == "abcde…"
    assert clean("recall@1/k: 日本") == "recall_1/k_ __"
