"""Write once: whole or not at all, and never twice."""

import os
import threading

import pytest

from features.storage import LocalStorage, open_storage


def test_a_file_is_written_once_and_never_touched_again(tmp_path):
    storage = LocalStorage(tmp_path / "store")
    assert storage.write_once("a/b.bin", b"first")
    before = os.stat(tmp_path / "store/a/b.bin")
    assert not storage.write_once("a/b.bin", b"second")
    after = os.stat(tmp_path / "store/a/b.bin")
    assert storage.read("a/b.bin") == b"first"
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_of_many_writers_one_wins_and_nothing_is_left_over(tmp_path):
    storage = LocalStorage(tmp_path)
    barrier = threading.Barrier(8)
    wins = []

    def write(number):
        barrier.wait()
        if storage.write_once("shard", bytes([number]) * 100_000):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read("shard") == bytes(wins) * 100_000
    assert os.listdir(tmp_path) == ["shard"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_once("folder/shard", b"x")
    assert storage.list("folder") == set() and os.listdir(tmp_path / "folder") == []


def test_a_killed_writer_s_temporary_file_is_not_listed(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write_once("folder/shard", b"x")
    (tmp_path / "folder/.other.0123.tmp").write_bytes(b"half")
    assert storage.list("folder") == {"shard"}
    assert storage.list("nowhere") == set()


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="gopher"):
        open_storage("gopher://x/y")
