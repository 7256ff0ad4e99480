"""What is there, what is missing, and what it will cost.

Planning reads the table once and lists each encoder's shards once. It keeps one record a
shard; payload keys are held only for the shards that are missing while an earlier snapshot
has donors for them, that is for about as many rows as have changed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import pyarrow as pa

from features.encoders import EncoderSpec
from features.samples import SampleShard, fit_features, scan_samples
from features.snapshot import ModalityShards, Snapshot
from features.sources import RowRange, Source, SourceError
from features.spec import DatasetSpec, FeatureSpec
from features.store import Store, embedding_path, shard_fingerprint

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
    dataset: DatasetSpec
    source: Source
    target: str | None
    samples: tuple[SampleShard, ...]
    modalities: Mapping[str, ModalityPlan]
    work: tuple[Work, ...]
    splits: Mapping[str, int]
    """Samples per split; those in no split under the empty name."""
    labelled: Mapping[str, int]
    """Samples with a label per split."""
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
) -> Plan:
    """Compare the table with the store. Writes nothing.

    Raises SourceError for a table that cannot be what the configuration says.
    """
    begun = time.perf_counter()
    features = fit_features(source, dataset=dataset, features=features)
    donors = store.donors(name)
    previous = store.latest(name)
    encoders = {m: feature.encoder.fingerprint() for m, feature in features.items()}
    there = {encoder: store.shards_of(encoder) for encoder in encoders.values()}
    donors_of = {
        m: [part for donor in donors if (part := _same_encoder(donor, modality=m, encoder=encoder))]
        for m, encoder in encoders.items()
    }
    patches = {m: _patches(previous, modality=m) for m in features}
    samples: list[SampleShard] = []
    shards: dict[str, list[tuple[str, ...]]] = {m: [] for m in features}
    missing: dict[str, dict[str, SampleShard]] = {m: {} for m in features}
    keys: dict[tuple[str, str], pa.Array] = {}
    splits: Counter[str] = Counter()
    labelled: Counter[str] = Counter()
    columns = {m: feature.payload_columns for m, feature in features.items()}
    for shard, rows in scan_samples(
        source, dataset=dataset, payload_columns=columns, target=target
    ):
        samples.append(shard)
        splits.update(split or "" for split in rows["split"].to_pylist())
        if target is not None:
            has_label = rows[f"target.{target}"].is_valid()
            labelled.update(split or "" for split in rows["split"].filter(has_label).to_pylist())
        for modality, encoder in encoders.items():
            if modality not in shard.keys:
                shards[modality].append(())
                continue
            made = shard_fingerprint(encoder=encoder, keys=shard.keys[modality])
            shards[modality].append((made, *patches[modality].get(made, ())))
            if made not in there[encoder] and made not in missing[modality]:
                missing[modality][made] = shard
                if donors_of[modality]:
                    keys[modality, made] = rows[f"key.{modality}"]
    work: list[Work] = []
    parts: dict[str, ModalityPlan] = {}
    for modality, feature in features.items():
        held = _holders(
            store,
            donors=donors_of[modality],
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
                donors=held[made].shards if made in held else (),
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
            copied=sum(item.rows for item in held.values()),
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
        labelled=dict(labelled),
        previous=previous,
        seconds=time.perf_counter() - begun,
    )


def write_samples(plan: Plan, *, store: Store) -> None:
    """Write the sample shards that are not in the store; reads the table again if there are any.

    Raises SourceError if the table is no longer the one that was planned.
    """
    if not {f"{shard.fingerprint}.parquet" for shard in plan.samples} - store.storage.list(
        "samples"
    ):
        return
    columns = {m: part.feature.payload_columns for m, part in plan.modalities.items()}
    scanned = scan_samples(
        plan.source, dataset=plan.dataset, payload_columns=columns, target=plan.target
    )
    for planned, (shard, rows) in zip_longest(plan.samples, scanned, fillvalue=(None, None)):
        if shard != planned:
            raise SourceError(
                "the table changed while it was read; leave it and its files alone, and run again"
            )
        store.write_samples(shard, rows=rows)


def is_there(plan: Plan, *, store: Store) -> bool:
    """Whether all shards that a plan reuses are in the store still. One listing an encoder."""
    for part in plan.modalities.values():
        pending = {work.shard for work in plan.work if work.encoder == part.encoder_fingerprint}
        wanted = {shard for over in part.shards for shard in over} - pending
        if not wanted <= store.shards_of(part.encoder_fingerprint):
            return False
    return True


def draft_snapshot(plan: Plan) -> Snapshot:
    """The snapshot that a plan leads to, without what only its shards can tell.

    Its id and parts are right; widths and counts of bad rows are zero.
    """
    return snapshot_of(plan, dims={}, bad={})


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Shards that hold some of the payloads of a missing one, and how many they hold."""

    shards: tuple[str, ...]
    rows: int


def _same_encoder(donor: Snapshot, *, modality: str, encoder: str) -> ModalityShards | None:
    part = donor.modalities.get(modality)
    return part if part is not None and part.encoder_fingerprint == encoder else None


def _holders(
    store: Store,
    *,
    donors: Sequence[ModalityShards],
    listed: set[str],
    keys: Mapping[str, pa.Array],
) -> dict[str, _Held]:
    """Per missing shard: the donors' shards, listed no more, that hold its payloads."""
    if not keys:
        return {}
    holder: dict[bytes, str] = {}
    for part in donors:
        for shard in dict.fromkeys(s for over in part.shards for s in over if s not in listed):
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            if store.storage.exists(path):
                for key in store.read_table(path, columns=["payload_key"])[0].to_pylist():
                    holder.setdefault(key, shard)
    found = {}
    for made, column in keys.items():
        held = [holder[key] for key in column.to_pylist() if key in holder]
        found[made] = _Held(shards=tuple(dict.fromkeys(held)), rows=len(held))
    return found


def snapshot_of(plan: Plan, *, dims: Mapping[str, int], bad: Mapping[str, int]) -> Snapshot:
    """The snapshot of a plan, given each modality's width and number of bad rows."""
    return Snapshot(
        name=plan.name,
        target=plan.target,
        slices=plan.dataset.slices,
        samples=plan.samples,
        modalities={
            name: ModalityShards(
                kind=part.feature.encoder.kind,
                encoder=part.feature.encoder.model_dump(mode="json"),
                encoder_fingerprint=part.encoder_fingerprint,
                dim=dims.get(name, 0),
                shards=part.shards,
                present=part.payloads - bad.get(name, 0),
                missing=part.missing,
                bad=bad.get(name, 0),
            )
            for name, part in plan.modalities.items()
        },
        files=plan.source.files,
    )


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
        spent = json.loads(metadata["sensorium.seconds"])
        seconds += sum(spent[step] for step in ("wait", "encode", "write"))
        width = int(metadata["sensorium.bytes_per_row"])
    if not rows:
        return None
    return _Rate(seconds_per_row=seconds / rows, bytes_per_row=width)
