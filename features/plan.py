"""What an embed job would do: what is there, what is missing, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from features.integrity import Repeats
from features.sample_rows import SampleColumns
from features.samples import SampleShard
from features.scan_record import ScanRecord
from features.snapshot import Snapshot
from features.sources import RowRange, Source
from features.spec import DatasetSpec, FeatureSpec
from features.store import Store


@dataclass(frozen=True, kw_only=True)
class Work:
    """One missing embedding shard: what to compute, and from where."""

    modality: str
    encoder: str
    """Fingerprint of the encoder."""
    shard: str
    samples: str
    """Path of the sample shard, which holds the payload keys."""
    ranges: tuple[RowRange, ...]
    rows: int
    payloads: int
    donors: tuple[str, ...]
    """Shards of the same encoder that hold some of these payloads' embeddings."""
    only: tuple[int, ...] = ()
    """Rows to try again, which a finished shard lacks; they become a patch over it."""


@dataclass(frozen=True, kw_only=True)
class ModalityPlan:
    """One modality's part of the plan, counted in samples."""

    modality: str
    feature: FeatureSpec
    encoder_fingerprint: str
    shards: tuple[tuple[str, ...], ...]
    payloads: int
    missing: int
    """Samples without a payload."""
    reused: int
    """Payloads in shards that are there."""
    copied: int
    """Payloads whose embeddings are copied from shards that are no longer listed."""
    to_embed: int
    reason: str
    """Why there is something to embed, for a person; empty if there is not."""
    bytes: int | None
    """Bytes to write, if the width is known from a shard that is there."""
    seconds: float | None
    """Estimate of the time on one worker, if a shard that is there tells the rate."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an embed job would do. `work` is empty if there is nothing to do."""

    name: str
    source: Source
    columns: SampleColumns
    """What is read of the table."""
    samples: tuple[SampleShard, ...]
    modalities: Mapping[str, ModalityPlan]
    work: tuple[Work, ...]
    splits: Mapping[str, int]
    """Samples per split; those in no split under the empty name."""
    labelled: Mapping[str, int]
    """Samples with a label per split."""
    repeats: Mapping[str, Repeats]
    """Payloads that stand in several rows, by modality; groups that a split column divides under
    the empty name."""
    untrained: tuple[str, ...]
    """Classes that some row is labelled with, and no row of the training split."""
    record: ScanRecord | None
    """What the next scan can start from; None if that is remembered already."""
    previous: Snapshot | None
    seconds: float
    """How long the planning took."""

    @property
    def dataset(self) -> DatasetSpec:
        return self.columns.dataset

    @property
    def target(self) -> str | None:
        return self.columns.target

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.samples)


def is_there(plan: Plan, *, store: Store) -> bool:
    """Whether all shards that a plan reuses are in the store still. One listing an encoder."""
    for part in plan.modalities.values():
        pending = {work.shard for work in plan.work if work.encoder == part.encoder_fingerprint}
        wanted = {shard for over in part.shards for shard in over} - pending
        if not wanted <= store.shards_of(part.encoder_fingerprint):
            return False
    return True
