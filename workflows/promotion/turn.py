"""Whose turn it is to move an alias: one process at a time, through the store.

    turns/<name>/<number>          who took the turn of this number
    turns/<name>/<number>.done     that turn is over

MLflow's aliases have no compare-and-set: of two jobs that look and then move, both may. The store
has one, `write_once`, on disk and on S3. Numbers only grow, and a number is taken once; so of two
jobs that find a dead one's turn one gets the next number, and the dead one, should it wake, finds
that it has been passed over. Times are those that the storage gives its files.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

from features.storage import Storage
from workflows.pipeline import StageError

FOLDER = "turns"
TURN_SECONDS = 300.0
"""A turn is passed over if it is not ended by then: its process is dead."""
WAIT_SECONDS = 600.0
LOOK_SECONDS = 0.2


class TurnLost(StageError):
    """A process was so slow that another may have taken its turn."""


class Turn:
    """One's own turn, as it stands in the store."""

    def __init__(self, storage: Storage, *, folder: str, number: int, begun: float) -> None:
        self._storage, self._folder, self._number = storage, folder, number
        self._begun = begun

    def check(self) -> None:
        """TurnLost if others may think, or do think, that this process is dead. One listing."""
        late = time.monotonic() - self._begun > TURN_SECONDS / 2
        if late or _last(self._storage.list(self._folder)) != self._number:
            raise TurnLost(
                "this process stood still while it was its turn to move an alias, and another's "
                "turn may have begun; nothing was moved. Run again"
            )

    def end(self) -> None:
        """Leave the turn to the next; older turns' files go."""
        with contextlib.suppress(OSError):  # it lapses by itself
            self._storage.write_once(f"{self._folder}/{self._number:08}.done", b"")
            names = self._storage.list(self._folder)
            old = [name for name in names if name[:8].isdigit() and int(name[:8]) < self._number]
            self._storage.delete(f"{self._folder}/{name}" for name in old)


@contextlib.contextmanager
def turn(
    storage: Storage, *, name: str, on_wait: Callable[[str], None] | None = None
) -> Iterator[Turn]:
    """Have the turn for the block's time; wait while another has it.

    `on_wait` is told who has it. Two small writes and two listings, if nobody has. StageError
    after `WAIT_SECONDS`.
    """
    taken = _take(storage, folder=f"{FOLDER}/{quote(name, safe='')}", on_wait=on_wait)
    try:
        yield taken
    finally:
        taken.end()


def who() -> str:
    """Name of the user that this process runs as; the number of one without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in many containers
        return str(os.getuid())


def _take(storage: Storage, *, folder: str, on_wait: Callable[[str], None] | None) -> Turn:
    waiting = time.monotonic()
    body = f"{who()} on {platform.node()}, process {os.getpid()}, {uuid.uuid4().hex}".encode()
    told = False
    while True:
        begun = time.monotonic()
        names = storage.list(folder)
        last = _last(names)
        free = last == 0 or f"{last:08}.done" in names
        if free or _has_lapsed(storage, folder=folder, number=last):
            mine = last + 1
            won = storage.write_once(f"{folder}/{mine:08}", body)
            if won and _last(storage.list(folder)) == mine:  # or it was taken, ended and deleted
                return Turn(storage, folder=folder, number=mine, begun=begun)
            continue
        if time.monotonic() - waiting > WAIT_SECONDS:
            raise StageError(
                f"{_holder(storage, folder, last)} has been moving an alias for "
                f"{WAIT_SECONDS:.0f} s; nothing was moved here. Run again"
            )
        if on_wait is not None and not told:
            on_wait(_holder(storage, folder, last))
            told = True
        time.sleep(LOOK_SECONDS)


def _last(names: set[str]) -> int:
    """The highest number that was taken; 0 if none was."""
    return max((int(name[:8]) for name in names if name[:8].isdigit()), default=0)


def _holder(storage: Storage, folder: str, number: int) -> str:
    try:
        return storage.read(f"{folder}/{number:08}").decode().rpartition(", ")[0]
    except FileNotFoundError:
        return "another process"


def _has_lapsed(storage: Storage, *, folder: str, number: int) -> bool:
    """Whether a turn is as old as only a dead process's is, by the storage's clock."""
    clock = f"{folder}/clock-{uuid.uuid4().hex}"
    storage.replace(clock, b"")
    times = {entry.path: entry.modified for entry in storage.walk(folder)}
    storage.delete([clock])
    taken = times.get(f"{folder}/{number:08}")
    return taken is not None and times[clock] - taken > TURN_SECONDS
