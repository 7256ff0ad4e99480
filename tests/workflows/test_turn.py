"""Turns to move an alias: one at a time, on disk and on S3, and none is held up by the dead."""

from __future__ import annotations

import threading
import time

import pytest

from features.storage import open_storage
from workflows.promotion import turn as turns
from workflows.promotion.turn import TurnLost, turn


def test_one_at_a_time_has_the_turn_and_all_have_one(
    storage_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    storage = open_storage(storage_root)
    inside, most, moved = [0], [0], list[int]()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with turn(storage, name="alias digits") as held:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.005)
                held.check()
                moved.append(number)
                inside[0] -= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert most == [1]
    assert sorted(moved) == list(range(8))
    left = storage.list("turns/alias%20digits")
    assert {name for name in left if not name.startswith("clock")} == {"00000008", "00000008.done"}


def test_another_model_has_turns_of_its_own(tmp_path) -> None:
    storage = open_storage(str(tmp_path))
    with turn(storage, name="alias a"), turn(storage, name="alias b") as held:
        held.check()


def test_the_turn_of_a_dead_process_is_passed_over_and_lost_to_it(
    storage_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(storage_root)
    slept = turns._take(storage, folder="turns/x", on_wait=None)
    slept.check()
    told: list[str] = []
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.3)
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    with (
        pytest.raises(turns.StageError, match=r"process \d+ has been moving an alias for 0 s"),
        turn(storage, name="x", on_wait=told.append),
    ):
        raise AssertionError("two have the turn")
    assert len(told) == 1 and "process" in told[0]

    monkeypatch.setattr(turns, "TURN_SECONDS", -5.0)  # older than the other by any clock
    with turn(storage, name="x") as held:
        monkeypatch.setattr(turns, "TURN_SECONDS", 300.0)
        held.check()
        with pytest.raises(TurnLost, match=r"nothing was moved\. Run again"):
            slept.check()
    slept.end()
    with turn(storage, name="x") as held:
        held.check()


def test_a_process_that_stood_still_moves_nothing(tmp_path, monkeypatch) -> None:
    storage = open_storage(str(tmp_path))
    with turn(storage, name="x") as held:
        monkeypatch.setattr(turns, "TURN_SECONDS", 0.0)
        with pytest.raises(TurnLost):
            held.check()
