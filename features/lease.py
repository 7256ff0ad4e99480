"""Announcements of who works on a store, so that collecting garbage leaves a running job alone.

    leases/<kind>-<random>.json     who it is, and which encoders' shards it may need

A job may take up, at any moment, a shard that no snapshot names; so age alone cannot tell garbage.
A job announces itself before it relies on a listing, and renews that while it runs. A collector
announces itself too, then looks for jobs, and spares what they may need; a job that comes later
sees the collector, and waits for its end. Each writes first and looks second, so of the two at
least one sees the other. An announcement that is not renewed for `LEASE_SECONDS` is of a process
that was killed. Times are those that the storage gives its files, so that no two clocks matter.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from features.storage import Storage

FOLDER = "leases"
LEASE_SECONDS = 900.0
RENEW_SECONDS = 60.0
WAIT_SECONDS = 1.0

Role = Literal["job", "collector"]


class LeaseLost(OSError):
    """An announcement could not be renewed in time: others may think that its process is dead."""


@dataclass(frozen=True, kw_only=True)
class Announced:
    """Another process that works on the store."""

    path: str
    role: Role
    encoders: frozenset[str] | None
    """Fingerprints of the encoders whose shards it may need; None for all."""
    who: str
    """What it does, and where, for a person."""


class Lease:
    """One's own announcement, as it stands in the store."""

    def __init__(
        self, storage: Storage, *, role: Role, encoders: Collection[str] | None, what: str
    ) -> None:
        self.path = f"{FOLDER}/{role}-{uuid.uuid4().hex}.json"
        self._storage = storage
        self._body = json.dumps(
            {
                "role": role,
                "encoders": None if encoders is None else sorted(encoders),
                "who": f"{what} on {platform.node()}, process {os.getpid()}",
            }
        ).encode()
        self._renewed = float("-inf")

    def renew(self) -> None:
        """Write it again. One small write."""
        begun = time.monotonic()
        self._storage.replace(self.path, self._body)
        self._renewed = begun

    def check(self) -> None:
        """LeaseLost if it was not renewed for so long that others may soon pass over it."""
        silent = time.monotonic() - self._renewed
        if silent > LEASE_SECONDS / 2:
            raise LeaseLost(
                f"{self._storage.root}/{self.path} could not be renewed for {silent:.0f} s; the "
                "store is not to be reached, or the process stood still; run again"
            )

    def time(self) -> float:
        """Now, by the storage's clock: seconds since 1970. One small write and a listing."""
        self.renew()
        return next(e.modified for e in self._storage.walk(FOLDER) if e.path == self.path)

    def others(self) -> list[Announced]:
        """All other processes that are announced and alive. One small write, a listing, and one
        read for each.
        """
        return announced(self._storage, now=self.time(), beside=self.path)


def announced(storage: Storage, *, now: float, beside: str | None = None) -> list[Announced]:
    """The processes that work on a store, but for the one announced at `beside`."""
    found = []
    for entry in storage.walk(FOLDER):
        name = entry.path.rpartition("/")[2]
        if entry.path == beside or name.startswith("."):
            continue
        if now - entry.modified > LEASE_SECONDS:
            continue
        try:
            body = storage.read(entry.path)
        except FileNotFoundError:
            continue  # it has just ended
        role: Role = "collector" if name.startswith("collector-") else "job"
        try:
            value = json.loads(body)
            encoders = value["encoders"]
            spared = None if encoders is None else frozenset(map(str, encoders))
            found.append(
                Announced(path=entry.path, role=role, encoders=spared, who=str(value["who"]))
            )
        except (ValueError, KeyError, TypeError):
            found.append(Announced(path=entry.path, role=role, encoders=None, who=entry.path))
    return found


@contextmanager
def announce(
    storage: Storage, *, role: Role, encoders: Collection[str] | None = None, what: str
) -> Iterator[Lease]:
    """Stand announced while the block runs, renewed by a thread."""
    lease = Lease(storage, role=role, encoders=encoders, what=what)
    lease.renew()
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                lease.renew()
            except OSError:
                continue  # `check` tells, if it lasts

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # it lapses by itself
            storage.delete([lease.path])


@contextmanager
def announce_job(
    storage: Storage,
    *,
    encoders: Collection[str] | None,
    what: str,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[Lease]:
    """Stand announced as a job that may need any shard of some encoders, old ones too.

    Waits until no collector is at work. What is in the store when the block begins stays until
    it ends; what was seen in it before must be looked for again. `on_wait` is told who it waits
    for. Costs two small writes, a listing, and a write a minute.
    """
    with announce(storage, role="job", encoders=encoders, what=what) as lease:
        told = False
        while collectors := [other for other in lease.others() if other.role == "collector"]:
            if on_wait and not told:
                on_wait(collectors[0].who)
            told = True
            time.sleep(WAIT_SECONDS)
        yield lease
