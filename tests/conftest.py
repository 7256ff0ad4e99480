"""What all tests share: their environment, one small Ray, and a check that nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")
"""Variables that would send a test's work to a real cluster or server."""

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables of the tests and of every process they start: no network, one thread, no noise."""

MARK = "SENSORIUM_TEST_SESSION"
GRACE_SECONDS = 40.0
"""How long processes may take to go once the tests are over; a Ray whose driver died needs it."""

_before: set[str] = set()
_folder: str | None = None
_faults: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    global _folder
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    os.environ.update(ENVIRONMENT)
    # A Ray of our own even where another runs; the path is short since it holds sockets.
    _folder = tempfile.mkdtemp(prefix="sr-", dir="/tmp" if os.path.isdir("/tmp") else None)
    os.environ["RAY_TMPDIR"] = _folder
    os.environ[MARK] = os.path.basename(_folder)
    _before.update(os.listdir(ROOT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a test has left a process behind, or a file in the checkout."""
    if _folder is None:
        return
    left = _wait_for_end(_folder)
    _faults.extend(f"process {pid} still runs: {command}" for pid, command in left.items())
    for pid in left:
        _kill(pid)
    expected = {".pytest_cache", ".coverage", "__pycache__"}
    for name in sorted(set(os.listdir(ROOT)) - _before - expected):
        if name.startswith(("mlruns", "mlartifacts", "mlflow.db", "store", "outputs")):
            _faults.append(f"{ROOT / name} was written by a test; tests write under tmp_path")
    if _faults:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for fault in _faults:
        terminalreporter.write_line(f"LEFT BEHIND: {fault}", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs, started for the first test that asks for it."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        object_store_memory=256 * 1024**2,
    )
    yield
    ray.shutdown()


def processes_of(folder: str) -> dict[int, str]:
    """Command lines, by process id, of what was started by the tests that own a Ray folder.

    A process is ours by the mark in its environment; a Ray worker, which writes its title over
    its environment, by the log files that it holds open in our folder. Linux alone.
    """
    mark = f"{MARK}={os.path.basename(folder)}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid == os.getpid():
            continue
        try:
            ours = mark in (entry / "environ").read_bytes() or any(
                os.readlink(link).startswith(f"{folder}/") for link in (entry / "fd").iterdir()
            )
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        if ours and command and "multiprocessing.resource_tracker" not in command:
            found[pid] = command[:200]
    return found


def _wait_for_end(folder: str) -> dict[int, str]:
    end = time.monotonic() + GRACE_SECONDS
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
