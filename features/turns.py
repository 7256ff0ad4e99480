"""Turns at what one process may do at a time: kept in the store, they lapse when a holder dies.

    turns/<what>/00000042.json     who took the 42nd turn, and whether it has ended

A turn is taken by writing the file of the next number, which can be written once (a hard link on a
disk, `If-None-Match` in S3), so of several that want it one gets it. Its holder writes the file
again every `seconds / 6`; a turn that was not renewed for `seconds` is of a process that died, and
the next number is free. Numbers only rise, so a holder that stood still sees that it was passed
over, and who looked at an old state cannot take what is another's by now. Times are those that the
storage gives its files, so that no two clocks matter. On the machine of a holder nobody waits so
long: a process that is not there any more has no turn. A process is known by its number, when it
was started, and by host, kernel and namespace of process numbers, all of which Linux tells and no
two processes share, unless a running machine is copied with its memory; without Linux, and between
two containers of a machine, one waits.

To look costs a listing, and a read if there was a turn before: who finds nothing to do takes no
turn, and writes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from features.lease import LeaseLost
from features.storage import Entry, Storage

FOLDER = "turns"
LEASE_SECONDS = 180.0
STALE_PROBE_SECONDS = 3600.0
_TURN = re.compile(r"(\d{8})\.json")
_held: set[str] = set()
"""Marks of the turns that this process has; a file of its own with another mark is a leftover."""


class Overtaken(Exception):
    """Another took a turn since the look: what was seen in the store may have changed."""


class _Holder(NamedTuple):
    """Who has a turn that is not free."""

    entry: Entry
    who: str
    alive: bool
    """True only if it is seen to run here, and has renewed its turn lately."""


class Turn:
    """One turn, from a look to its end. Not to be shared by threads."""

    def __init__(
        self, storage: Storage, *, name: str, what: str, seconds: float = LEASE_SECONDS
    ) -> None:
        """`name` is of what there are turns at, `what` tells others who has one."""
        self._storage = storage
        self._folder = f"{FOLDER}/{quote(name, safe='')}"
        self._who = f"{what} on {platform.node()}, process {os.getpid()}"
        self._mark = uuid.uuid4().hex
        self._seconds = seconds
        self._seen = 0
        self._number: int | None = None
        self._renewed = float("-inf")
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> str | None:
        """Who has the turn now, for a person; None if it is free. Writes if one has not ended."""
        holder = self._holder()
        return None if holder is None else holder.who

    def living_holder(
        self, *, every: float = 5.0, on_wait: Callable[[str], None] | None = None
    ) -> str | None:
        """Who has the turn and is alive, for a person; None once it is free.

        One that runs on this machine and has renewed its turn lately is alive. Of any other its
        next renewal tells, which this waits for after it has told `on_wait` of whom: up to
        `seconds / 6` for a living one, up to `seconds` for a dead one.
        """
        first = None
        while (holder := self._holder()) is not None:
            if holder.alive:
                return holder.who
            if first is None or holder.entry.path != first.entry.path:
                first = holder
                if on_wait:
                    on_wait(holder.who)
            elif holder.entry != first.entry:
                return holder.who
            time.sleep(every)
        return None

    def wait(
        self,
        *,
        every: float = 5.0,
        most: float | None = None,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Look until the turn is free. `on_wait` is told for whom it waits, once for each.

        TimeoutError, with who has it, after `most` seconds.
        """
        told: set[str] = set()
        begun = time.monotonic()
        while (who := self.look()) is not None:
            if most is not None and time.monotonic() - begun >= most:
                raise TimeoutError(f"{who} has not ended its turn for {most:.0f} s; run again")
            if on_wait and who not in told:
                on_wait(who)
            told.add(who)
            time.sleep(every)

    def take(self, *, every: float = 0.2, most: float | None = None) -> None:
        """Wait for the turn and take it; as `wait` and `confirm`."""
        while True:
            self.wait(every=every, most=most)
            try:
                return self.confirm()
            except Overtaken:
                continue

    def confirm(self) -> None:
        """Take the turn, or make sure that it is still one's own; before anything is changed.

        Overtaken if another has taken it since the look; LeaseLost if it was one's own, and was
        not renewed in time or has been passed on. A write and a listing, then a listing each time.
        """
        if self._number is None:
            self._take()
        else:
            self._check(self._number)

    def end(self) -> None:
        """Give the turn back, if it was taken. Errors of the storage are let pass: it lapses."""
        if self._number is None:
            return
        self._over.set()
        try:
            if self._thread is not None:
                self._thread.join()
        finally:
            self._give_back(self._number)
            self._number = None

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _holder(self) -> _Holder | None:
        entries = self._turns()
        self._seen = max(entries, default=0)
        if not entries:
            return None
        entry = entries[self._seen]
        try:
            body = json.loads(self._storage.read(entry.path))
            ended, who = bool(body["ended"]), str(body["who"])
            alive = _is_alive(body)
        except FileNotFoundError:
            return self._holder()  # a later one has been taken, and this one cleared away
        except (ValueError, KeyError, TypeError):
            ended, who, alive = False, entry.path, None
        if ended or alive is False:
            return None
        # It may have renewed its turn since it was read, however long that took.
        now, entries = self._now()
        renewed = entries.get(self._seen)
        if renewed is None:
            return self._holder()
        age = now - renewed.modified
        if age > self._seconds:
            return None
        # A process may live on, and have lost its turn without a way to say so.
        return _Holder(entry, who, alive=bool(alive) and age < self._seconds / 3)

    def _take(self) -> None:
        turn = self._seen + 1
        begun = time.monotonic()
        _held.add(self._mark)
        written = False
        try:
            written = self._storage.write_once(self._path(turn), self._body(ended=False))
            # The name is free again where a later turn's holder has cleared it away.
            if not written or max(entries := self._turns(), default=0) != turn:
                raise Overtaken(self._path(turn))
        except BaseException:  # a SIGTERM too: a turn that nobody keeps is in others' way
            if written:
                self._give_back(turn)
            else:
                _held.discard(self._mark)
            raise
        self._number, self._renewed = turn, begun
        self._over.clear()
        self._thread = threading.Thread(target=self._keep, name="turn", daemon=True)
        self._thread.start()
        with suppress(OSError):
            self._storage.delete(entry.path for n, entry in entries.items() if n < turn)

    def _check(self, turn: int) -> None:
        silent = time.monotonic() - self._renewed
        if silent > self._seconds / 2:
            raise LeaseLost(
                f"{self._at(turn)} could not be renewed for {silent:.0f} s, so another turn may "
                "have begun; the store is not to be reached, or the process stood still. Nothing "
                "further was changed; run again"
            )
        last = max(self._turns(), default=0)
        if last != turn:
            raise LeaseLost(
                f"{self._at(turn)} was taken for that of a dead process, and {self._at(last)} came "
                "after it; nothing further was changed. Run again once that has ended"
            )

    def _keep(self) -> None:
        turn = self._number
        assert turn is not None, "the thread is started by who has the turn"
        while not self._over.wait(self._seconds / 6):
            begun = time.monotonic()
            if begun - self._renewed > self._seconds / 2:
                _held.discard(self._mark)
                return  # others may pass over it, and are not to be kept from that
            with suppress(OSError):  # `confirm` tells, if it lasts
                self._storage.replace(self._path(turn), self._body(ended=False))
                self._renewed = begun

    def _give_back(self, turn: int) -> None:
        try:
            with suppress(OSError):
                self._storage.replace(self._path(turn), self._body(ended=True))
        finally:
            _held.discard(self._mark)

    def _turns(self) -> dict[int, Entry]:
        """The files of turns by their number."""
        return self._numbered(self._storage.walk(self._folder))

    @staticmethod
    def _numbered(entries: Iterable[Entry]) -> dict[int, Entry]:
        found = {}
        for entry in entries:
            name = _TURN.fullmatch(entry.path.rpartition("/")[2])
            if name:
                found[int(name[1])] = entry
        return found

    def _now(self) -> tuple[float, dict[int, Entry]]:
        """The storage's clock, in seconds since 1970, and the files of turns as they are then.

        A small write, a listing, a deletion.
        """
        path = f"{self._folder}/probe-{uuid.uuid4().hex}"
        self._storage.replace(path, b"")
        entries = list(self._storage.walk(self._folder))
        now = next(entry.modified for entry in entries if entry.path == path)
        probes = [e for e in entries if "/probe-" in e.path]
        stale = [e.path for e in probes if now - e.modified > STALE_PROBE_SECONDS]
        self._storage.delete([path, *stale])
        return now, self._numbered(entries)

    def _path(self, turn: int) -> str:
        return f"{self._folder}/{turn:08}.json"

    def _at(self, turn: int) -> str:
        return f"{self._storage.root}/{self._path(turn)}"

    def _body(self, *, ended: bool) -> bytes:
        said = {"who": self._who, "ended": ended, "mark": self._mark, "process": _process()}
        return json.dumps(said).encode()


def _process(number: int | None = None) -> dict[str, Any] | None:
    """What tells this process, or that of a number here, from all others; None if nothing does.

    ProcessLookupError if there is none of that number, or it is a dead child that nobody awaits.
    """
    number = os.getpid() if number is None else number
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        if os.readlink("/proc/self") != str(os.getpid()):
            return None  # it tells of another namespace than this process's
        place = f"{platform.node()} {kernel} {os.readlink('/proc/self/ns/pid')}"
        os.kill(number, 0)
        state, *fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        raise
    except OSError:
        return None  # another system, another user's process, or one that has ended just now
    if state in "ZX":
        raise ProcessLookupError(number)
    return {"place": place, "number": number, "started": fields[18]}


def _is_alive(body: dict[str, Any]) -> bool | None:
    """Whether the holder of a turn runs, and has it yet; None if that cannot be told from here."""
    process = body.get("process")
    here = _process()
    if not isinstance(process, dict) or here is None or process.get("place") != here["place"]:
        return None
    if process == here:
        return body.get("mark") in _held
    try:
        now = _process(int(process["number"]))
    except ProcessLookupError:
        return False
    return None if now is None else now == process
