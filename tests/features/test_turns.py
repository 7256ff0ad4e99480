"""One run at a time, on a disk and in S3: who gets the turn, who loses it, and what it costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from features import turns
from features.lease import LeaseLost
from features.storage import LocalStorage, open_storage
from features.turns import Overtaken, Turn


def lease(storage, *, what="run", seconds=180.0):
    return Turn(storage, name="nightly", what=what, seconds=seconds)


def die(held):
    """What `kill -9` leaves: the turn is taken, and nobody renews it or gives it back."""
    held._over.set()
    held._thread.join()


def test_the_turn_goes_from_one_to_the_next(storage_root):
    storage = open_storage(storage_root)
    first, second = lease(storage, what="first"), lease(storage, what="second")
    assert first.look() is None
    first.confirm()
    assert second.look().startswith("first on ")
    first.confirm()
    first.end()
    assert second.look() is None
    second.confirm()
    assert lease(storage).look().startswith("second on ")
    second.end()


def test_a_look_writes_nothing_where_nobody_is_at_work(tmp_path):
    storage = LocalStorage(tmp_path)
    assert lease(storage).look() is None
    assert list(tmp_path.rglob("*")) == []
    with lease(storage) as held:
        held.look()
        held.confirm()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with lease(storage) as idle:
        assert idle.look() is None
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_of_many_that_looked_at_once_one_gets_it(storage_root):
    storage = open_storage(storage_root)
    many = [lease(storage, what=f"run {i}") for i in range(8)]
    assert [one.look() for one in many] == [None] * 8
    start, won, overtaken = threading.Barrier(8), [], []

    def take(one):
        start.wait()
        try:
            one.confirm()
            won.append(one)
        except Overtaken:
            overtaken.append(one)

    threads = [threading.Thread(target=take, args=(one,)) for one in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(overtaken) == 7
    assert all(one.look() is not None for one in overtaken)
    won[0].end()


def test_whoever_ran_between_a_look_and_a_turn_is_noticed(tmp_path):
    storage = LocalStorage(tmp_path)
    early, quick = lease(storage), lease(storage)
    assert early.look() is None and quick.look() is None
    quick.confirm()
    quick.end()
    with pytest.raises(Overtaken):
        early.confirm()  # the turn is free, but what it saw in the store may not be true any more
    assert early.look() is None
    early.confirm()
    early.end()


def test_the_lease_of_a_dead_holder_lapses_and_its_ghost_changes_nothing(storage_root):
    storage = open_storage(storage_root)
    short = 2.0 if "://" in storage_root else 0.5  # times in S3 are whole seconds
    dead, heir = lease(storage, what="dead", seconds=short), lease(storage, seconds=short)
    dead.look()
    dead.confirm()
    die(dead)
    assert heir.look() is not None, "it may be alive yet"
    waited = []
    heir.wait(every=0.2, on_wait=waited.append)
    assert len(waited) == 1 and waited[0].startswith("dead on ")
    heir.confirm()
    with pytest.raises(LeaseLost, match=r"could not be renewed|came after it"):
        dead.confirm()
    dead._renewed = time.monotonic()  # a process that was asleep, whose clock stood still
    with pytest.raises(LeaseLost, match="came after it; nothing further was changed"):
        dead.confirm()
    dead.end()
    heir.confirm()  # what the ghost writes last is of its own number
    assert lease(storage).look() is not None
    heir.end()


def hold(folder, taken):
    held = lease(LocalStorage(folder), what="a run")
    held.take()
    taken.set()
    time.sleep(600)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells where a process number counts"
)
def test_nobody_waits_for_a_holder_that_was_killed_on_the_same_machine(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, taken))
    holder.start()
    try:
        assert taken.wait(60)
        heir = lease(LocalStorage(tmp_path))
        assert heir.look().startswith("a run on ")
        with pytest.raises(TimeoutError):
            heir.take(every=0.05, most=0.2)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert heir.look() is None, "a child whose end nobody has asked for yet"
    holder.join()
    assert heir.look() is None
    (path,) = (tmp_path / "turns/nightly").glob("*.json")
    body = json.loads(path.read_bytes())
    for other in ({"place": "elsewhere"}, {"place": None}, {"number": "?"}):
        path.write_text(json.dumps(body | {"process": body["process"] | other}))
        assert heir.look() is not None, other
    path.write_text(json.dumps(body | {"process": None}))
    assert heir.look() is not None
    # As in a container that was started again: its first process has the number of the dead one.
    path.write_text(json.dumps(body | {"process": body["process"] | {"number": os.getpid()}}))
    assert heir.living_holder() is None
    path.write_text(json.dumps(body))
    heir.take(every=0.05, most=0.2)
    heir.end()


def test_a_turn_that_could_not_be_given_back_is_free_in_its_process(tmp_path, monkeypatch):
    """A process that goes on, as a notebook's, does not take itself for another run."""
    storage = LocalStorage(tmp_path)

    def unreachable(*_):
        raise OSError("the store is not to be reached")

    held = lease(storage)
    held.take()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "replace", unreachable)
        held.end()
    assert not json.loads((tmp_path / "turns/nightly/00000001.json").read_bytes())["ended"]
    heir = lease(storage)
    assert heir.look() is None and heir.living_holder() is None
    with heir:
        heir.take(most=0.2)


