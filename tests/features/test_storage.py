"""Write once: whole or not at all, and never twice; on a disk and on S3 alike."""

import errno
import os
import pickle
import resource
import shutil
import tempfile
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.storage import (
    Entry,
    LocalStorage,
    Stat,
    filesystem_of,
    open_storage,
    read_uri,
    stat_uri,
)
from features.store import Store, parquet_bytes


def names(storage):
    return sorted(entry.path for entry in storage.walk())


# ------------------------------------------------------------------ every storage


def test_a_file_is_written_once_and_never_touched_again(storage_root):
    storage = open_storage(storage_root)
    assert not storage.exists("a/b.bin")
    assert storage.write_once("a/b.bin", b"first")
    before = stat_uri(f"{storage.root}/a/b.bin")
    assert not storage.write_once("a/b.bin", b"second")
    assert storage.read("a/b.bin") == b"first" and storage.exists("a/b.bin")
    assert stat_uri(f"{storage.root}/a/b.bin") == before


def test_a_pointer_is_replaced(storage_root):
    storage = open_storage(storage_root)
    for body in (b"one", b"another", b""):
        storage.replace("latest/x.json", body)
        assert storage.read("latest/x.json") == body
    assert names(storage) == ["latest/x.json"]


def test_what_is_not_there_is_not_found(storage_root):
    storage = open_storage(storage_root)
    for read in (storage.read, storage.open):
        with pytest.raises(FileNotFoundError):
            read("nowhere/file")
    assert storage.list("nowhere") == set() and list(storage.walk()) == []
    storage.delete(["nowhere/file"])


def test_of_many_writers_one_wins_and_nothing_is_left_over(storage_root):
    storage = open_storage(storage_root)
    for turn in range(3):
        barrier = threading.Barrier(16)
        wins = []

        def write(number, turn=turn, barrier=barrier, wins=wins):
            barrier.wait()
            if storage.write_once(f"shard{turn}", bytes([number]) * 100_000):
                wins.append(number)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert storage.read(f"shard{turn}") == bytes(wins) * 100_000
    assert names(storage) == ["shard0", "shard1", "shard2"]


def test_nothing_is_visible_before_it_is_whole(storage_root):
    storage = open_storage(storage_root)
    body = np.random.default_rng(0).bytes(8_000_000)
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            if "shard" in storage.list("folder"):
                seen.append(storage.read("folder/shard"))

    reader = threading.Thread(target=look)
    reader.start()
    storage.write_once("folder/shard", body)
    while not seen:
        time.sleep(0.01)
    done.set()
    reader.join()
    assert all(found == body for found in seen)


def test_a_listing_is_of_one_folder_and_a_walk_of_all_below(storage_root):
    storage = open_storage(storage_root)
    for path in ("a/1", "a/2", "a/b/3", "ab/4", "5"):
        storage.write_once(path, path.encode() * 10)
    assert storage.list("a") == {"1", "2"}
    assert storage.list("") == {"5"}
    assert names(storage) == ["5", "a/1", "a/2", "a/b/3", "ab/4"]
    found = {entry.path: entry for entry in storage.walk("a")}
    assert sorted(found) == ["a/1", "a/2", "a/b/3"]
    assert found["a/b/3"].size == 50 and abs(found["a/b/3"].modified - time.time()) < 60
    storage.delete(["a/1", "a/b/3"])
    assert names(storage) == ["5", "a/2", "ab/4"]


def test_names_that_urls_would_change_are_kept(storage_root):
    storage = open_storage(storage_root)
    path = "latest/Zähler 100 %25+a&b=c.json"
    storage.replace(path, b"x")
    assert storage.list("latest") == {path.partition("/")[2]} and names(storage) == [path]
    uri = f"{storage.root}/{path}"
    assert read_uri(uri) == b"x" == storage.read(path) and stat_uri(uri).size == 1
    filesystem, inner = filesystem_of(uri)
    with filesystem.open_input_file(inner) as file:
        assert file.read() == b"x"


