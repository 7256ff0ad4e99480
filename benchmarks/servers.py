"""An S3 server and MLflow's, each in a process of its own, for the time of a block."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

S3 = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://127.0.0.1:%d" % server.get_host_and_port()[1], flush=True)
server._thread.join()
"""
MLFLOW = """
from werkzeug.serving import make_server
import mlflow.server
server = make_server("127.0.0.1", 0, mlflow.server.app, threaded=True)
print("http://127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
"""
"""The application that the command `mlflow server` starts, which takes three times as long."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of moto's server, which holds everything in memory."""
    with _started(S3, environment={}) as endpoint:
        yield endpoint


@contextmanager
def mlflow_server(
    database: Path, *, artifacts: str, environment: Mapping[str, str]
) -> Iterator[str]:
    """The URI of a server with a SQLite file of its own, which serves the artifacts too."""
    told = {
        # What `mlflow server` tells the application that it starts.
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if "AWS_ENDPOINT_URL" in environment:
        told["MLFLOW_S3_ENDPOINT_URL"] = environment["AWS_ENDPOINT_URL"]
    with _started(MLFLOW, environment={**environment, **told}) as uri:
        yield uri


@contextmanager
def _started(script: str, *, environment: Mapping[str, str]) -> Iterator[str]:
    """What a script says first; it is killed at the end."""
    running = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert running.stdout is not None
    try:
        said = running.stdout.readline().strip()
        if not said:
            raise RuntimeError(f"the server did not start: {script}")
        yield said
    finally:
        running.kill()
        running.wait()
