"""MLflow's own server, over HTTP, with a database of its own: well, for a moment away, and gone."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from urllib3.util import Retry

from tests.workflows.conftest import MlflowServer
from workflows import tracking
from workflows.pipeline import StageError
from workflows.promotion import operate, registry
from workflows.promotion.history import history
from workflows.promotion.outcome import Promotion
from workflows.promotion.promote import promote

Shapes = Any
"""What the fixture `fitted_shapes` gives; see conftest.py."""


@pytest.fixture
def server(mlflow_server: MlflowServer) -> str:
    return mlflow_server.uri


class Unsteady(ThreadingHTTPServer):
    """Stands before a server, and answers every n-th request with a fault."""

    daemon_threads = True

    def __init__(self, target: str, *, every: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.every = target, every
        self.requests, self.faults = 0, dict[str, int]()
        self.lock = threading.Lock()

    def fault(self) -> str | None:
        """What befalls the next request, if anything."""
        with self.lock:
            self.requests += 1
            if self.requests % self.every:
                return None
            kinds = ("busy", "refused", "busy again")
            kind = kinds[self.requests // self.every % len(kinds)]
            self.faults[kind] = self.faults.get(kind, 0) + 1
            return kind


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Unsteady

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault()
        if fault == "refused":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault is not None:
            self._answer(503, b"the server is down", {})
            return
        headers = {k: v for k, v in self.headers.items() if k not in ("Host", "Connection")}
        asked = urllib.request.Request(
            self.server.target + self.path, data=body or None, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(asked) as found:
                self._answer(found.status, found.read(), dict(found.headers))
        except HTTPError as error:
            self._answer(error.code, error.read(), dict(error.headers))

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow asks again at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.01")


def run(shapes: Shapes, *names: str, model: str) -> Promotion:
    records = [record for record in shapes.records if record.name in names]
    spec = shapes.pipeline.spec
    spec = spec.model_copy(
        update={"tracking": spec.tracking.model_copy(update={"model": model, "experiment": model})}
    )
    return promote(
        pipeline=dataclasses.replace(shapes.pipeline, spec=spec),
        store=shapes.store,
        snapshot=shapes.snapshot,
        records=records,
    )


def test_a_day_on_a_server(
    fitted_shapes: Shapes, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    first = run(fitted_shapes, "early", model="day")
    assert first.promoted
    again = run(fitted_shapes, "early", model="day")
    assert not again.changed and again.verdict == first.verdict
    refused = run(fitted_shapes, "single-caption", model="day")
    assert refused.refused and refused.champion_after == "1"
    with tracking.connected(server) as client:
        assert registry.number_of(registry.champion_of(client, model="day")) == "1"
        assert [(m.before, m.after) for m in history(client, model="day")] == [(None, "1")]
        with pytest.raises(StageError, match="the gate refused it"):
            operate.approve(client, model="day", number="2")


def test_a_server_that_is_away_for_moments_loses_nothing(
    fitted_shapes: Shapes, server: str, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    proxy = Unsteady(server, every=4)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
    try:
        assert run(fitted_shapes, "early", model="away").promoted
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert set(proxy.faults) == {"busy", "refused", "busy again"}
    assert min(proxy.faults.values()) > 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert not run(fitted_shapes, "early", model="away").changed, "nothing was missing"
    with tracking.connected(server) as client:
        experiment = client.get_experiment_by_name("away")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
    assert [entry.info.status for entry in runs] == ["FINISHED"] * 2
    record = next(r for r in fitted_shapes.records if r.name == "early")
    child = next(entry for entry in runs if entry.info.run_name == "early")
    assert child.data.metrics["test.accuracy"] == record.metrics["test"]["accuracy"]


def test_a_server_that_stays_away_is_told_with_what_to_do(
    fitted_shapes: Shapes, monkeypatch: pytest.MonkeyPatch, quickly: None
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret@127.0.0.1:{port}")
    with pytest.raises(StageError) as error:
        run(fitted_shapes, "early", model="gone")
    said = str(error.value)
    assert f"MLflow at http://…@127.0.0.1:{port} does not answer" in said
    assert "run the same command again" in said
    assert "s3cret" not in said


def test_a_server_may_be_down_for_a_minute_and_is_not_waited_for_for_ever() -> None:
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    )

    retry = Retry(
        total=MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        backoff_factor=MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
    )
    waited = 0.0
    while retry.total:
        retry = retry.increment("GET", "/", error=ConnectionRefusedError())
        waited += retry.get_backoff_time()
    assert 60 < waited < 600


def test_values_that_a_server_refuses_are_cut_or_left_out(
    fitted_shapes: Shapes, server: str, tmp_path: Path
) -> None:
    record = dataclasses.replace(
        fitted_shapes.records[0],
        fingerprint="e" * 32,
        epochs=[{"epoch": 0, "train_loss": float("nan"), "validation_loss": 1.0, "seconds": 0.1}],
    )
    with tracking.connected(server) as client:
        logged = tracking.log_training(
            client,
            experiment="odd",
            uri=server,
            name="odd",
            description={"long": "x" * 20_000, "odd name: ü": 1},
            store=fitted_shapes.store,
            snapshot=fitted_shapes.snapshot,
            records=[record],
            log_model=lambda _: "models:/m-1",
            on_event=lambda _: None,
        )
        parent, child = client.get_run(logged.parent), client.get_run(logged.runs["e" * 32])
        points = client.get_metric_history(child.info.run_id, "train_loss")
        whole = json.loads(
            Path(client.download_artifacts(logged.parent, "pipeline.json")).read_text()
        )
    assert points == []
    assert child.data.metrics["validation_loss"] == 1.0
    assert len(parent.data.params["long"]) == 500
    assert len(whole["long"]) == 20_000, "an artifact holds it whole"
