"""A registered model served in another process, by `sensorium serve` or `mlflow models serve`."""

from __future__ import annotations

import copy
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.malformed_requests import JSON
from benchmarks.served_model import ServedModel
from workflows.tracking import connected


class Server:
    """A served model in a process of its own."""

    def __init__(
        self,
        served: ServedModel,
        *,
        kind: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.port = free_port()
        self.log = log
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [*self.command(kind), served.model, "--port", str(self.port)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**served.environment(), **(environment or {}), "PATH": path},
                cwd=served.folder,
                start_new_session=True,
            )
        self.connection = self._connection()

    def client(self) -> Server:
        """The same server, over a connection of its own."""
        other = copy.copy(self)
        other.connection = self._connection()
        return other

    @staticmethod
    def command(kind: str) -> list[str]:
        """How it is started, but for the model and its options."""
        if kind == "sensorium":
            return [sys.executable, "-m", "workflows", "serve"]
        served = ["models", "serve", "--env-manager", "local", "-m"]
        return [sys.executable, "-m", "mlflow", *served]

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def wait(self, seconds: float = 180.0) -> None:
        """Until it answers; RuntimeError, with its log, if it ends or does not."""
        last = time.monotonic() + seconds
        while time.monotonic() < last and self.process.poll() is None:
            try:
                self.connection.request("GET", "/ping")
                if self.connection.getresponse().read() is not None:
                    return
            except OSError:
                self.connection.close()
                time.sleep(0.1)
        raise RuntimeError(f"the server does not answer:\n{self.log.read_text()[-3000:]}")

    def post(self, body: bytes, *, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body; status 0 if the connection broke."""
        for again in (True, False):
            try:
                given = {"Content-Type": JSON} if headers is None else headers
                self.connection.request("POST", "/invocations", body=body, headers=given)
                response = self.connection.getresponse()
                return response.status, response.read()
            except (http.client.RemoteDisconnected, ConnectionError) as error:
                # One that the server closed after an answer may be opened again, once.
                self.connection.close()
                if not again:
                    return 0, repr(error).encode()
        raise AssertionError

    @property
    def pid(self) -> int:
        """Of the process that holds the model: that of the command, or of what it started."""
        found = self.process.pid
        while True:
            children = Path(f"/proc/{found}/task/{found}/children").read_text().split()
            if not children:
                return found
            found = int(children[-1])

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal; its exit code."""
        self.connection.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, by)
        return self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load(served: ServedModel) -> Any:
    """The model as anyone loads it, in this process."""
    import mlflow

    with connected(served.uri):
        return mlflow.pyfunc.load_model(served.model)
