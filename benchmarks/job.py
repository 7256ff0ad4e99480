"""The project itself as a variant: stage 1 as its command runs it, and what its store tells."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.measure import ENVIRONMENT
from benchmarks.processes import Share, Watched, run_watched
from features.snapshot import Snapshot
from features.storage import LocalStorage
from features.store import Store


def embed(pipeline: Path, *, afresh: bool = True, interval: float = 0.25) -> Watched:
    """`sensorium embed` in a process of its own, from a store that is emptied first if `afresh`."""
    if afresh:
        shutil.rmtree(pipeline.parent / "store", ignore_errors=True)
    command = [sys.executable, "-m", "workflows", "embed", str(pipeline)]
    return run_watched(command, env=ENVIRONMENT, interval=interval)


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """What an embedding shard's file tells of its making."""

    embedded: int
    rows: int
    written: float
    """When, in seconds since 1970."""
    seconds: dict[str, float]

    @property
    def begun(self) -> float:
        """When work on it was first waited for."""
        return self.written - sum(self.seconds[step] for step in ("wait", "encode"))

    @property
    def encoding_begun(self) -> float:
        """When its first forward pass began, if it was encoded at one go."""
        return self.written - self.seconds["encode"]


def shard_files(pipeline: Path) -> dict[Path, ShardFile]:
    """All embedding shards in the pipeline's store, by their place."""
    found = {}
    for path in sorted((pipeline.parent / "store" / "embeddings").rglob("*.parquet")):
        metadata = pq.read_metadata(path).metadata
        found[path] = ShardFile(
            embedded=int(metadata[b"sensorium.embedded"]),
            rows=int(metadata[b"sensorium.rows"]),
            written=path.stat().st_mtime,
            seconds=json.loads(metadata[b"sensorium.seconds"]),
        )
    return found


def working_share(pipeline: Path) -> Share:
    """Run `embed`: its share from the first row that is waited for to the last shard in its place.

    Reading, tokenizing or decoding, the forward pass and writing are in it; the start of Ray,
    of the actors and of the model are not.
    """
    watched = embed(pipeline)
    files = shard_files(pipeline).values()
    return watched.between(min(f.begun for f in files), max(f.written for f in files))


def open_store(pipeline: Path) -> tuple[Store, Snapshot]:
    """The pipeline's store, and the snapshot last committed in it."""
    store = Store(LocalStorage(pipeline.parent / "store"))
    snapshot = store.latest("benchmark")
    assert snapshot is not None, "the benchmark's job has committed no snapshot"
    return store, snapshot
