"""Stage 1 with a fault at each call to the store's medium: nothing is lost, nothing half-written.

Each injection runs the command's own code over a store that holds an older snapshot, with one
fault at one call; then the same again without a fault. Whatever happens, what is visible is
whole, the second run ends like one that nobody disturbed, and no finished shard is touched.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import features.job
import features.s3
import workflows.embed
from features.storage import TEMPORARY_SUFFIX, open_storage
from features.store import Store
from features.stored_embeddings import read_embeddings
from features.upkeep import read_pointers
from features.verification import verify
from tests.conftest import BUCKET, REAL_S3, make_bucket
from tests.fault_table import FaultTable
from tests.features import faulty_bucket, faulty_disk
from tests.features.faulty_server import Faults, faulty_server
from tests.workflows.in_process import without_ray
from workflows.pipeline import ConfigurationError, StageError, load_pipeline

PIPELINE = """
name: faults
dataset:
  path: {table}.parquet
  split: split
  max_bad_fraction: 1.0
  shard_rows: {{min: 6, target: 9, max: 14}}
features:
  text: {{column: text, encoder: {{type: hashing, dim: 32}}}}
  file: {{column: file, uri: true, encoder: {{type: hashing, dim: 16}}}}
task: {{target: label}}
candidates: [{{type: single, modality: text}}]
store: {store}
"""
ROWS = 40
INJECTIONS = {"disk": 4, "moto": 1, "real": 1}
"""Calls of a place that each fault is injected at; a request to moto's server takes 6 ms."""
SERVER = "real" if REAL_S3 in os.environ else "moto"
"""Where the store in S3 is. Where there is a real server, moto's has nothing to add: the faults are
of a server between them and the store, and each of them has ended alike on both."""


_REQUESTS = {"503 once", "500 once", "reset", "silent", "answer lost", "cut short"}
SURVIVED = {
    "disk": {"passes", "hangs", "answer lost"},
    "moto": _REQUESTS,
    "real": _REQUESTS,
}
"""Faults that no run may end by."""


# ------------------------------------------------------------------ the world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table in two versions, and files that both refer to."""
    folder = tmp_path_factory.mktemp("faults")
    for i in range(0, ROWS, 2):
        (folder / f"{i}.txt").write_text(f"file {i}")
    frame = pd.DataFrame(
        {
            "sample_id": range(ROWS),
            "text": [None if i % 11 == 0 else "" if i == 5 else f"text {i}" for i in range(ROWS)],
            "file": [f"{i}.txt" if i % 2 == 0 else None for i in range(ROWS)],
            "split": [("train", "validation", "test")[i % 3] for i in range(ROWS)],
            "label": [i % 2 for i in range(ROWS)],
        }
    )
    frame.drop([7, 8, 30]).to_parquet(folder / "before.parquet", index=False)
    frame.loc[20, "text"] = "another text"
    frame.to_parquet(folder / "after.parquet", index=False)
    return folder


def run(world: Path, *, store: str, table: str = "after", retry: bool = False) -> Any:
    """Stage 1 as the command runs it, but for Ray, which is not started."""
    path = world / f"{table}.yaml"
    path.write_text(PIPELINE.format(table=table, store=store))
    connection: Any = SimpleNamespace(open=lambda: None)
    return workflows.embed.embed(
        load_pipeline(path),
        connection=connection,
        console=Console(file=io.StringIO()),
        retry=retry,
    )


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    sleep = faulty_disk.time_sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.001)))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes most of the time


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a run over the older snapshot leaves behind."""

    template: dict[str, bytes]
    """The store's files before."""
    files: set[str]
    """Those after."""
    snapshot: str
    columns: dict[str, Any]
    """The tables of the embedding shards."""
    embeddings: dict[str, tuple[np.ndarray, np.ndarray]]
    """Per modality: row numbers and values."""


