"""The `store` commands as a person sees them, and stage 1 beside a collection of garbage."""

import contextlib
import io
import os
import shutil
import time
import uuid

import boto3
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import workflows.embed
from features.encoders.image import HogSpec
from features.garbage import DAY, collect_garbage
from features.storage import LocalStorage, open_storage
from features.store import Store
from features.stored_embeddings import read_embeddings
from features.verification import verify
from tests.conftest import BUCKET, make_bucket
from tests.workflows.command import sensorium
from tests.workflows.in_process import without_ray
from workflows.cluster import Connection
from workflows.pipeline import StageError, load_pipeline
from workflows.upkeep import parse_duration


@pytest.fixture
def place(fitted_shapes, tmp_path):
    """A store of its own, with a snapshot, its fitted candidates, and the table beside it."""
    folder = tmp_path / "shapes"
    shutil.copytree(fitted_shapes.folder, folder)
    return folder


def make_old(folder, *, days):
    """All files of a store become older."""
    then = time.time() - days * DAY
    for path, _, names in os.walk(folder / "store"):
        for name in names:
            os.utime(os.path.join(path, name), (then, then))


def supersede(folder):
    """Point `latest` to another snapshot, so that nothing names the first one's shards any more."""
    store = Store(LocalStorage(folder / "store"))
    first = store.latest("shapes")
    table = pd.read_parquet(folder / "table.parquet")
    table.assign(text=table["text"] + "!", picture=None).to_parquet(folder / "other.parquet")
    other = (folder / "shapes.yaml").read_text().replace("table.parquet", "other.parquet")
    (folder / "other.yaml").write_text(other.replace("max_bad", "max_bad"))
    return store, first


def walk(folder):
    return {
        os.path.join(path, name): os.stat(os.path.join(path, name)).st_mtime_ns
        for path, _, names in os.walk(folder)
        for name in names
    }


def test_ls_shows_what_is_there_and_what_refers_to_what(place, capsys):
    store = Store(LocalStorage(place / "store"))
    snapshot = store.latest("shapes")
    before = walk(place / "store")
    for given in (place / "store", place / "shapes.yaml", f"file://{place}/store"):
        code, out, err = sensorium(capsys, "store", "ls", given)
        assert (code, err) == (0, "")
        assert f"{place}/store" in out.replace("\n", "")
        for expected in ("samples", "embeddings", "candidates", snapshot.id[:12], "latest"):
            assert expected in out
        for part in snapshot.modalities.values():
            (line,) = [line for line in out.splitlines() if part.encoder_fingerprint[:12] in line]
            assert snapshot.id[:12] in line and part.encoder["type"] in line
    assert walk(place / "store") == before, "it changes nothing"
    store.storage.delete([snapshot.samples[0].path])
    code, out, _ = sensorium(capsys, "store", "ls", place / "store")
    assert code == 1 and f"lost: 1 shard that snapshots name, {snapshot.samples[0].path}" in out


def test_verify_names_each_damaged_file_and_fails(place, capsys):
    store = Store(LocalStorage(place / "store"))
    snapshot = store.latest("shapes")
    code, out, _ = sensorium(capsys, "store", "verify", place / "shapes.yaml")
    assert code == 0 and "240 samples" in out and "whole" in out
    damaged = snapshot.samples[0].path
    full = place / "store" / damaged
    full.write_bytes(full.read_bytes()[:-40])
    for arguments in ([], ["--all"], ["--snapshot", snapshot.id[:6]]):
        code, out, _ = sensorium(capsys, "store", "verify", place / "store", *arguments)
        assert code == 1 and "1 fault" in out and damaged in out


def test_gc_says_what_it_would_delete_and_then_does(place, capsys):
    store = Store(LocalStorage(place / "store"))
    snapshot = store.latest("shapes")
    stray = f"embeddings/{'e' * 32}/{'f' * 32}.parquet"
    store.storage.write_once(stray, b"x" * 2000)
    assert "3 files" not in sensorium(capsys, "store", "gc", place / "store")[1]
    assert store.storage.exists(stray), "it is young"
    make_old(place, days=9)
    before = walk(place / "store")
    code, out, _ = sensorium(capsys, "store", "gc", place / "store", "--dry-run")
    assert code == 0 and "1 file (2.0 kB) would be deleted; 1 snapshot kept" in out
    assert walk(place / "store") == before
    code, out, _ = sensorium(capsys, "store", "gc", place / "store", "--grace", "10d")
    assert code == 0 and "nothing to delete" in out and "1 further shard" in out
    code, out, _ = sensorium(capsys, "store", "gc", place / "shapes.yaml")
    assert code == 0 and "1 file (2.0 kB) deleted" in out
    gone = {path.removeprefix(f"{place}/store/") for path in set(before) - set(walk(place))}
    assert gone == {stray}
    assert verify(store, snapshot).damages == []
    assert "nothing to delete" in sensorium(capsys, "store", "gc", place / "store")[1]


