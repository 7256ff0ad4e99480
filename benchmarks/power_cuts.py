"""Machines of `benchmarks.nodes` that lose their power in the middle of a pipeline's run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.nodes import Machine, Machines

OFF_SECONDS = (0.5, 4.0)
"""How long a machine stays off."""
MOST_FAILURES = 5
"""How often machines may fail to start, in a run."""
MOST_SHARE = 0.9
"""Later moments may not come about: a stage does not always take as long."""
WORKERS = {"embed": "ShardEncoder", "train": "RayTrainWorker", "score": "MapWorker"}
"""What works in each stage that works on the cluster, as Ray calls it."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A machine that is switched off."""

    stage: str
    share: float
    """When: a share of the time that the stage took undisturbed, from its begin."""
    worker: int
    off: float
    """Seconds until it is switched on again."""
    at: str | None = None
    """Not before a machine is at this, as its Ray worker calls itself; then that machine."""

    @classmethod
    def drawn(cls, draw: random.Random, *, each: int) -> list[Kill]:
        """So many in each stage that works on the cluster, at random moments.

        Every other one is of either machine, whatever that is at; the others wait until a machine
        is at work, and take that.
        """
        found = []
        for stage, worker in WORKERS.items():
            for number in range(each):
                at_work = number % 2 == 0
                found.append(
                    cls(
                        stage=stage,
                        share=draw.uniform(0, MOST_SHARE / 2 if at_work else MOST_SHARE),
                        worker=draw.randrange(2),
                        off=draw.uniform(*OFF_SECONDS),
                        at=worker if at_work else None,
                    )
                )
        return found


@dataclass(kw_only=True)
class Ended:
    """How a pipeline ended, and what it left behind."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    kills: list[str] = field(default_factory=list)
    """When a machine was switched off, and what it was at."""
    at_work: set[str] = field(default_factory=set)
    """The stages in which a machine was lost that was at their work."""
    output: str = ""
    codes: list[int] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    """What must be equal: by name, its digest."""


class Disturber:
    """Switches machines off at the moments of a plan, and on again."""

    def __init__(
        self, machines: Machines, *, kills: Sequence[Kill], usual: Mapping[str, float], ended: Ended
    ) -> None:
        self.stage = ""
        self.give_up: Callable[[], None] = lambda: None
        """Ends the command that is run."""
        self._machines, self._usual, self._ended = machines, usual, ended
        self._waiting = list(kills)
        self._off: dict[Machine, float] = {}
        """Machines that are off for a while, and until when."""
        self._failures = 0
        self._begun = self._first = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._disturb, daemon=True)

    def __enter__(self) -> Disturber:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def clock(self) -> float:
        """Seconds since the begin of the run."""
        return time.monotonic() - self._first

    def begin(self, stage: str) -> None:
        """A stage has begun, and so the one before has ended."""
        self.end()
        for machine in self._machines.workers:
            if machine.is_off and machine not in self._off:
                machine.start()
        with self._lock:
            self.stage, self._begun = stage, time.monotonic()

    def end(self) -> None:
        """The stage has ended; a moment that it did not come to is not made up for."""
        with self._lock:
            if self.stage:
                seconds = self._ended.seconds
                seconds[self.stage] = seconds.get(self.stage, 0) + time.monotonic() - self._begun
            self.stage = ""

    def _disturb(self) -> None:
        while not self._over.wait(0.05) or self._off:
            now = time.monotonic()
            for machine in [m for m, until in self._off.items() if until <= now]:
                machine.start()
                del self._off[machine]
            for machine in self._machines.workers:
                if machine.has_failed and not self._mended(machine):
                    return
            kill = self._due(now)
            doomed = None if kill is None else self._doomed(kill)
            if kill is not None and doomed is not None:
                self._waiting.remove(kill)
                self._cut(doomed, kill)

    def _mended(self, machine: Machine) -> bool:
        """Start a machine again whose Ray has not started: under load it gives up after a while.

        The command is ended where it does not help.
        """
        self._failures += 1
        self._ended.output += f"{machine.name} has ended by itself:\n{machine.log()}\n"
        machine.cut_power()
        if self._failures > MOST_FAILURES:
            self._ended.codes.append(-1)
            self.give_up()
            return False
        machine.start()
        return True

    def _cut(self, machine: Machine, kill: Kill) -> None:
        with self._lock:
            moment, stage = time.monotonic() - self._begun, self.stage
        self._off[machine] = time.monotonic() + kill.off
        lost = machine.cut_power()
        said = (
            f"{machine.name} lost at {moment:.1f} s of {stage}, for {kill.off:.1f} s; it was at "
            f"{', '.join(lost) or 'nothing'}"
        )
        self._ended.kills.append(said)
        if WORKERS.get(stage, "") in " ".join(lost) and stage in WORKERS:
            self._ended.at_work.add(stage)
        self._ended.output += f"{self.clock():6.1f}  -- {said}\n"

    def _doomed(self, kill: Kill) -> Machine | None:
        """The machine that is to go now, if one is."""
        ours = [self._machines.workers[kill.worker]]
        if kill.at is not None:
            on = [machine for machine in self._machines.workers if not machine.is_off]
            ours = [machine for machine in on if kill.at in " ".join(machine.working())]
        return next((m for m in ours if not m.is_off), None)

    def _due(self, now: float) -> Kill | None:
        with self._lock:
            for kill in self._waiting:
                moment = kill.share * self._usual.get(kill.stage, 0)
                if kill.stage == self.stage and now - self._begun >= moment:
                    return kill
        return None
