"""A run that is told to end before it is done: by SIGTERM, as of a spot machine, or a deadline.

Either becomes an exception in the main thread, which passes through all `with` blocks as an
interrupt from the keyboard does. What is finished by then is in the store: shards, candidates, and
the last checkpoint of what is being fitted.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

AGAIN_SECONDS = 0.5
"""How often it is raised again until the block unwinds: what Python calls when an object goes
(`__del__`, a weak reference's callback) swallows it."""


WAKE = signal.SIGURG
"""The watching thread's own signal: one that does nothing where its handler was taken away, as that
of SIGTERM is while Ray shuts down."""


class Stopped(KeyboardInterrupt):
    """The run is to end now, and to go on another time."""


class Terminated(Stopped):
    """By SIGTERM."""


class OutOfTime(Stopped):
    """By its deadline."""


@contextmanager
def stopping(*, deadline: float | None = None) -> Iterator[Callable[[], None]]:
    """End the block by Terminated or OutOfTime in the main thread; its clean-up is not disturbed.

    `deadline` is in seconds from now. Gives a function that raises it again, for a place where
    work goes on that must not. In another thread than the main one, which gets no signals, the
    block runs as if there were none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    stop = _Stop(deadline)
    before = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGTERM, WAKE)}
    try:
        with stop.watched():
            yield stop.check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    def __init__(self, deadline: float | None) -> None:
        self._end = None if deadline is None else time.monotonic() + deadline
        self._late = False
        self._over = False
        self._asked: Stopped | None = None

    def on_signal(self, number: int, frame: object) -> None:
        del number, frame
        if self._over or self._is_unwinding():
            return
        if self._asked is None:
            self._asked = OutOfTime("deadline") if self._late else Terminated("SIGTERM")
        raise self._asked

    def _is_unwinding(self) -> bool:
        """Whether the interrupted code cleans up because of it, which is not to be broken into."""
        error = sys.exc_info()[1]
        while error is not None and error is not self._asked:
            error = error.__cause__ or error.__context__
        return error is not None

    def check(self) -> None:
        if self._asked is not None:
            raise self._asked

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A thread that waits for the deadline, and wakes the main thread.

        A signal that another thread was given does not end the main thread's wait in a library.
        """
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        main = threading.main_thread().ident
        assert main is not None, "it runs"
        thread = threading.Thread(
            target=self._watch, args=(ours, main), name="stopping", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._over = True
            signal.set_wakeup_fd(before)
            with suppress(OSError):  # the pipe is full, so the thread is not waiting
                os.write(theirs, b"\0")
            thread.join()
            os.close(ours)
            os.close(theirs)

    def _watch(self, ours: int, main: int) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(ours, selectors.EVENT_READ)
            told = False
            while True:
                left = None
                if told:
                    left = AGAIN_SECONDS
                elif self._end is not None:
                    left = max(0.0, self._end - time.monotonic())
                if waiting.select(left):
                    numbers = os.read(ours, 4096)
                    if 0 in numbers:
                        return
                    if signal.SIGTERM not in numbers or told:
                        continue
                elif not told:
                    self._late = True
                told = True
                signal.pthread_kill(main, WAKE)