def test_candidates_are_deleted_only_on_demand(place, capsys, mlflow_uri):
    store = Store(LocalStorage(place / "store"))
    candidates = store.storage.list("candidates") or {
        entry.path.split("/")[1] for entry in store.storage.walk("candidates")
    }
    record = store.storage.read(f"candidates/{min(candidates)}/record.json")
    stranger = record.replace(store.latest("shapes").id.encode(), b"0" * 32)
    part = store.latest("shapes").part(modalities=("caption",)).encode()
    for known in {part} | {
        store.latest("shapes").part(modalities=names).encode()
        for names in (("photo",), ("caption", "photo"))
    }:
        stranger = stranger.replace(known, b"1" * 32)
    store.storage.write_once("candidates/stranger/record.json", stranger)
    make_old(place, days=9)
    assert "nothing" in sensorium(capsys, "store", "gc", place / "shapes.yaml")[1]
    code, _, err = sensorium(capsys, "store", "gc", place / "store", "--candidates")
    assert code == 2 and "--candidates needs a pipeline's YAML file" in " ".join(err.split())
    code, out, _ = sensorium(capsys, "store", "gc", place / "shapes.yaml", "--candidates")
    assert code == 0 and "1 file" in out
    left = {entry.path.split("/")[1] for entry in store.storage.walk("candidates")}
    assert left == candidates


