"""Of which parts the index of a space is made, and what they are called.

A part holds one modality's vectors of a run of consecutive sample shards. Where it ends is said by
the embedding shards themselves, so an inserted or changed one moves the parts around it and no
others; a changed label moves none. Its name is the hash of the space and of these shards: if it is
there, it is done.

    indexes/<space>/<part>.parquet             row, payload key and unit vector, float32
    indexes/<space>/<part>.faiss               cells over the same vectors, of large snapshots
    indexes/<space>/of-<snapshot>.json         the parts over a snapshot; written last
    indexes/<space>/recall-<what>.json         how many of the nearest the cells find
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pydantic

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from training.candidate import CandidateRecord

FORMAT = 1
"""Raised by one whenever a part comes out otherwise."""
LEAST_ROWS, MEAN_ROWS, MOST_ROWS = 2**15, 2**16, 2**17
"""Samples of a part: at least, on average about, and at most (one sample shard more, or a single
one): the vectors of 131,072 rows in 256 dimensions are 134 MB."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """One sample shard, as a part has it."""

    shards: tuple[str, ...]
    """The embedding shard over it, and its patches; none where no payload is there."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of sample shards whose vectors stand in one file."""

    name: str
    space: str
    first: int
    """Number of its first sample shard within the snapshot."""
    over: tuple[Over, ...]

    @property
    def rows(self) -> int:
        """Samples, with or without a vector."""
        return sum(one.rows for one in self.over)

    @property
    def path(self) -> str:
        """Of its vectors, within the store."""
        return f"indexes/{self.space}/{self.name}.parquet"

    @property
    def cells_path(self) -> str:
        """Of the cells over them."""
        return f"indexes/{self.space}/{self.name}.faiss"


PART = pydantic.TypeAdapter(Part)


def space_fingerprint(record: CandidateRecord, *, modality: str) -> str:
    """Identity of what a model makes of a modality's embeddings: its weights, and which part."""
    return fingerprint(
        {
            "format": FORMAT,
            "candidate": record.fingerprint,
            "weights": record.files["model"],
            "modality": modality,
            "encoder": record.modalities[modality]["encoder_fingerprint"],
        }
    )


def parts_of(snapshot: Snapshot, *, modality: str, space: str) -> list[Part]:
    """The parts over a snapshot, in the order of its rows."""
    over = [
        Over(shards=shards, rows=samples.rows)
        for samples, shards in zip(
            snapshot.samples, snapshot.modalities[modality].shards, strict=True
        )
    ]
    return [
        Part(
            name=fingerprint({"space": space, "over": over[start:stop]}),
            space=space,
            first=start,
            over=tuple(over[start:stop]),
        )
        for start, stop in _runs(over)
    ]


def manifest_path(*, space: str, snapshot: str) -> str:
    """Where it stands of which parts the index over a snapshot consists."""
    return f"indexes/{space}/of-{snapshot}.json"


def _runs(over: Sequence[Over]) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) shard of each part."""
    start = rows = 0
    for number, one in enumerate(over):
        if rows and rows + one.rows > MOST_ROWS:
            yield start, number
            start, rows = number, 0
        rows += one.rows
        # An end for about every MEAN_ROWS - LEAST_ROWS samples, once there are enough.
        marked = int(fingerprint(one)[:12], 16) % (MEAN_ROWS - LEAST_ROWS) < one.rows
        if rows >= LEAST_ROWS and marked:
            yield start, number + 1
            start, rows = number + 1, 0
    if start < len(over):
        yield start, len(over)
