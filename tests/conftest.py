"""What all tests share: their environment, one small Ray, and a check that nothing is left.

They may run in several processes (`pytest -n 2 --dist loadgroup --no-loadscope-reorder`): those
that are slow in one of them, since most start Ray, and two that start at once on a small machine
would be too slow for Ray's own limits; the others file by file, so that what is prepared for a file
is prepared once; unless a test names its group.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_table import FaultTable

ROOT = Path(__file__).resolve().parents[1]

ELSEWHERE = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_NAME")
"""Variables that would send a test's work to a real cluster or server."""

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "NO_PROXY": "127.0.0.1,localhost",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Or Ray's workers would get next to nothing while other tests run beside them.
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables of the tests and of every process they start: no network, one thread, no noise."""

REAL_S3 = "SENSORIUM_TEST_S3"
"""Names the endpoint of a real S3 server, which the AWS_* variables have the credentials of; the
tests of S3 run on it too. It may be wiped: buckets are made there, and left."""
BUCKET = "sensorium-tests"

MARK = "SENSORIUM_TEST_SESSION"
GRACE_SECONDS = 40.0
"""How long processes may take to go once the tests are over; a Ray whose driver died needs it."""

_before: set[str] = set()
_folder: str | None = None
_faults: list[str] = []
_fault_table = FaultTable()


def pytest_configure(config: pytest.Config) -> None:
    global _folder
    for name in ELSEWHERE:
        os.environ.pop(name, None)
    os.environ.update(ENVIRONMENT)
    os.environ.pop("COLUMNS", None)  # set by some that start tests: what is printed is as wide
    if REAL_S3 not in os.environ:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="not-a-secret")
    os.environ.update(AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")
    # A Ray of our own even where another runs; the path is short since it holds sockets.
    _folder = tempfile.mkdtemp(prefix="sr-", dir="/tmp" if os.path.isdir("/tmp") else None)
    os.environ["RAY_TMPDIR"] = _folder
    os.environ[MARK] = os.path.basename(_folder)
    _before.update(os.listdir(ROOT))


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        ray = _is_slow(item) or "ray_cluster" in getattr(item, "fixturenames", ())
        group = "ray" if ray else str(item.path.relative_to(ROOT))
        item.add_marker(pytest.mark.xdist_group(group))
    # In one process the slow ones last. In several, the longest groups first, or one of them would
    # be alone at the end.
    several = "PYTEST_XDIST_WORKER" in os.environ
    items.sort(key=_length if several else _is_slow, reverse=several)


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def _length(item: pytest.Item) -> int:
    """How long the group of a test takes: the one with Ray, then the one with faults, the rest."""
    marker = item.get_closest_marker("xdist_group")
    return {"ray": 2, "faults": 1}.get(str(marker and marker.args[0]), 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fail a test that would send those after it elsewhere: to its cluster, server or database.

    Or that keeps the processor from them.
    """
    try:
        yield
    finally:
        left = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
        mlflow = sys.modules.get("mlflow")
        if mlflow is not None and mlflow.is_tracking_uri_set():
            left["mlflow.set_tracking_uri"] = mlflow.get_tracking_uri()
            mlflow.set_tracking_uri(None)
        if hasattr(os, "SCHED_FIFO") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
            left["os.sched_setscheduler"] = "real-time priority"
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    assert not left, f"{item.nodeid} has left, for all tests after it: {left}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a test has left a process behind, or a file in the checkout."""
    if _folder is None:
        return
    if not _leads_others(session.config):
        left = _wait_for_end(_folder)
        _faults.extend(f"process {pid} still runs: {command}" for pid, command in left.items())
        for pid in left:
            _kill(pid)
    expected = {".pytest_cache", ".coverage", "__pycache__"}
    for name in sorted(set(os.listdir(ROOT)) - _before - expected):
        if name.startswith(("mlruns", "mlartifacts", "mlflow.db", "store", "outputs")):
            _faults.append(f"{ROOT / name} was written by a test; tests write under tmp_path")
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output.update(left_behind=list(_faults), fault_table=_fault_table.dump())
    elif _faults:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _leads_others(config: pytest.Config) -> bool:
    """Whether the tests run in other processes, which look for themselves what they leave."""
    return bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a process tells that ran a share of the tests."""
    del error
    output = getattr(node, "workeroutput", {})
    _faults.extend(output.get("left_behind", ()))
    if "fault_table" in output:
        _fault_table.add(output["fault_table"])


@pytest.fixture
def fault_table() -> FaultTable:
    """What became of injected faults; printed at the end of the tests."""
    return _fault_table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for fault in _faults:
        terminalreporter.write_line(f"LEFT BEHIND: {fault}", red=True)
    _fault_table.write(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """A local Ray of two CPUs, started for the first test that asks for it.

    Its workers find the S3 server of `s3_endpoint`.
    """
    import ray

    from workflows.cluster import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        start_ray(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            object_store_memory=256 * 1024**2,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The endpoint of moto's S3 server, on a free port, in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(request: pytest.FixtureRequest) -> str:
    """The endpoint of a real S3 server, if there is one, else of moto's."""
    return os.environ.get(REAL_S3) or str(request.getfixturevalue("moto_endpoint"))


@pytest.fixture(params=["moto", "real"])
def s3_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An s3:// URI under which there is nothing, on a server that the environment leads to."""
    return _empty_prefix(request, server=request.param, monkeypatch=monkeypatch)


@pytest.fixture(params=["local", "moto", "real"])
def storage_root(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The root of an empty storage, of each kind in turn."""
    if request.param == "local":
        return str(tmp_path / "store")
    return _empty_prefix(request, server=request.param, monkeypatch=monkeypatch)


def _empty_prefix(
    request: pytest.FixtureRequest, *, server: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    if server == "moto":
        endpoint = request.getfixturevalue("moto_endpoint")
    elif REAL_S3 in os.environ:
        endpoint = os.environ[REAL_S3]
    else:
        pytest.skip(f"{REAL_S3} names no S3 server")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    make_bucket(BUCKET)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def make_bucket(name: str) -> None:
    """Make a bucket if it is not there, where the environment leads to."""
    import boto3
    from botocore.exceptions import ClientError

    try:
        boto3.client("s3").create_bucket(Bucket=name)
    except ClientError as error:
        if "BucketAlready" not in str(error):
            raise


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