@pytest.fixture(scope="session")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        no_ray.__wrapped__(patch)  # type: ignore[attr-defined]
        run(world, store=str(root), table="before")
        template = files_of(root)
        snapshot = run(world, store=str(root)).snapshot
    store = Store(open_storage(str(root)))
    copied = [n for n in files_of(root) if n.startswith("embeddings/") and n not in template]
    assert len(copied) >= 4, "there is enough to do for a fault to matter"
    return Undisturbed(
        template=template,
        files=set(files_of(root)),
        snapshot=snapshot.id,
        columns=shards(store),
        embeddings=embeddings(store),
    )


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def shards(store: Store) -> dict[str, Any]:
    """The columns of every embedding shard, without its metadata."""
    return {
        entry.path: store.read_table(entry.path).replace_schema_metadata(None)
        for entry in store.storage.walk("embeddings")
        if not entry.path.endswith(TEMPORARY_SUFFIX)
    }


def embeddings(store: Store) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    snapshot = store.latest("faults")
    assert snapshot is not None
    found = {m: read_embeddings(store, snapshot, modality=m) for m in snapshot.modalities}
    return {m: (part.rows, part.values) for m, part in found.items()}


# ------------------------------------------------------------------ the media


@dataclass(kw_only=True)
class Medium:
    """Where a store lies, with the faults that it can have."""

    name: str
    root: str
    places: dict[str, tuple[str, ...]]
    faults: dict[str, Any]
    failing: Callable[[], Any]
    """A context in which calls are counted and may fail."""
    fill: Callable[[dict[str, bytes]], None]
    """Make the store hold these files alone."""
    states: Callable[[], dict[str, Any]]
    """What would change if a file were touched, by path."""
    seen: Callable[[], Store]
    """The store as a reader finds it, in a folder: requests to a server take most of the time."""


def disk(folder: Path) -> Medium:
    root = folder / "store"

    @contextmanager
    def failing() -> Iterator[Any]:
        faulty = faulty_disk.FaultyDisk(str(root))
        with faulty.mounted():
            yield faulty

    def fill(files: dict[str, bytes]) -> None:
        shutil.rmtree(root, ignore_errors=True)
        for name, body in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(body)

    def states() -> dict[str, Any]:
        paths = [p for p in root.rglob("*") if p.is_file()]
        found = [(str(p.relative_to(root)), p.stat()) for p in paths]
        return {name: (status.st_ino, status.st_mtime_ns) for name, status in found}

    return Medium(
        name="disk",
        root=str(root),
        places=faulty_disk.PLACES,
        faults=faulty_disk.FAULTS,
        failing=failing,
        fill=fill,
        states=states,
        seen=lambda: Store(open_storage(str(root))),
    )


class Bucket:
    """An S3 server, and the faulty one before it."""

    def __init__(self, endpoint: str, *, server: Faults) -> None:
        import boto3

        self.server = server
        self._s3 = boto3.client("s3", endpoint_url=endpoint)
        self._bodies: dict[tuple[str, str], bytes] = {}

    def medium(self, name: str, *, folder: Path) -> Medium:
        prefix = f"faults-{os.urandom(8).hex()}"

        @contextmanager
        def failing() -> Iterator[Any]:
            try:
                yield faulty_bucket.FaultyBucket(self.server)
            finally:
                self.server.choose = None

        def listed() -> dict[str, Any]:
            page = self._s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
            return {i["Key"].removeprefix(f"{prefix}/"): i for i in page.get("Contents", ())}

        def seen() -> Store:
            shutil.rmtree(folder, ignore_errors=True)
            for path, item in listed().items():
                known = (path, item["ETag"])
                if known not in self._bodies:
                    answer = self._s3.get_object(Bucket=BUCKET, Key=item["Key"])
                    self._bodies[known] = answer["Body"].read()
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(self._bodies[known])
            return Store(open_storage(str(folder)))

        def fill(files: dict[str, bytes]) -> None:
            keys = [{"Key": item["Key"]} for item in listed().values()]
            if keys:
                self._s3.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
            for path, body in files.items():
                self._s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{path}", Body=body)

        return Medium(
            name=name,
            root=f"s3://{BUCKET}/{prefix}",
            places=faulty_bucket.PLACES,
            faults=faulty_bucket.FAULTS,
            failing=failing,
            fill=fill,
            states=lambda: {p: (i["ETag"], i["LastModified"]) for p, i in listed().items()},
            seen=seen,
        )


