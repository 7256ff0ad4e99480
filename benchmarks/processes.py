"""A command and every process that it starts, watched from outside. Linux alone.

Memory is the proportional set size (PSS, `/proc/PID/smaps_rollup`; proc(5)): pages that several
processes share are divided between them, so the sum over a tree is what the tree takes. CPU time
that other programs burned meanwhile is kept beside each measurement, since it is what a shared
machine adds to one.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a process tree."""

    at: float
    """Seconds since 1970."""
    pss: int
    """PSS of the whole tree, in bytes."""
    own: float
    """CPU seconds of the tree until now."""
    busy: float
    """CPU seconds of the whole machine until now."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Who had the CPUs for a while."""

    seconds: float
    """By the clock."""
    cpu_seconds: float
    """Of the tree."""
    foreign: float
    """CPUs that others kept busy, on average."""


@dataclass(kw_only=True)
class Watched:
    """What was seen of a process tree."""

    seconds: float = 0.0
    output: str = ""
    looks: list[Look] = field(default_factory=list)
    root_peak: int = 0
    """Greatest PSS of the first process alone, in bytes."""

    @property
    def peak(self) -> int:
        """Greatest PSS of the whole tree, in bytes."""
        return max((look.pss for look in self.looks), default=0)

    @property
    def share(self) -> Share:
        """Over the whole run."""
        return self.between(self.looks[0].at, self.looks[-1].at)

    def between(self, begun: float, ended: float) -> Share:
        """From one moment to another, in seconds since 1970; between two looks in proportion."""
        at = [look.at for look in self.looks]
        own = np.diff(np.interp([begun, ended], at, [look.own for look in self.looks]))
        busy = np.diff(np.interp([begun, ended], at, [look.busy for look in self.looks]))
        seconds = max(ended - begun, 1e-9)
        foreign = max(0.0, float(busy[0] - own[0])) / seconds
        return Share(seconds=seconds, cpu_seconds=float(own[0]), foreign=foreign)


def run_watched(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, interval: float = 0.25
) -> Watched:
    """Run a command to its end. RuntimeError with its output if it fails."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watched = Watched()
    tree = _Tree(process.pid)
    ended = threading.Event()

    def look() -> None:
        while True:
            sizes = tree.look()
            watched.looks.append(
                Look(
                    at=time.time(),
                    pss=sum(sizes.values()),
                    own=tree.cpu_seconds,
                    busy=busy_seconds(),
                )
            )
            watched.root_peak = max(watched.root_peak, sizes.get(process.pid, 0))
            if ended.wait(interval):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    assert process.stdout is not None
    watched.output = process.stdout.read()
    code = process.wait()
    watched.seconds = time.perf_counter() - begun
    ended.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{watched.output[-4000:]}")
    return watched


def timed(run: Callable[[], object]) -> Share:
    """Call a function in this process, and say what it took."""
    busy, own, begun = busy_seconds(), time.process_time(), time.perf_counter()
    run()
    seconds, own = time.perf_counter() - begun, time.process_time() - own
    foreign = max(0.0, busy_seconds() - busy - own) / seconds
    return Share(seconds=seconds, cpu_seconds=own, foreign=foreign)


def busy_seconds() -> float:
    """CPU seconds that this machine has worked since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / TICKS


class _Tree:
    """A process and its descendants; those that were seen once stay, whoever adopts them."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._cpu: dict[tuple[int, int], int] = {}

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values()) / TICKS

    def look(self) -> dict[int, int]:
        """PSS of each process of the tree that is there, in bytes."""
        alive = {(pid, started): (parent, ticks) for pid, started, parent, ticks in _processes()}
        ours = {pid for pid, _ in self._cpu.keys() & alive.keys()} | {self._root}
        while True:
            more = {pid for (pid, _), (parent, _) in alive.items() if parent in ours} - ours
            if not more:
                break
            ours |= more
        for key, (_, ticks) in alive.items():
            if key[0] in ours:
                self._cpu[key] = ticks
        return {pid: _pss(pid) for pid in ours}


def _processes() -> Iterator[tuple[int, int, int, int]]:
    """Number, start time, parent and CPU ticks of every process."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        yield int(name), int(fields[19]), int(fields[1]), int(fields[11]) + int(fields[12])


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        pass
    return 0