@pytest.mark.parametrize("end", [OSError("no answer"), SystemExit(15)])
def test_a_turn_that_was_taken_but_not_seen_to_be_is_given_back(tmp_path, monkeypatch, end):
    storage = LocalStorage(tmp_path)
    late = lease(storage)
    assert late.look() is None
    write_once = storage.write_once

    def then_ends(*arguments):
        write_once(*arguments)
        monkeypatch.setattr(late, "_turns", Mock(side_effect=end))
        return True

    monkeypatch.setattr(storage, "write_once", then_ends)
    with pytest.raises(type(end)):
        late.confirm()
    (path,) = (tmp_path / "turns/nightly").glob("*.json")
    assert json.loads(path.read_bytes())["ended"]
    assert lease(LocalStorage(tmp_path)).look() is None


def test_of_a_living_process_that_has_not_renewed_its_turn_the_next_renewal_tells(tmp_path):
    storage = LocalStorage(tmp_path)
    held = lease(storage)
    held.take()
    (path,) = (tmp_path / "turns/nightly").glob("*.json")
    aged = time.time() - 61
    os.utime(path, (aged, aged))
    waited = []

    def renew(who):
        waited.append(who)
        storage.replace("turns/nightly/00000001.json", held._body(ended=False))

    assert lease(storage).living_holder(every=0.01, on_wait=renew).startswith("run on ")
    assert len(waited) == 1
    held.end()


def test_a_holder_is_alive_who_is_seen_to_be(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    waited = []
    assert lease(storage).living_holder(on_wait=waited.append) is None
    with lease(storage, what="here") as held:
        held.take()
        assert lease(storage).living_holder(on_wait=waited.append).startswith("here on ")
    assert waited == []

    far = lease(storage, what="far")
    with monkeypatch.context() as patch:
        patch.setattr(turns, "_process", lambda: None)
        far.take()
        renewed = far._body(ended=False)
    path = tmp_path / f"turns/nightly/{far._number:08}.json"

    aged = time.time() - 1
    os.utime(path, (aged, aged))

    def renew(who):
        waited.append(who)
        storage.replace(f"turns/nightly/{path.name}", renewed)

    assert lease(storage).living_holder(every=0.01, on_wait=renew).startswith("far on ")
    assert [who.partition(" ")[0] for who in waited] == ["far"]

    def lapse(who):
        waited.append(who)
        os.utime(path, (0, 0))

    die(far)
    assert lease(storage).living_holder(every=0.01, on_wait=lapse) is None
    assert [who.partition(" ")[0] for who in waited] == ["far"] * 2


def test_who_took_the_turn_of_one_that_was_watched_may_be_dead_too(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(turns, "_process", lambda: None)
    first, second = lease(storage, what="first"), lease(storage, what="second")
    first.take()
    die(first)
    waited = []

    def lapse(who):
        waited.append(who.partition(" ")[0])
        os.utime(tmp_path / f"turns/nightly/{len(waited):08}.json", (0, 0))
        if len(waited) == 1:
            second.take(most=0.2)
            die(second)

    assert lease(storage).living_holder(every=0.01, on_wait=lapse) is None
    assert waited == ["first", "second"]


def test_a_number_that_was_cleared_away_is_not_taken_again(tmp_path):
    storage = LocalStorage(tmp_path)
    for _ in range(3):
        with lease(storage) as one:
            one.look()
            one.confirm()
    late = lease(storage)
    late._seen = 1  # it looked in the first turn, and slept through the second and third
    with lease(storage) as now:
        now.look()
        now.confirm()
        assert not (tmp_path / "turns/nightly/00000002.json").exists()
        with pytest.raises(Overtaken):
            late.confirm()
        now.confirm()


def test_a_living_holder_renews_it(tmp_path):
    storage = LocalStorage(tmp_path)
    with lease(storage, seconds=0.6) as held:
        held.look()
        held.confirm()
        path = tmp_path / "turns/nightly/00000001.json"
        first = path.stat().st_mtime_ns
        end = time.monotonic() + 30
        while path.stat().st_mtime_ns == first:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert json.loads(path.read_bytes())["ended"] is True


def test_a_store_that_cannot_be_reached_ends_the_turn_in_time(tmp_path):
    storage = LocalStorage(tmp_path)
    with lease(storage) as held:
        held.look()
        held.confirm()
        held._renewed -= 100  # more than half of its time ago
        with pytest.raises(LeaseLost, match="could not be renewed for 100 s"):
            held.confirm()


def test_pipelines_do_not_wait_for_one_another(tmp_path):
    storage = LocalStorage(tmp_path)
    with lease(storage) as held:
        held.look()
        held.confirm()
        assert Turn(storage, name="other", what="run").look() is None


def test_all_that_wait_for_the_turn_have_it_one_at_a_time(storage_root):
    storage = open_storage(storage_root)
    inside, most, done, failures = [0], [0], [], []

    def work(number):
        try:
            with Turn(storage, name="alias a/b", what=f"job {number}") as held:
                held.take(every=0.01, most=60)
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.005)
                held.confirm()
                done.append(number)
                inside[0] -= 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failures, most, sorted(done)) == ([], [1], list(range(8)))
    assert storage.list("turns/alias%20a%2Fb") == {"00000008.json"}


def test_who_waits_gives_up_in_time_and_says_for_whom(tmp_path):
    storage = LocalStorage(tmp_path)
    with lease(storage, what="first") as held:
        held.take()
        with pytest.raises(TimeoutError, match=r"first on .* has not ended its turn for 0 s"):
            lease(storage).take(every=0.01, most=0.05)
