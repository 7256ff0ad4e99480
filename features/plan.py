"""What is there, what is missing, and what it will cost.

Planning reads the table once and lists each encoder's shards once. It keeps one record a
shard; payload keys are held only for the shards that are missing while an earlier snapshot
has donors for them, that is for about as many rows as have changed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from features.encoders import EncoderSpec
from features.samples import PayloadColumn, SampleShard, scan_samples
from features.sources import RowRange, Source
from features.spec import DatasetSpec, FeatureSpec
from features.store import (
    ModalityShards,
    Snapshot,
    Store,
    embedding_path,
    quarantine_path,
    shard_fingerprint,
)

FOOTERS_FOR_ESTIMATE = 4


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
    dataset: DatasetSpec
    source: Source
    target: str | None
    samples: tuple[SampleShard, ...]
    modalities: Mapping[str, ModalityPlan]
    work: tuple[Work, ...]
    splits: Mapping[str, int]
    """Samples per split; those in no split under the empty name."""
    previous: Snapshot | None
    seconds: float
    """How long the planning took."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.samples)


def make_plan(
    *,
    name: str,
    source: Source,
    dataset: DatasetSpec,
    features: Mapping[str, FeatureSpec],
    target: str | None,
    store: Store,
    write_samples: bool,
) -> Plan:
    """Compare the table with the store. Writes the sample shards if asked to, and nothing else.

    Raises SourceError for a table that cannot be what the configuration says.
    """
    begun = time.perf_counter()
    previous = store.latest(name)
    encoders = {m: feature.encoder.fingerprint() for m, feature in features.items()}
    there = {encoder: store.shards_of(encoder) for encoder in encoders.values()}
    may_copy = {
        m
        for m, encoder in encoders.items()
        if previous
        and m in previous.modalities
        and previous.modalities[m].encoder_fingerprint == encoder
    }
    patches = {m: _patches(previous, modality=m) for m in features}
    samples: list[SampleShard] = []
    shards: dict[str, list[tuple[str, ...]]] = {m: [] for m in features}
    missing: dict[str, dict[str, SampleShard]] = {m: {} for m in features}
    keys: dict[tuple[str, str], pa.Array] = {}
    splits: Counter[str] = Counter()
    columns = {m: PayloadColumn(column=f.column, kind=f.encoder.kind) for m, f in features.items()}
    for shard, rows in scan_samples(
        source, dataset=dataset, payload_columns=columns, target=target
    ):
        samples.append(shard)
        for item in rows["split"].value_counts().to_pylist():
            splits[item["values"] or ""] += item["counts"]
        if write_samples:
            store.write_samples(shard, rows=rows)
        for modality, encoder in encoders.items():
            if modality not in shard.keys:
                shards[modality].append(())
                continue
            made = shard_fingerprint(encoder=encoder, keys=shard.keys[modality])
            shards[modality].append((made, *patches[modality].get(made, ())))
            if made not in there[encoder] and made not in missing[modality]:
                missing[modality][made] = shard
                if modality in may_copy:
                    keys[modality, made] = rows[f"key.{modality}"]
    work: list[Work] = []
    parts: dict[str, ModalityPlan] = {}
    for modality, feature in features.items():
        donors = _donors(
            store,
            previous=previous if modality in may_copy else None,
            modality=modality,
            listed={shard for over in shards[modality] for shard in over},
            keys={made: column for (m, made), column in keys.items() if m == modality},
        )
        here = [
            Work(
                modality=modality,
                encoder=encoders[modality],
                shard=made,
                samples=shard.path,
                ranges=shard.ranges,
                rows=shard.rows,
                payloads=shard.payloads[modality],
                donors=donors[made].shards if made in donors else (),
            )
            for made, shard in missing[modality].items()
        ]
        work += here
        parts[modality] = _modality_plan(
            modality,
            feature=feature,
            encoder=encoders[modality],
            shards=tuple(shards[modality]),
            samples=samples,
            work=here,
            copied=sum(donor.rows for donor in donors.values()),
            known=there[encoders[modality]],
            previous=previous,
            store=store,
        )
    return Plan(
        name=name,
        dataset=dataset,
        source=source,
        target=target,
        samples=tuple(samples),
        modalities=parts,
        work=tuple(work),
        splits=dict(splits),
        previous=previous,
        seconds=time.perf_counter() - begun,
    )


@dataclass(frozen=True, kw_only=True)
class QuarantineCount:
    """How much of a modality is in the quarantine."""

    modality: str
    bad: int
    payloads: int
    reasons: Mapping[tuple[str, str], int]
    """Rows by stage and reason."""

    @property
    def fraction(self) -> float:
        return self.bad / self.payloads if self.payloads else 0.0


def count_quarantine(plan: Plan, *, store: Store) -> dict[str, QuarantineCount]:
    """Count the quarantined rows of all shards of a plan whose work is done.

    Costs one listing an encoder, and one small read a shard that has bad rows.
    """
    counts: dict[str, QuarantineCount] = {}
    for modality, part in plan.modalities.items():
        listed = store.quarantined_shards_of(part.encoder_fingerprint)
        reasons: Counter[tuple[str, str]] = Counter()
        for over in part.shards:
            bad = [shard for shard in over if shard in listed]
            if bad:
                path = quarantine_path(encoder=part.encoder_fingerprint, shard=bad[-1])
                table = store.read_table(path, columns=["stage", "reason"])
                reasons.update(
                    zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
                )
        counts[modality] = QuarantineCount(
            modality=modality, bad=reasons.total(), payloads=part.payloads, reasons=reasons
        )
    return counts


