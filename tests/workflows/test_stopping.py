"""A run that is told to end: the main thread's wait is over, once, and nothing stays set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from workflows import stopping as module
from workflows.stopping import OutOfTime, Terminated, stopping

WAIT = 60


def test_a_deadline_ends_a_wait_that_nothing_else_would_end():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OutOfTime), stopping(deadline=0.05):
        threading.Event().wait(WAIT)
        pytest.fail("the wait went on")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not [t for t in threading.enumerate() if t.name == "stopping"]


def test_sigterm_that_another_thread_was_given_ends_the_wait_of_the_main_thread():
    def send():
        time.sleep(0.05)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    with pytest.raises(Terminated), stopping():
        thread.start()
        threading.Lock().acquire()
        threading.Event().wait(WAIT)
        pytest.fail("the wait went on")
    thread.join()


@contextmanager
def cleaning(done):
    try:
        yield
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)  # the deadline, and the signal again and again
        done.append("generator")


class Cleaning:
    def __init__(self, done):
        self.done = done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        time.sleep(0.1)
        self.done.append("object")


def test_a_second_signal_does_not_break_into_what_cleans_up(monkeypatch):
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    done = []
    with pytest.raises(Terminated), stopping(deadline=0.2), Cleaning(done), cleaning(done):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(WAIT)
        except KeyboardInterrupt as error:
            time.sleep(0.1)
            done.append("handler")
            raise RuntimeError from error  # which is not what the block ends by, in the end
        finally:
            time.sleep(0.1)
            done.append("finally")
            raise Terminated
    assert done == ["handler", "finally", "generator", "object"]


def test_what_an_object_that_goes_has_swallowed_is_raised_again(monkeypatch, capfd):
    """As Ray's own weak references did."""
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    class Going:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            pytest.fail("it was not raised here")

    with pytest.raises(Terminated), stopping():
        going = Going()
        del going
        threading.Event().wait(WAIT)
        pytest.fail("the wait went on")


def test_what_a_callback_swallowed_is_raised_again_where_work_goes_on():
    with pytest.raises(Terminated), stopping() as check:
        check()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(WAIT)
        except KeyboardInterrupt:
            pass
        check()


def test_it_does_no_harm_where_the_clean_up_takes_the_handlers_away(monkeypatch):
    """As `ray.shutdown` does, after which the signal that is sent again would end the process."""
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    with pytest.raises(OutOfTime), stopping(deadline=0.02):
        try:
            threading.Event().wait(WAIT)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(module.WAKE, signal.SIG_DFL)
            time.sleep(0.2)


def test_a_block_that_ends_in_time_is_left_alone():
    with stopping(deadline=0.1) as check:
        check()
    time.sleep(0.2)


def test_in_another_thread_the_block_runs_as_it_is():
    done = []

    def work():
        with stopping(deadline=0.01):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_ray_does_not_take_sigterm_for_itself():
    """What `ray.init` does to the handler, in a process of its own."""
    script = """
import signal, sys, types
ray = types.ModuleType("ray")
ray.is_initialized = lambda: False
ray.init = lambda **_: signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
ray.shutdown = lambda: None
sys.modules["ray"] = ray
from workflows.cluster import Connection
from workflows.stopping import Terminated, stopping
try:
    with stopping(), Connection() as connection:
        connection.open()
        signal.raise_signal(signal.SIGTERM)
except Terminated:
    print("terminated")
def init(**_):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    signal.raise_signal(signal.SIGTERM)
ray.init = init
try:
    with stopping(), Connection() as connection:
        connection.open()
except Terminated:
    print("terminated meanwhile")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split("\n")[:2] == ["terminated", "terminated meanwhile"], done.stderr