def test_a_wrong_use_ends_with_2_and_what_to_write(place, capsys, monkeypatch):
    for arguments, expected in (
        (("ls", place / "nowhere"), "there is no store at"),
        (("ls", place / "table.parquet"), "table.parquet"),
        (("ls", "gopher://x"), "gopher:// is not supported"),
        (("ls", place / "shape.yaml"), "shapes.yaml"),
        (("verify", place / "store", "--snapshot", "zz"), "no snapshot begins with 'zz'"),
        (("gc", place / "store", "--grace", "7"), "write 90s, 30m, 12h, 7d or 2w"),
        (("gc", place / "store", "--keep", "0"), "equal to 1"),
    ):
        code, _, err = sensorium(capsys, "store", *arguments)
        said = " ".join(err.replace("│", " ").split())
        assert code == 2 and expected in said and "Traceback" not in err, (arguments, err)
    (place / "store/latest/shapes.json").write_text("")
    for command in ("ls", "gc"):
        code, _, err = sensorium(capsys, "store", command, place / "store")
        assert code == 1 and "latest/shapes.json cannot be read" in err
    monkeypatch.setattr("features.s3.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, _, err = sensorium(capsys, "store", "ls", "s3://bucket/store")
    assert code == 1 and err.startswith("failed") and "check AWS_ENDPOINT_URL" in err


def test_durations_are_read_with_their_unit():
    wanted = {"90s": 90, "30m": 1800, "12h": 43200, "7d": 7 * DAY, "1.5d": 1.5 * DAY, "0s": 0}
    assert {text: parse_duration(text) for text in wanted} == wanted


# ------------------------------------------------------------------ stage 1 beside a collection


def forget(store):
    """Leave all shards in the store, old, and named by nobody."""
    paths = [e.path for folder in ("latest", "snapshots") for e in store.storage.walk(folder)]
    store.storage.delete(paths)


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_collection_beside_stage_1_takes_nothing_that_it_needs(place, monkeypatch, moment):
    """The job finds all its shards in the store, named by no snapshot, and commits them."""
    store = Store(LocalStorage(place / "store"))
    expected = store.latest("shapes").id
    forget(store)
    make_old(place, days=30)
    computed = []

    def collect():
        computed.append(collect_garbage(store).files)

    if moment == "before":  # between the plan and the job's announcement
        made = workflows.embed.plan_embedding

        def plan_then_collect(pipeline, **options):
            plan = made(pipeline, **options)
            if not computed:
                collect()
            return plan

        monkeypatch.setattr(workflows.embed, "plan_embedding", plan_then_collect)
    else:
        wrote = workflows.embed.write_samples

        def collect_then_write(plan, *, store, **options):
            collect()
            wrote(plan, store=store, **options)

        monkeypatch.setattr(workflows.embed, "write_samples", collect_then_write)
    planned = []
    monkeypatch.setattr(workflows.embed, "_compute", lambda plan, **_: planned.extend(plan.work))
    pipeline = load_pipeline(place / "shapes.yaml")
    if moment == "within":
        embedded = run_embed(pipeline)
        assert computed == [0] and not planned
        assert embedded.snapshot.id == expected and store.latest("shapes").id == expected
        assert verify(store, embedded.snapshot).damages == []
        return
    # All is gone, and the job sees it and plans anew, in the place of naming what is not there.
    with contextlib.suppress(StageError):
        run_embed(pipeline)
    assert computed[0] > 0 and len(planned) == len({work.shard for work in planned}) > 0
    assert store.latest("shapes") is None


def test_the_collection_would_take_it_from_a_job_that_is_not_announced(place, monkeypatch):
    store = Store(LocalStorage(place / "store"))
    forget(store)
    make_old(place, days=30)
    monkeypatch.setattr(workflows.embed, "announce_job", lambda *_, **__: contextlib.nullcontext())
    wrote = workflows.embed.write_samples

    def collect_then_write(plan, *, store, **options):
        assert collect_garbage(store).files > 0
        wrote(plan, store=store, **options)

    monkeypatch.setattr(workflows.embed, "write_samples", collect_then_write)
    with pytest.raises(Exception, match=r"not|No such"):
        run_embed(load_pipeline(place / "shapes.yaml"))


def test_a_run_with_nothing_to_do_announces_nothing(place):
    run_embed(load_pipeline(place / "shapes.yaml"))  # the table is in another folder now
    before = walk(place / "store")
    assert not run_embed(load_pipeline(place / "shapes.yaml")).changed
    assert walk(place / "store") == before and not (place / "store/leases").exists()


def run_embed(pipeline):
    with Connection() as connection:
        return workflows.embed.embed(
            pipeline, connection=connection, console=Console(file=io.StringIO())
        )


# ------------------------------------------------------------------ on S3


SPLITS = ("train", "validation", "test")
PIPELINE = """
name: words
dataset:
  path: words.csv
  split: split
  shard_rows: {{min: 10, target: 20, max: 60}}
  max_bad_fraction: 0.05
features:
  text: {{column: text, encoder: {{type: hashing, dim: 32}}}}
  photo: {{column: photo, encoder: {{type: hog}}}}
task: {{target: label}}
candidates: [{{type: single, modality: text, width: 8}}]
training: {{max_epochs: 2, batch_size: 16}}
store: {store}
"""


def test_stages_1_and_2_take_photos_from_s3_and_keep_all_there(
    s3_endpoint, tmp_path, monkeypatch, capsys
):
    """On a real server if there is one; pipelines run on it over several machines elsewhere."""
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    make_bucket(BUCKET)
    s3_root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    photos = f"{s3_root}-photos"
    bucket, _, prefix = photos.removeprefix("s3://").partition("/")
    drawn = np.random.default_rng(0).integers(0, 256, (90, 40, 30, 3), dtype=np.uint8)
    client = boto3.client("s3")
    for i, pixels in enumerate(drawn):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        if i != 7:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{i}.png", Body=file.getvalue())
    rows = [
        [i, f"text {i} {i // 3 % 3}", f"{photos}/{i}.png", i // 3 % 3, SPLITS[i % 3]]
        for i in range(90)
    ]
    columns = ["sample_id", "text", "photo", "label", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "words.csv", index=False)
    (tmp_path / "words.yaml").write_text(PIPELINE.format(store=s3_root))

    def run(*arguments):
        code, out, err = sensorium(capsys, *arguments)
        assert code == 0, f"{out}\n{err}"
        return out

    said = run("embed", "words.yaml")
    assert "179 payloads embedded" in said and "there is no such" in said
    store = Store(open_storage(s3_root))
    snapshot = store.latest("words")
    assert verify(store, snapshot).damages == []
    found = read_embeddings(store, snapshot, modality="photo")
    assert found.rows.tolist() == [i for i in range(90) if i != 7]
    hog = HogSpec().load()
    expected = hog.encode([hog.prepare(pixels) for pixels in drawn[found.rows]])
    np.testing.assert_allclose(found.values, expected, atol=1e-3)
    assert "1 candidate fitted" in run("train", "words.yaml")
    kinds = {entry.path.partition("/")[0] for entry in store.storage.walk()}
    assert kinds == {
        "samples", "embeddings", "encoders", "snapshots", "statistics", "latest", "scans",
        "candidates", "quarantine", "turns",
    }  # fmt: skip
    before = {(entry.path, entry.modified) for entry in store.storage.walk()}
    assert "nothing to do" in run("embed", "words.yaml")
    assert "nothing to do" in run("train", "words.yaml")
    assert {(entry.path, entry.modified) for entry in store.storage.walk()} == before
    assert sorted(os.listdir(tmp_path)) == ["words.csv", "words.yaml"], "nothing is on the disk"
    widths = set()
    for entry in store.storage.walk("embeddings"):
        with store.storage.open(entry.path) as file:
            widths.add(pq.ParquetFile(file).schema_arrow.field("embedding").type.list_size)
    assert widths == {32, HogSpec().dim}
