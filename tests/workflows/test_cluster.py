"""The start of a Ray of this machine's own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import ray

from workflows.cluster import STARTS, start_ray
from workflows.pipeline import StageError

LATE = "The current node timed out during startup. This could happen because ..."
"""As Ray says it."""
NO_PORT = "Timed out waiting for file: /tmp/ray/session/gcs_server_port"


@pytest.mark.parametrize(("late", "said"), [(0, ""), (1, NO_PORT), (STARTS - 1, LATE)])
def test_a_start_that_took_too_long_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], late: int, said: str
) -> None:
    calls = []

    def init(**options: object) -> None:
        calls.append(options)
        if len(calls) <= late:
            raise Exception(said)

    monkeypatch.setattr(ray, "init", init)
    start_ray(num_cpus=2)
    assert calls == [{"num_cpus": 2}] * (late + 1)
    told = capsys.readouterr().err
    assert told.count("Ray has not come up within 30 s; starting it again") == late


@pytest.mark.parametrize(
    ("error", "raised", "begun"),
    [
        (Exception(LATE), StageError("it is too busy"), STARTS),
        (ConnectionError("no such address"), ConnectionError("no such address"), 1),
    ],
)
def test_a_start_that_cannot_be_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: Exception, begun: int
) -> None:
    calls = []

    def init() -> None:
        calls.append(1)
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(type(raised), match=str(raised)):
        start_ray()
    assert len(calls) == begun


START_TWICE = """
import json, time, types
import psutil, ray
from ray._private import node, services

from workflows.cluster import start_ray

get_node, start, late = services.get_node, ray.init, []
later = types.SimpleNamespace(
    sleep=time.sleep, time=time.time, monotonic=lambda: time.monotonic() + 60
)

def children():
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[process.pid] = process.name() + " " + " ".join(process.cmdline())[:300]
        except psutil.NoSuchProcess:
            pass
    return found

def runs(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE  # not awaited by the system
    except psutil.NoSuchProcess:
        return False

def never(*arguments):
    late.append(children())
    node.time = later
    raise RuntimeError("no node yet")

def init(**options):
    services.get_node, node.time = (get_node if late else never), time
    start(**options)

ray.init = init
start_ray(num_cpus=1, include_dashboard=False, log_to_driver=False)
end = time.monotonic() + 10
while (left := [p for p in late[0] if runs(p)]) and time.monotonic() < end:
    time.sleep(0.1)
print(json.dumps([late, left, children()]))
"""
"""The first start is told that there is no node, and that a minute has passed."""


def names(processes: dict[str, str]) -> set[str]:
    return {command.partition(" ")[0] for command in processes.values()}


@pytest.mark.slow
def test_no_ray_is_left_of_a_start_that_took_too_long() -> None:
    """But for an agent of Ray's whose raylet went while it started; it ends with this process."""
    done = subprocess.run(
        [sys.executable, "-c", START_TWICE], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    first, left, second = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= names(first[0]), "the first start was under way"
    assert "gcs_server" in names(second)
    assert not {"gcs_server", "raylet"} & names({pid: first[0][f"{pid}"] for pid in left})
