"""Stage 1, killed with `kill -9` again and again, ends like a run that nobody touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

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
    return folder


def start(folder, command="embed"):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "workflows", command, "killed.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def shards(folder):
    """Inode and time of change of every finished shard."""
    found = {}
    for path in (folder / "store/embeddings").glob("*/*.parquet"):
        status = path.stat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


def kill_when(process, *, folder, count):
    """Kill the whole group once `count` shards are there; what was finished then."""
    while len(shards(folder)) < count:
        assert process.poll() is None, f"ended before the kill: {process.stdout.read()}"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return shards(folder)


@pytest.mark.slow
def test_killed_at_several_moments_it_ends_with_the_same_bytes(tmp_path):
    plain = make_world(tmp_path / "plain")
    process = start(plain)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    expected = shards(plain)
    assert len(expected) > 30

    killed = make_world(tmp_path / "killed")
    finished = {}
    for count in (0, 1, 5, 17):
        now = kill_when(start(killed), folder=killed, count=count)
        assert {path: now[path] for path in finished} == finished
        assert not (killed / "store/latest").exists(), "a snapshot of unfinished work was committed"
        finished = now
    process = start(killed)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output

    after = shards(killed)
    assert set(after) == set(expected)
    assert {path: after[path] for path in finished} == finished, "a finished shard was rewritten"
    for path in expected:
        tables = [pq.read_table(folder / path) for folder in (plain, killed)]
        assert tables[0].equals(tables[1]), path
    pointers = [json.loads((f / "store/latest/killed.json").read_text()) for f in (plain, killed)]
    assert pointers[0]["snapshot"] == pointers[1]["snapshot"]
    quarantines = [folder / "store/quarantine" for folder in (plain, killed)]
    found = [sorted(str(p.relative_to(q)) for p in q.rglob("*.parquet")) for q in quarantines]
    assert found[0] == found[1] != []


@pytest.mark.slow
def test_an_interrupt_ends_a_training_at_once_and_says_how_to_go_on(tmp_path):
    folder = make_world(tmp_path / "world")
    text = (folder / "killed.yaml").read_text().replace("seconds: 0.15", "seconds: 0")
    (folder / "killed.yaml").write_text(text)
    embedding = start(folder)
    output, _ = embedding.communicate(timeout=120)
    assert embedding.returncode == 0, output
    process = start(folder, "train")
    while not list((folder / "store/train-runs").glob("*/checkpoint_*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "run the same command again to go on" in output and "Traceback" not in output
