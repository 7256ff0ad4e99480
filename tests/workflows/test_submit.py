"""`submit`: what is shipped, what is refused, and a job on a real Ray with a dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.workflows.command import sensorium
from workflows import shipping
from workflows.pipeline import ConfigurationError, load_pipeline
from workflows.shipping import environment, pack

ROOT = Path(__file__).resolve().parents[2]
YAML = """
name: nightly
dataset: {{path: {table}, split: split, shard_rows: {{min: 10, target: 20, max: 60}}}}
features:
  text: {{column: text, encoder: {{type: own_encoder.SlowSpec, seconds: 0.1}}}}
  words: {{column: text, encoder: {{type: hashing, dim: 32}}}}
task: {{target: label}}
candidates: [{{type: single, modality: text}}]
store: {store}
tracking: {{uri: {tracking}}}
"""
ROWS = 300
BAD = 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pipeline as it lies on somebody's computer; the data lie where a cluster sees them."""
    shared, home = tmp_path / "shared", tmp_path / "home"
    shared.mkdir()
    home.mkdir()
    texts = ["" if i < BAD else f"text {i}" for i in range(ROWS)]
    splits = [("train", "validation", "test")[i % 3] for i in range(ROWS)]
    frame = {"sample_id": range(ROWS), "text": texts, "split": splits, "label": np.arange(ROWS) % 2}
    pd.DataFrame(frame).to_parquet(shared / "table.parquet", index=False)
    shutil.copy(Path(__file__).with_name("slow_encoder.py"), home / "own_encoder.py")
    (home / "nightly.yaml").write_text(
        YAML.format(
            table=shared / "table.parquet",
            store=shared / "store",
            tracking=f"sqlite:///{shared}/mlflow.db",
        )
    )
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "own_encoder", raising=False)
    return home


def packed(folder):
    return pack(load_pipeline(folder / "nightly.yaml"))


def change(folder, old, new):
    text = (folder / "nightly.yaml").read_text()
    assert old in text
    (folder / "nightly.yaml").write_text(text.replace(old, new))


def test_the_code_and_the_yaml_go_along_and_nothing_else(folder, tmp_path):
    for name in (".venv/lib/x.py", "store/embeddings/a.parquet", "demo/digits.yaml", "mlflow.db"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for the cluster")
    (folder / ".env").write_text("AWS_SECRET_ACCESS_KEY=1")
    shipment = packed(folder)
    own = {n for n in shipment.files if n.partition("/")[0] not in shipping.PACKAGES}
    assert own == {"nightly.yaml", "own_encoder.py"}
    # All that is installed of this project, and it runs from there.
    for package in shipping.PACKAGES:
        there = [p for p in (ROOT / package).rglob("*") if p.is_file()]
        there = [p for p in there if "__pycache__" not in p.parts]
        assert {str(p.relative_to(ROOT)) for p in there} <= set(shipment.files)
    shipment.copy_to(tmp_path / "job")
    done = subprocess.run(
        [sys.executable, "-m", "workflows", "--help"],
        cwd=tmp_path / "job",
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "submit" in done.stdout, done.stderr
    assert shipment.bytes == sum(p.stat().st_size for p in shipment.files.values()) < 5e6


def test_a_job_is_the_same_by_its_contents(folder):
    first = packed(folder).digest
    os.utime(folder / "own_encoder.py", (1e9, 1e9))
    assert packed(folder).digest == first
    with (folder / "own_encoder.py").open("a") as file:
        file.write("\n# changed\n")
    assert packed(folder).digest != first


def test_models_that_the_yaml_names_go_along(folder):
    (folder / "models/mini/.cache").mkdir(parents=True)
    (folder / "models/mini/vectors.txt").write_text("a 1 2\nb 3 4\n")
    (folder / "models/mini/.cache/lock").write_text("")
    (folder / "text").mkdir()  # a column's name is no path
    (folder / "text/large.bin").write_text("x")
    change(
        folder, "{type: hashing, dim: 32}", "{type: word_vectors, path: models/mini/vectors.txt}"
    )
    shipment = packed(folder)
    assert "models/mini/vectors.txt" in shipment.files
    assert not [n for n in shipment.files if n.startswith(("text/", "models/mini/.cache"))]


def test_too_much_is_refused_with_what_is_large(folder, monkeypatch):
    monkeypatch.setattr(shipping, "MOST_BYTES", 1000)
    with pytest.raises(ConfigurationError, match=r"would be shipped.*at most 1\.0 kB; the largest"):
        packed(folder)


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("table", "dataset.path: 'table.parquet' is on this computer"),
        ("store", "store: 'store' would be a folder of the job's own"),
        ("tracking", "tracking.uri: 'sqlite:///mlflow.db' would be a file of the job's own"),
    ],
)
def test_what_a_cluster_would_not_see_is_refused(folder, field, line):
    shared = folder.parent / "shared"
    old = {"table": shared / "table.parquet", "store": shared / "store"}.get(field)
    new = {"table": "table.parquet", "store": "store"}.get(field)
    if field == "tracking":
        old, new = f"sqlite:///{shared}/mlflow.db", "sqlite:///mlflow.db"
    change(folder, f"{old}", f"{new}")
    with pytest.raises(ConfigurationError) as found:
        packed(folder)
    assert line in str(found.value) and "nightly.yaml:" in str(found.value)