@pytest.fixture(scope="module")
def open_bucket() -> Iterator[Callable[..., Bucket]]:
    """Makes the bucket of a name once, since to make a client takes long."""
    made: dict[str, Bucket] = {}
    with ExitStack() as stack:

        def open_once(name: str, *, endpoint: str) -> Bucket:
            if name not in made:
                server = stack.enter_context(faulty_server(endpoint))
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("AWS_ENDPOINT_URL", endpoint)
                    make_bucket(BUCKET)
                made[name] = Bucket(endpoint, server=server)
            return made[name]

        yield open_once


@pytest.fixture
def medium(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    open_bucket: Callable[..., Bucket],
    monkeypatch: pytest.MonkeyPatch,
) -> Medium:
    name: str = request.param
    if name == "disk":
        return disk(tmp_path)
    moto = name == "moto"
    endpoint = request.getfixturevalue("moto_endpoint") if moto else os.environ[REAL_S3]
    found = open_bucket(name, endpoint=endpoint)
    monkeypatch.setattr(features.s3, "ATTEMPTS", 4)
    monkeypatch.setattr(features.s3, "SILENT_SECONDS", faulty_bucket.SILENT_SECONDS)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.server.endpoint)
    return found.medium(name, folder=tmp_path / "seen")


# ------------------------------------------------------------------ the matrix


CELLS = [
    # In one process of pytest-xdist: what is prepared for the first serves all.
    pytest.param(
        name,
        place,
        fault,
        id=f"{name}-{place}-{fault}".replace(" ", "_"),
        marks=pytest.mark.xdist_group("faults"),
    )
    for name, places in (
        ("disk", faulty_disk.PLACES),
        (SERVER, faulty_bucket.PLACES),
    )
    for place, faults in places.items()
    for fault in faults
]


@pytest.mark.parametrize(("medium", "place", "fault"), CELLS, indirect=["medium"])
def test_a_fault_loses_nothing(
    medium: Medium,
    place: str,
    fault: str,
    world: Path,
    undisturbed: Undisturbed,
    fault_table: FaultTable,
) -> None:
    if medium.name not in fault_table.calls:  # a run without a fault tells what calls there are
        medium.fill(undisturbed.template)
        with medium.failing() as counting:
            run(world, store=medium.root)
        fault_table.calls[medium.name] = counting.calls
    count = fault_table.calls[medium.name][place]
    assert count, f"a run makes no call to {place}"
    kinds = medium.places[place]
    share = (kinds.index(fault) + 0.5) / len(kinds)
    for number in spread(count, most=INJECTIONS[medium.name], share=share):
        medium.fill(undisturbed.template)
        outcome = inject(medium, place=place, number=number, fault=fault, world=world)
        if outcome is None:
            continue  # threads may make fewer calls than another time
        if fault in SURVIVED[medium.name]:
            assert outcome in ("retried", "passed over"), "it passes, and must be tried again"
        look_at_what_is_visible(medium)
        finished = {
            path: state
            for path, state in medium.states().items()
            if path.startswith(("samples/", "embeddings/", "quarantine/", "encoders/"))
            and not path.endswith(TEMPORARY_SUFFIX)
        }
        again = run(world, store=medium.root, retry=outcome == "quarantined")
        states = medium.states()
        assert {p: states.get(p) for p in finished} == finished, "a finished file was touched"
        store = medium.seen()
        assert verify(store, again.snapshot).damages == []
        found = embeddings(store)
        for modality, expected in undisturbed.embeddings.items():
            np.testing.assert_array_equal(found[modality][0], expected[0])
            np.testing.assert_array_equal(found[modality][1], expected[1])
        if outcome != "quarantined":
            assert again.snapshot.id == undisturbed.snapshot
            whole = {p for p in states if not p.endswith(TEMPORARY_SUFFIX)}
            assert {p for p in whole if not p.startswith("leases/")} == undisturbed.files
            ours = shards(store)
            for path, table in undisturbed.columns.items():
                assert ours[path].equals(table), path
        fault_table.outcomes[medium.name, place, fault][outcome] += 1
    assert fault_table.outcomes[medium.name, place, fault].total(), "the fault never came about"


