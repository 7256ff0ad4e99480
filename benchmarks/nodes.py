"""Machines that are none: Rays on this one, each with folders and an address of its own.

A machine is a session of processes around `ray start`. Its working folder, home and folder for
temporary files are its own, and, where the system lets us (Linux, as root), it sees nothing of
what the others keep under /tmp: a mount namespace with an empty one over it. So what a worker
wants of the driver's disk is not there. Its power is cut by SIGKILL to all its processes at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
RAY = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A node that refuses to answer for 1.5 s is lost; by default 15 s, of which nothing is learned.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
HIDDEN = "mount -t tmpfs -o mode=1777 tmpfs /tmp && mkdir -p {folder}/tmp && cd {folder} && "
"""What the shell of a machine does before all else, where folders can be hidden."""


def can_hide(base: Path) -> bool:
    """Whether machines with folders in `base` can have a /tmp that no other sees."""
    needed = (ROOT, Path(sys.prefix).resolve(), Path(sys.executable))
    if shutil.which("unshare") is None or not base.is_relative_to("/tmp"):
        return False
    if any(path.is_relative_to("/tmp") for path in needed):
        return False
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /tmp"], capture_output=True
    )
    return tried.returncode == 0


class Machine:
    """One machine: started, cut from its power, and started again under the same name."""

    def __init__(
        self,
        name: str,
        *,
        base: Path,
        address: str,
        cpus: int,
        head: str | None,
        hide: bool,
        environment: Mapping[str, str],
    ) -> None:
        """`head` is the address of the cluster to join, None for its head. `base` is in /tmp."""
        self.name = name
        self._folder = base / name
        self._address = address
        self._cpus = cpus
        self._head = head
        self._hide = hide
        self._environment = environment
        self._session: subprocess.Popen[str] | None = None
        self._starts = 0
        self._log = base / f"{name}.log"

    def start(self) -> None:
        """Switch it on; it joins the cluster by itself, a few seconds later."""
        assert self._session is None, f"{self.name} is running"
        self._starts += 1
        folder = self._folder / f"{self._starts}"  # what it had is gone with its power
        (folder / "tmp").mkdir(parents=True)
        options = ["--num-cpus", str(self._cpus), "--node-ip-address", self._address]
        options += ["--object-store-memory", str(100 * 1024**2), "--disable-usage-stats"]
        if self._head is None:
            options += ["--head", "--port", "0", "--include-dashboard", "false"]
            options += ["--temp-dir", f"{folder}/ray"]
        else:
            options += ["--address", self._head, "--temp-dir", f"{folder}/ray"]
        words = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
        command = " ".join(f"'{word}'" for word in words)
        if self._hide:
            command = HIDDEN.format(folder=folder) + f"exec {command}"
            words = ["unshare", "--mount", "sh", "-c", command]
        with self._log.open("a") as log:
            self._session = subprocess.Popen(
                words,
                cwd=folder,
                env={
                    **os.environ,
                    **RAY,
                    **self._environment,
                    "HOME": str(folder),
                    "TMPDIR": f"{folder}/tmp",
                    "PYTHONPATH": str(ROOT),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )

    @property
    def is_off(self) -> bool:
        return self._session is None

    @property
    def has_failed(self) -> bool:
        """Whether it is on, and its Ray has ended by itself."""
        return self._session is not None and self._session.poll() is not None

    def ray_folder(self) -> Path:
        """Where its Ray keeps what it keeps."""
        return self._folder / f"{self._starts}" / "ray"

    def working(self) -> list[str]:
        """What its Ray workers are at, as they call themselves: `ray::RayTrainWorker`, …"""
        found = []
        for pid in self._processes():
            with suppress(OSError):
                title = (
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .rstrip(b"\0")
                    .decode("utf-8", "replace")
                )
                if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title:
                    found.append(title.removeprefix("ray::").partition(".")[0])
        return sorted(found)

    def cut_power(self) -> list[str]:
        """Kill all its processes; what they were at."""
        if self._session is None:
            return []
        lost = self.working()
        # Who is killed first cannot tell the others; one that was being forked is met next time.
        while pids := self._processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._session.wait(0.02)
        self._session.wait()
        self._session = None
        shutil.rmtree(self._folder / f"{self._starts}", ignore_errors=True)
        return lost

    def log(self) -> str:
        """The end of what its Ray has said."""
        return self._log.read_text(errors="replace")[-2000:]

    def _processes(self) -> list[int]:
        """Those of its session that are alive."""
        assert self._session is not None
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[3]) == self._session.pid and fields[0] not in "ZX":
                found.append(int(entry.name))
        return found


class Machines:
    """A head without CPUs, on which the driver runs, and two workers; for the time of a block."""

    def __init__(self, base: Path, *, environment: Mapping[str, str]) -> None:
        self.hidden = can_hide(base)
        self.base, self._environment = base, environment
        self.head = self._machine("head", number=1, cpus=0, head=None)
        self.head.start()
        self.address = f"127.0.0.1:{_port_of(self.head)}"
        self.workers = [
            self._machine(f"worker-{n}", number=n + 1, cpus=1, head=self.address) for n in (1, 2)
        ]

    def _machine(self, name: str, *, number: int, cpus: int, head: str | None) -> Machine:
        return Machine(
            name,
            base=self.base,
            address=f"127.0.0.{number}",
            cpus=cpus,
            head=head,
            # The driver and the head's Ray meet in folders, as on one machine they do.
            hide=self.hidden and head is not None,
            environment=self._environment,
        )

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *error: object) -> None:
        for machine in (*self.workers, self.head):
            machine.cut_power()


def _port_of(head: Machine) -> int:
    """The port of the cluster that a head has started, once it answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            written = (head.ray_folder() / "ray_current_cluster").read_text().strip()
            host, _, port = written.rpartition(":")
            socket.create_connection((host, int(port)), timeout=1).close()
            return int(port)
        time.sleep(0.05)
    raise RuntimeError(f"the head has not started:\n{head.log()}")
