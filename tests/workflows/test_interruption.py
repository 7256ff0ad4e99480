"""Stage 1, killed with `kill -9` again and again, ends like a run that nobody touched."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.garbage import collect_garbage
from features.quarantine import read_quarantine
from features.storage import LocalStorage
from features.store import Store
from features.stored_embeddings import read_embeddings
from features.verification import verify

PIPELINE = """
name: killed
dataset:
  path: table.parquet
  split: split
  max_bad_fraction: 0.1
  shard_rows: {min: 10, target: 20, max: 60}
features:
  text: {column: text, encoder: {type: slow_encoder.SlowSpec, seconds: 0.15}}
  hashed: {column: text, encoder: {type: hashing, dim: 32}}
task: {target: label}
candidates: [{type: single, modality: text}]
training: {max_epochs: 100000, patience: 100000}
"""
ROWS = 600


def make_world(folder):
    folder.mkdir()
    texts = [None if i % 11 == 0 else "" if i % 97 == 0 else f"text {i}" for i in range(ROWS)]
    splits = [("train", "validation", "test")[i % 3] for i in range(ROWS)]
    labels = [i % 2 for i in range(ROWS)]
    frame = pd.DataFrame(
        {"sample_id": range(ROWS), "text": texts, "split": splits, "label": labels}
    )
    frame.to_parquet(folder / "table.parquet", index=False)
    (folder / "killed.yaml").write_text(PIPELINE)
    # A Ray that is there already looks for modules in the driver's folder, not in its PYTHONPATH.
    shutil.copy(Path(__file__).with_name("slow_encoder.py"), folder)
    return folder


STARTED = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A test that fails leaves no process behind."""
    yield
    while STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(STARTED.pop().pid, signal.SIGKILL)


def start(folder, command="embed", *, file="killed.yaml", ray=None, options=()):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows", command, file, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **({"RAY_ADDRESS": ray} if ray else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    STARTED.append(process)
    return process


def shards(folder):
    """Inode and time of change of every finished shard."""
    found = {}
    for path in (folder / "store/embeddings").glob("*/*.parquet"):
        status = path.stat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


def kill_when(process, *, folder, count):
    """Kill the whole group once its turn is taken and `count` shards are there; what was then."""
    while not list(folder.glob("store/turns/*/*.json")) or len(shards(folder)) < count:
        assert process.poll() is None, f"ended before the kill: {process.stdout.read()}"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return shards(folder)