def spread(count: int, *, most: int, share: float) -> list[int]:
    """At most so many of the numbers from 1 to `count`, evenly spread.

    `share`, in 0..1, shifts them, so that different faults take different ones.
    """
    some = min(count, most)
    return sorted({1 + int(count * (i + share) / some) for i in range(some)})


def inject(medium: Medium, *, place: str, number: int, fault: str, world: Path) -> str | None:
    """A run with a fault at one call; how it ended, None if there was no such call."""
    with medium.failing() as failing:
        failing.fail(place, at=number, fault=medium.faults[fault])
        try:
            embedded = run(world, store=medium.root)
        except faulty_disk.Died:
            return "killed"
        except (StageError, ConfigurationError) as error:
            said = str(error)
            named = medium.root in said or str(world) in said or place.startswith("payload")
            assert named, f"it names no file: {said}"
            return "failed"
    if not failing.fired:
        return None
    if fault == "forbidden" and place.startswith("payload"):
        assert sum(q.bad for q in embedded.quarantine.values()) >= 1
        return "quarantined"
    assert sum(q.bad for q in embedded.quarantine.values()) == 1, "a row was blamed for a fault"
    return "passed over" if place == "delete" else "retried"


def look_at_what_is_visible(medium: Medium) -> None:
    """All files that are there are whole, and all snapshots refer to such."""
    store = medium.seen()
    for entry in store.storage.walk():
        if entry.path.endswith(TEMPORARY_SUFFIX):
            assert entry.path.rpartition("/")[2].startswith("."), "a temporary file is hidden"
        elif entry.path.endswith(".parquet"):
            with store.storage.open(entry.path) as file:
                pq.ParquetFile(file, page_checksum_verification=True).read()
        elif entry.path.endswith(".json"):
            json.loads(store.storage.read(entry.path))
    read_pointers(store)
    for name in store.storage.list("snapshots"):
        snapshot = store.read_snapshot(name.removesuffix(".json"))
        assert verify(store, snapshot).damages == []
    assert store.latest("faults") is not None


# ------------------------------------------------------------------ a real disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory with some options, or mounts it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        mounted = os.path.ismount(folder)
        how = f"remount,{options}" if mounted else options
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no `mount` here")
def test_a_disk_that_is_full_and_one_that_is_read_only_are_said_and_lose_nothing(
    world: Path, undisturbed: Undisturbed, small_disk: Callable[[str], Path]
) -> None:
    failures = 0
    for kilobytes in range(16, 1000, 8):
        store = small_disk(f"size={kilobytes}k") / "store"
        try:
            snapshot = run(world, store=str(store)).snapshot
            break
        except StageError as error:
            failures += 1
            assert "No space left on device" in str(error) and str(store) in str(error)
            found = disk(store.parent)
            for path in store.rglob("*.parquet"):
                pq.ParquetFile(path, page_checksum_verification=True).read()
            assert not list(store.glob("latest/*")), "a snapshot of unfinished work"
            assert not [p for p in found.states() if p.endswith(TEMPORARY_SUFFIX)]
    assert failures > 3 and snapshot.id == undisturbed.snapshot
    found = embeddings(Store(open_storage(str(store))))
    for modality, (rows, values) in undisturbed.embeddings.items():
        np.testing.assert_array_equal(found[modality][0], rows)
        np.testing.assert_array_equal(found[modality][1], values)

    small_disk("ro")
    before = disk(store.parent).states()
    assert not run(world, store=str(store)).changed, "nothing is written if nothing is to do"
    with pytest.raises(StageError, match=f"Read-only file system.*{store}"):
        run(world, store=str(store), table="before")
    assert disk(store.parent).states() == before