def test_no_secret_is_among_the_variables_of_a_job(folder, monkeypatch):
    pipeline = load_pipeline(folder / "nightly.yaml")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    given = environment(pipeline)
    assert set(given) == {"SENSORIUM_GIT_COMMIT", "MLFLOW_TRACKING_URI"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@mlflow:5000")
    with pytest.raises(ConfigurationError) as found:
        environment(pipeline)
    assert "hidden" not in str(found.value) and "MLFLOW_TRACKING_PASSWORD" in str(found.value)


def test_a_cluster_that_is_not_there_is_named_with_what_to_do(folder, capsys):
    address = f"http://127.0.0.1:{free_port()}"
    code, _, said = sensorium(capsys, "submit", folder / "nightly.yaml", "--address", address)
    assert code == 1
    assert f"the job server at {address} cannot be reached" in said and "--address" in said


# ------------------------------------------------------------------ on a real cluster


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def job_server():
    """The dashboard's address, and that of the metrics of its only node."""
    metrics = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.workflows.job_server", str(metrics), str(free_port())],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = process.stdout.readline().strip()
    try:
        assert address, process.communicate(timeout=60)
        yield address, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate("", timeout=60)
        if process.poll() is None:
            process.kill()


class Proxy:
    """A way to a server that breaks, once, after it has carried some words."""

    def __init__(self, address, *, breaks_after):
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._words = breaks_after.encode()
        self.breaks = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listening.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listening.accept()
                theirs = socket.create_connection((self._host, self._port))
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                if self._words in data and not self.breaks:
                    self.breaks += 1
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.mark.slow
def test_a_job_is_followed_over_a_connection_that_breaks_and_its_code_is_told(
    folder, capsys, monkeypatch
):
    pytest.importorskip("aiohttp_cors", reason="the job server needs ray[default]")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown")
    file = folder / "nightly.yaml"
    with job_server() as (address, metrics):
        code, said, errors = sensorium(capsys, "submit", file, "--address", address, "--detach")
        assert code == 0 and "sensorium-nightly-" in said and "ray job stop" in said, errors
        proxy = Proxy(address, breaks_after="300 samples")
        code, said, errors = sensorium(capsys, "submit", file, "--address", proxy.address)
        proxy.close()
        assert "is under way; attached to it" in said, said + errors
        assert proxy.breaks == 1 and "the connection was lost" in errors
        assert code == 4, "of the job: more bad rows than the budget allows"
        lines = [line for line in said.splitlines() if line.strip()]
        assert sum("300 samples in" in line for line in lines) == 1, "nothing is shown twice"
        (line,) = [line for line in lines if line.startswith("{")]
        told = json.loads(line)
        assert (told["status"], told["exit_code"], told["rows"]) == ("over budget", 4, ROWS)
        assert told["embedded"] == 2 * (ROWS - BAD)
        assert (folder.parent / "shared/store/attempts").exists()
        (job,) = jobs(address)
        assert job.submission_id.endswith("-1") and job.metadata["pipeline"] == "nightly"
        assert "never-shown" not in str(job) + said
        assert rows_counted(metrics) == {"embedded": 2 * (ROWS - BAD), "bad": 2 * BAD}


def jobs(address):
    """Those that were submitted."""
    from ray.job_submission import JobSubmissionClient

    return [job for job in JobSubmissionClient(address).list_jobs() if job.submission_id]


def rows_counted(address):
    """Rows by kind, over modalities, as Prometheus would read them."""
    end = time.monotonic() + 30
    found: dict[str, float] = {}
    while not found and time.monotonic() < end:
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        for line in text.splitlines():
            if line.startswith("ray_sensorium_rows_total{"):
                labels, _, value = line.rpartition(" ")
                assert 'pipeline="nightly"' in labels
                kind = labels.partition('kind="')[2].partition('"')[0]
                found[kind] = found.get(kind, 0) + float(value)
        time.sleep(0.5)
    return found