def finish(process, *, code=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def assert_same_store(folder, *, expected):
    """The same shards with the same columns, the same quarantine and the same snapshot, whole."""
    assert set(shards(folder)) == set(shards(expected))
    for path in shards(expected):
        assert pq.read_table(folder / path).equals(pq.read_table(expected / path)), path
    places = (folder, expected)
    quarantines = [place / "store/quarantine" for place in places]
    found = [sorted(str(p.relative_to(q)) for p in q.rglob("*.parquet")) for q in quarantines]
    assert found[0] == found[1] != []
    stores = [Store(LocalStorage(place / "store")) for place in places]
    snapshots = [store.latest("killed") for store in stores]
    assert snapshots[0].id == snapshots[1].id
    assert verify(stores[0], snapshots[0]).damages == []


@pytest.fixture(scope="module")
def address(ray_cluster):
    """A Ray that jobs run on as they do on a cluster."""
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def plain(address, tmp_path_factory):
    """A world whose stage 1 nobody disturbed."""
    folder = make_world(tmp_path_factory.mktemp("undisturbed") / "plain")
    finish(start(folder, ray=address))
    assert len(shards(folder)) > 30
    return folder


@pytest.mark.slow
def test_killed_at_several_moments_it_ends_with_the_same_bytes(plain, tmp_path):
    killed = make_world(tmp_path / "killed")
    finished = {}
    for count in (0, 3, 17):
        now = kill_when(start(killed), folder=killed, count=count)
        assert {path: now[path] for path in finished} == finished
        assert not (killed / "store/latest").exists(), "a snapshot of unfinished work was committed"
        finished = now
    finish(start(killed))
    after = shards(killed)
    assert {path: after[path] for path in finished} == finished, "a finished shard was rewritten"
    assert_same_store(killed, expected=plain)


def workers_of(process):
    """Process ids of the Ray workers that encode for a driver."""
    session = f"{os.getsid(process.pid)}"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            if "ShardEncoder" in title and str(os.getsid(int(entry.name))) == session:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_worker_killed_within_a_shard_costs_that_shard_alone(plain, tmp_path):
    folder = make_world(tmp_path / "worker")
    process = start(folder)
    for count in (2, 12):
        while len(shards(folder)) < count or not (found := workers_of(process)):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        before = shards(folder)
        os.kill(found[0], signal.SIGKILL)
    output = finish(process)
    assert "snapshot" in output
    after = shards(folder)
    assert {path: after[path] for path in before} == before, "a finished shard was rewritten"
    assert_same_store(folder, expected=plain)


@pytest.mark.slow
def test_rows_that_kill_the_process_are_quarantined_and_the_others_embedded(tmp_path):
    """In more shards of one block than a block is tried again for a death from outside."""
    folder = make_world(tmp_path / "killers")
    frame = pd.read_parquet(folder / "table.parquet")
    kills = {20: "segfault", 170: "abort", 320: "segfault", 430: "segfault", 560: "segfault"}
    for row, text in kills.items():
        frame.loc[row, "text"] = text
    frame.to_parquet(folder / "table.parquet", index=False)
    text = (folder / "killed.yaml").read_text()
    slow = "slow_encoder.SlowSpec, seconds: 0.15"
    assert slow in text
    text = text.replace(slow, "tests.features.killers.KillerSpec, batch_size: 4")
    (folder / "killed.yaml").write_text(text)
    output = finish(start(folder))
    store = Store(LocalStorage(folder / "store"))
    snapshot = store.latest("killed")
    found = read_quarantine(store, snapshot).to_pylist()
    crashed = {int(r["sample_id"]): r["reason"] for r in found if r["stage"] == "crash"}
    assert set(crashed) == set(kills), output
    for row, reason in crashed.items():
        signal_name = "SIGSEGV" if kills[row] == "segfault" else "SIGABRT"
        assert "it ends the process that works on it" in reason and signal_name in reason
    present = frame["text"].notna() & (frame["text"] != "")
    assert snapshot.modalities["text"].present == present.sum() - len(kills)
    assert snapshot.modalities["hashed"].present == present.sum(), "another encoder takes them"
    embedded = read_embeddings(store, snapshot, modality="text")
    lengths = frame["text"].str.len().to_numpy()[embedded.rows]
    assert embedded.values[:, 0].tolist() == lengths.tolist()
    assert verify(store, snapshot).damages == []


# ------------------------------------------------------------------ two at once


@pytest.mark.slow
def test_two_jobs_at_once_on_the_same_work_are_like_one(plain, address, tmp_path):
    folder = make_world(tmp_path / "both")
    processes = [start(folder, ray=address), start(folder, ray=address)]
    outputs = [finish(process) for process in processes]
    # One leaves the work to the other, unless that has ended before it looked.
    assert any("snapshot" in output for output in outputs)
    assert all("snapshot" in output or "leaves it to that" in output for output in outputs)
    assert_same_store(folder, expected=plain)
    assert list((folder / "store").rglob("*.tmp")) == []
    assert list((folder / "store/leases").iterdir()) == []


@pytest.mark.slow
def test_two_pipelines_that_share_an_encoder_and_rows_beside_a_collector(plain, address, tmp_path):
    """Half of the rows are common; old shards that nobody names are deleted as they go."""
    folder = make_world(tmp_path / "overlap")
    frame = pd.read_parquet(folder / "table.parquet")
    frame[ROWS // 2 :].to_parquet(folder / "half.parquet", index=False)
    other = (folder / "killed.yaml").read_text()
    other = other.replace("name: killed", "name: other").replace("table.parquet", "half.parquet")
    (folder / "other.yaml").write_text(other)
    # Shards of an earlier job, old, named by no snapshot: some that both need, and a stray one.
    for kind in ("embeddings", "quarantine"):
        shutil.copytree(plain / "store" / kind, folder / "store" / kind)
    given = sorted((folder / "store/embeddings").rglob("*.parquet"))
    for path in given[1::2]:
        path.unlink()
    given = given[::2]
    stray = folder / "store/embeddings" / ("e" * 32) / f"{'f' * 32}.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"stray")
    for path in (*given, stray):
        os.utime(path, (1e9, 1e9))
    kept = shards(folder)
    store = Store(LocalStorage(folder / "store"))
    processes = [start(folder, ray=address), start(folder, file="other.yaml", ray=address)]
    collections = 0
    while len(list((folder / "store").glob("leases/job-*.json"))) != 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    while any(process.poll() is None for process in processes):
        found = collect_garbage(store, keep=1, grace=0)
        collections += bool(found.jobs)
        time.sleep(0.1)
    for process in processes:
        finish(process)
    assert collections > 3 and not stray.exists(), "it collected, and beside the jobs"
    del kept[str(stray.relative_to(folder))]
    now = shards(folder)
    assert {path: now[path] for path in kept} == kept, "a shard that was there was made again"
    assert set(shards(plain)) <= set(now)
    for path in shards(plain):
        assert pq.read_table(folder / path).equals(pq.read_table(plain / path)), path
    whole, half = store.latest("killed"), store.latest("other")
    assert half.rows == ROWS // 2
    for snapshot in (whole, half):
        assert verify(store, snapshot).damages == []
    for modality in ("text", "hashed"):
        ours = read_embeddings(store, half, modality=modality)
        theirs = read_embeddings(store, whole, modality=modality)
        late = theirs.rows >= ROWS // 2
        np.testing.assert_array_equal(ours.rows + ROWS // 2, theirs.rows[late])
        np.testing.assert_array_equal(ours.values, theirs.values[late])


@pytest.mark.slow
def test_a_spot_notice_or_an_interrupt_ends_a_training_and_says_how_to_go_on(tmp_path):
    folder = make_world(tmp_path / "world")
    text = (folder / "killed.yaml").read_text().replace("seconds: 0.15", "seconds: 0")
    (folder / "killed.yaml").write_text(text)

    def checkpoints():
        return set((folder / "store/train-runs").glob("*/checkpoint_*"))

    def end_in_training(process, by):
        while not checkpoints() - before:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.kill(process.pid, by)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 130, output
        assert "run the same command again to go on" in output and "Traceback" not in output
        return output

    before = checkpoints()
    output = end_in_training(start(folder, "run", options=["--json"]), signal.SIGTERM)
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert (told["status"], told["exit_code"], told["error"]) == ("terminated", 130, "SIGTERM")
    store = Store(LocalStorage(folder / "store"))
    assert told["snapshot"] == store.latest("killed").id, "what was done is kept, and told"
    assert (told["rows"], told["fitted"], told["champion_after"]) == (ROWS, 0, None)
    assert told["embedded"] == told["reused"] + told["embedded"] > ROWS
    assert told["seconds"].keys() == {"embed", "train", "total"}
    turn = json.loads((folder / "store/turns/run%20killed/00000001.json").read_bytes())
    assert turn["ended"], "the next run need not wait until the turn lapses"
    before = checkpoints()
    end_in_training(start(folder, "train"), signal.SIGINT)