@pytest.mark.parametrize("rows", [3, 5_000, 30_000])  # within the tail, whole, and in ranges
def test_parquet_is_read_by_columns_and_footer(storage_root, rows, monkeypatch):
    import features.s3_storage

    monkeypatch.setattr(features.s3_storage, "WHOLE_BYTES", 2**20)
    storage = open_storage(storage_root)
    values = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    table = pa.table(
        {
            "row": pa.array(np.arange(rows), pa.int32()),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 32),
        }
    ).replace_schema_metadata({"sensorium.dim": "32"})
    body = parquet_bytes(table)
    storage.write_once("e/x.parquet", body)
    store = Store(storage)
    assert store.read_table("e/x.parquet").equals(table)
    assert store.read_table("e/x.parquet", columns=["row"]).equals(table.select(["row"]))
    assert store.read_metadata("e/x.parquet") == {"sensorium.dim": "32"}
    with storage.open("e/x.parquet") as file:
        assert file.size() == len(body)
        assert file.read_at(10, 5) == body.to_pybytes()[5:15]
        file.seek(0)
        assert file.read() == body.to_pybytes()
    with pq.ParquetFile(storage.open("e/x.parquet")) as parquet:
        groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
    assert pa.concat_tables(groups).equals(table)


def test_other_libraries_write_to_the_same_place(storage_root):
    storage = open_storage(storage_root)
    storage.write_once("here", b"x")
    filesystem, root = storage.filesystem()
    filesystem.create_dir(f"{root}/runs")
    with filesystem.open_output_stream(f"{root}/runs/checkpoint") as file:
        file.write(b"state")
    assert storage.read("runs/checkpoint") == b"state"
    filesystem.delete_dir(f"{root}/runs")
    assert not storage.exists("runs/checkpoint") and storage.exists("here")


def test_a_storage_travels_by_its_root_alone(storage_root):
    storage = open_storage(storage_root)
    storage.write_once("a", b"1")
    sent = pickle.dumps(storage)
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret == "test" or secret.encode() not in sent
    assert len(sent) < 300
    arrived = pickle.loads(sent)
    assert arrived.root == storage.root and arrived.read("a") == b"1"


def test_a_uri_is_known_by_its_state(storage_root):
    storage = open_storage(storage_root)
    uri = f"{storage.root}/file"
    with pytest.raises(FileNotFoundError):
        stat_uri(uri)
    with pytest.raises(FileNotFoundError):
        read_uri(uri)
    storage.replace("file", b"one")
    first = stat_uri(uri)
    assert first == stat_uri(uri) == Stat(size=3, tag=first.tag)
    time.sleep(0.01)
    storage.replace("file", b"two")
    assert stat_uri(uri).size == 3 and stat_uri(uri) != first


def test_an_unknown_scheme_is_refused():
    for make in (open_storage, filesystem_of, stat_uri, read_uri):
        with pytest.raises(ValueError, match=r"gopher.*s3://"):
            make("gopher://x/y")
    with pytest.raises(ValueError, match="s3://BUCKET"):
        open_storage("s3:///prefix")


# ------------------------------------------------------------------ a disk


def test_a_killed_writer_s_temporary_file_is_walked_but_not_listed(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write_once("folder/shard", b"x")
    (tmp_path / "folder/.other.0123.tmp").write_bytes(b"half")
    assert storage.list("folder") == {"shard"}
    assert names(storage) == ["folder/.other.0123.tmp", "folder/shard"]


def test_a_file_uri_is_a_path(tmp_path):
    (tmp_path / "a b").mkdir()
    assert open_storage(f"file://{tmp_path}/a%20b").root == str(tmp_path / "a b")
    with pytest.raises(ValueError, match="otherhost"):
        open_storage("file://otherhost/path")


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not a folder"):
        open_storage(str(tmp_path / "file"))


@pytest.mark.parametrize("write", ["write_once", "replace"])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, write):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*folder/shard'"):
        getattr(storage, write)("folder/shard", b"x")
    assert storage.list("folder") == set() and os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize("write", ["write_once", "replace"])
def test_a_file_that_the_system_cuts_off_leaves_nothing(tmp_path, write):
    storage = LocalStorage(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*folder/shard'"):
            getattr(storage, write)("folder/shard", bytes(2**21))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path / "folder") == []
    assert storage.write_once("folder/shard", bytes(2**21))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_folder_that_may_not_be_written_is_an_error_that_names_it():
    folder = tempfile.mkdtemp(prefix="read-only-")
    try:
        os.chmod(folder, 0o755)
        storage = LocalStorage(folder)
        storage.write_once("samples/there", b"x")
        os.seteuid(65534)
        try:
            for path in ("samples/shard", "embeddings/e/shard"):
                with pytest.raises(PermissionError, match=f"denied: '{folder}"):
                    storage.write_once(path, b"x")
            assert not storage.write_once("samples/there", b"y")
            assert storage.read("samples/there") == b"x"
        finally:
            os.seteuid(0)
        assert names(storage) == ["samples/there"]
    finally:
        shutil.rmtree(folder)


def test_an_entry_is_small():
    assert not hasattr(Entry(path="a", size=1, modified=0.0), "__dict__")