def make_snapshot(
    plan: Plan, *, store: Store, quarantine: Mapping[str, QuarantineCount]
) -> Snapshot:
    """The snapshot of a plan whose shards are all there."""
    modalities = {}
    for name, part in plan.modalities.items():
        spec = part.feature.encoder
        bad = quarantine[name].bad
        modalities[name] = ModalityShards(
            kind=spec.kind,
            encoder=spec.model_dump(mode="json"),
            encoder_fingerprint=part.encoder_fingerprint,
            dim=_width(store, part),
            shards=part.shards,
            present=part.payloads - bad,
            missing=part.missing,
            bad=bad,
        )
    return Snapshot(
        name=plan.name,
        target=plan.target,
        slices=plan.dataset.slices,
        samples=plan.samples,
        modalities=modalities,
        files=plan.source.files,
    )


@dataclass(frozen=True, kw_only=True)
class _Donors:
    shards: tuple[str, ...]
    rows: int


def _donors(
    store: Store,
    *,
    previous: Snapshot | None,
    modality: str,
    listed: set[str],
    keys: Mapping[str, pa.Array],
) -> dict[str, _Donors]:
    """Per missing shard: the last snapshot's shards, listed no more, that hold its payloads."""
    if previous is None or not keys:
        return {}
    part = previous.modalities[modality]
    unlisted = dict.fromkeys(s for over in part.shards for s in over if s not in listed)
    holder: dict[bytes, str] = {}
    for shard in unlisted:
        path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
        if store.storage.exists(path):
            for key in store.read_table(path, columns=["payload_key"])["payload_key"].to_pylist():
                holder[key] = shard
    found = {}
    for made, column in keys.items():
        held = [holder[key] for key in column.to_pylist() if key in holder]
        found[made] = _Donors(shards=tuple(dict.fromkeys(held)), rows=len(held))
    return found


def _patches(previous: Snapshot | None, *, modality: str) -> dict[str, tuple[str, ...]]:
    """Per shard of the last snapshot: the patches that it lists over it."""
    if previous is None or modality not in previous.modalities:
        return {}
    return {over[0]: over[1:] for over in previous.modalities[modality].shards if over[1:]}


def _modality_plan(
    modality: str,
    *,
    feature: FeatureSpec,
    encoder: str,
    shards: tuple[tuple[str, ...], ...],
    samples: list[SampleShard],
    work: list[Work],
    copied: int,
    known: set[str],
    previous: Snapshot | None,
    store: Store,
) -> ModalityPlan:
    payloads = sum(shard.payloads[modality] for shard in samples)
    pending = {item.shard for item in work}
    waiting = sum(
        shard.payloads[modality]
        for shard, over in zip(samples, shards, strict=True)
        if over and over[0] in pending
    )
    to_embed = sum(item.payloads for item in work) - copied
    rate = _rate(store, encoder=encoder, shards=[s for over in shards for s in over if s in known])
    return ModalityPlan(
        modality=modality,
        feature=feature,
        encoder_fingerprint=encoder,
        shards=shards,
        payloads=payloads,
        missing=sum(shard.rows for shard in samples) - payloads,
        reused=payloads - waiting,
        copied=copied,
        to_embed=to_embed,
        reason=_reason(previous, modality=modality, spec=feature.encoder, encoder=encoder)
        if work
        else "",
        bytes=None if rate is None else (to_embed + copied) * rate.bytes_per_row,
        seconds=None if rate is None else to_embed * rate.seconds_per_row,
    )


def _reason(previous: Snapshot | None, *, modality: str, spec: EncoderSpec, encoder: str) -> str:
    if previous is None or modality not in previous.modalities:
        return "new"
    before = previous.modalities[modality]
    if before.encoder_fingerprint == encoder:
        return "payloads changed"
    now = spec.model_dump(mode="json")
    changed = [
        f"{key} {before.encoder.get(key)} → {now.get(key)}"
        for key in {**before.encoder, **now}
        if before.encoder.get(key) != now.get(key)
    ]
    return "encoder changed" + (f": {', '.join(changed)}" if changed else ": its weights")


@dataclass(frozen=True, kw_only=True)
class _Rate:
    seconds_per_row: float
    bytes_per_row: int


def _rate(store: Store, *, encoder: str, shards: list[str]) -> _Rate | None:
    """What a row costs, by the footers of a few shards that were computed before."""
    rows, seconds, width = 0, 0.0, 0
    for shard in shards[:FOOTERS_FOR_ESTIMATE]:
        metadata = store.read_metadata(embedding_path(encoder=encoder, shard=shard))
        rows += int(metadata["sensorium.embedded"])
        seconds += sum(json.loads(metadata["sensorium.seconds"]).values())
        width = int(metadata["sensorium.bytes_per_row"])
    if not rows:
        return None
    return _Rate(seconds_per_row=seconds / rows, bytes_per_row=width)


def _width(store: Store, part: ModalityPlan) -> int:
    """The width of a modality's embeddings, by the first shard there is; 0 if there is none."""
    for over in part.shards:
        for shard in over:
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            return int(store.read_metadata(path)["sensorium.dim"])
    return 0
