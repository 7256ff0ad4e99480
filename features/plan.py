"""What is there, what is missing, and what it will cost.

Planning reads those files of the table that have changed, and lists each encoder's shards once.
It keeps one record a shard. If anything has changed, ids and payload keys of the whole table are
brought together on a local disk, about ten bytes a payload, to find what is repeated, and the keys
of missing shards with those of their donors; memory is bounded in both.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from features.donors import DonorSearch
from features.encoders import EncoderSpec
from features.integrity import Integrity, Marks, Repeats
from features.sample_rows import SampleColumns, TargetKind
from features.samples import SampleShard
from features.scan import ScannedShard
from features.scan_record import Derived, ScanRecord
from features.scan_units import (
    LEAST_UNITS,
    SHARDS_A_TASK,
    Run,
    SampleReader,
    WriteTask,
    scan_table,
    write_shards,
)
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
    record: ScanRecord | None
    """What the next scan can start from; None if that is remembered already."""
    previous: Snapshot | None
    seconds: float
    """How long the planning took."""

    @property
    def dataset(self) -> DatasetSpec:
        return self.columns.dataset

    @property
    def target(self) -> str | tuple[str, ...] | None:
        return self.columns.target

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.samples)


def make_plan(
    *,
    name: str,
    source: Source,
    dataset: DatasetSpec,
    features: Mapping[str, FeatureSpec],
    target: str | tuple[str, ...] | None,
    target_kind: TargetKind = "class",
    store: Store,
    run: Run | None = None,
) -> Plan:
    """Compare the table with the store. Writes nothing.

    `run` scans files that have changed beside one another, where there are many. Raises
    SourceError for a table that cannot be what the configuration says.
    """
    begun = time.perf_counter()
    before = store.read_scan(name)
    derived = Derived(source, before=before.derived if before else {})
    strata = derived.strata(dataset)
    features = derived.features(features, dataset=dataset, strata=strata)
    columns = SampleColumns(
        dataset=dataset,
        payloads={m: feature.payload_columns for m, feature in features.items()},
        target=target,
        target_kind=target_kind,
        strata=strata,
    )
    donors = store.donors(name)
    previous = store.latest(name)
    encoders = {m: feature.encoder.fingerprint() for m, feature in features.items()}
    there = {encoder: store.shards_of(encoder) for encoder in encoders.values()}
    patches = {m: _patches(donors, modality=m, encoder=encoders[m]) for m in features}
    scanned: list[ScannedShard] = []
    shards: dict[str, list[tuple[str, ...]]] = {m: [] for m in features}
    missing: dict[str, dict[str, SampleShard]] = {m: {} for m in features}
    names: dict[str, dict[str, str]] = {m: {} for m in features}
    with ExitStack() as stack:
        integrity = Integrity(stack)
        searches = {
            m: DonorSearch(
                m, donors=_same_encoder(donors, modality=m, encoder=encoder), stack=stack
            )
            for m, encoder in encoders.items()
        }
        unread: list[ScannedShard] = []

        def ask(found: ScannedShard, marks: Marks) -> None:
            """Look for donors of what is missing of a shard."""
            for modality, search in searches.items():
                made = names[modality].get(found.shard.fingerprint)
                if made is not None and search.has_donors:
                    search.add(made, hashes=marks[f"key.{modality}"]["hash"])

        scanner, found_shards = scan_table(
            source, columns=columns, before=before.scan if before else None, run=run
        )
        for found, marks in found_shards:
            scanned.append(found)
            for modality, encoder in encoders.items():
                keys = found.shard.keys.get(modality)
                if keys is None:
                    shards[modality].append(())
                    continue
                made = shard_fingerprint(encoder=encoder, keys=keys)
                shards[modality].append((made, *patches[modality].get(made, ())))
                if made not in there[encoder] and made not in missing[modality]:
                    missing[modality][made] = found.shard
                    names[modality][found.shard.fingerprint] = made
            if marks is None:
                unread.append(found)
                continue
            integrity.add(marks)
            ask(found, marks)
        samples = tuple(found.shard for found in scanned)
        if not samples:
            raise SourceError(f"{source.files[0]}: the table has no rows")
        reader = SampleReader(store, source=source, columns=columns)
        repeats = before.repeats if before is not None and before.holds(samples) else None
        if repeats is not None:
            lacking = {
                shard for m, search in searches.items() if search.has_donors for shard in names[m]
            }
            unread = [found for found in unread if found.shard.fingerprint in lacking]
        for found, marks in zip(unread, reader.marks([u.shard for u in unread]), strict=True):
            integrity.add(marks)
            ask(found, marks)
        if repeats is None:
            integrity.refuse_repeated_ids(column=dataset.id, shards=samples, rows=reader.read)
            repeats = integrity.repeats(shards=samples, rows=reader.read)
        work: list[Work] = []
        parts: dict[str, ModalityPlan] = {}
        for modality, feature in features.items():
            held = searches[modality].find(
                store, listed={shard for over in shards[modality] for shard in over}
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
    record = ScanRecord(scan=scanner.result(), repeats=repeats, derived=derived.found)
    return Plan(
        name=name,
        source=source,
        columns=columns,
        samples=samples,
        modalities=parts,
        work=tuple(work),
        splits=_total(found.splits for found in scanned),
        labelled=_total(found.labelled for found in scanned),
        repeats=repeats,
        record=None if record == before else record,
        previous=previous,
        seconds=time.perf_counter() - begun,
    )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def write_samples(plan: Plan, *, store: Store, run: Run | None = None) -> None:
    """Write the sample shards that are not in the store, and remember the scan.

    Reads the rows of those shards again; `run` does it in pieces beside one another. Raises
    SourceError if the table is no longer the one that was planned.
    """
    listed = store.storage.list("samples")
    absent = [shard for shard in plan.samples if f"{shard.fingerprint}.parquet" not in listed]
    if absent:
        if run is None or len(absent) < LEAST_UNITS * SHARDS_A_TASK:
            run, step = map, len(absent)
        else:
            step = SHARDS_A_TASK
        tasks = [
            WriteTask(store=store, source=plan.source, columns=plan.columns, shards=some)
            for some in _in_tasks(absent, step=step, seekable=plan.source.format == "parquet")
        ]
        for _ in run(write_shards, tasks):
            pass
    if plan.record is not None:
        store.write_scan(plan.name, plan.record)


def _in_tasks(
    shards: Sequence[SampleShard], *, step: int, seekable: bool
) -> Iterator[tuple[SampleShard, ...]]:
    """Shards in pieces of work: of `step`, or where a file ends if it is read from its start."""
    some: list[SampleShard] = []
    for shard in shards:
        same_file = bool(some) and shard.ranges[0].file == some[-1].ranges[0].file
        if len(some) >= step and (seekable or not same_file):
            yield tuple(some)
            some = []
        some.append(shard)
    if some:
        yield tuple(some)


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


def _same_encoder(
    donors: Sequence[Snapshot], *, modality: str, encoder: str
) -> list[ModalityShards]:
    parts = (donor.modalities.get(modality) for donor in donors)
    return [part for part in parts if part is not None and part.encoder_fingerprint == encoder]


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


def _patches(
    donors: Sequence[Snapshot], *, modality: str, encoder: str
) -> dict[str, tuple[str, ...]]:
    """Per shard of the last snapshots: the patches that are listed over it, by the newest."""
    found: dict[str, tuple[str, ...]] = {}
    for part in _same_encoder(donors, modality=modality, encoder=encoder):
        for over in part.shards:
            if len(over) > 1 + len(found.get(over[0] if over else "", ())):
                found[over[0]] = over[1:]
    return found


def _modality_plan(
    modality: str,
    *,
    feature: FeatureSpec,
    encoder: str,
    shards: tuple[tuple[str, ...], ...],
    samples: Sequence[SampleShard],
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
        reason=_reason(
            previous, modality=modality, spec=feature.encoder, encoder=encoder, new=to_embed
        )
        if work
        else "",
        bytes=None if rate is None else (to_embed + copied) * rate.bytes_per_row,
        seconds=None if rate is None else to_embed * rate.seconds_per_row,
    )


def _reason(
    previous: Snapshot | None, *, modality: str, spec: EncoderSpec, encoder: str, new: int
) -> str:
    if previous is None or modality not in previous.modalities:
        return "new"
    before = previous.modalities[modality]
    if before.encoder_fingerprint == encoder:
        return "payloads changed" if new else "rows moved or removed"
    now = spec.model_dump(mode="json")
    changed = [
        "statistics of the training split"
        if key == "statistics"
        else f"{key} {before.encoder.get(key)} → {now.get(key)}"
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
