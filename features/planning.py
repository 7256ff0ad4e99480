"""A plan made: the table compared with the store.

Planning reads those files of the table that have changed, and lists each encoder's shards once.
It keeps one record a shard. If anything has changed, ids and payload keys of the whole table are
brought together on a local disk, about ten bytes a payload, to find what is repeated, and the keys
of missing shards with those of their donors; memory is bounded in both.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from features.integrity import Integrity, Marks
from features.modality_plan import ModalityPlanner
from features.plan import Plan
from features.sample_rows import SampleColumns, TargetKind
from features.sample_shards import SampleReader
from features.samples import SampleShard
from features.scan import ScannedShard
from features.scan_record import Derived, ScanRecord
from features.scan_tasks import Run, scan_table
from features.sources import Source, SourceError
from features.spec import DatasetSpec, FeatureSpec
from features.store import Store


def make_plan(
    *,
    name: str,
    source: Source,
    dataset: DatasetSpec,
    features: Mapping[str, FeatureSpec],
    target: str | tuple[str, ...] | None,
    target_kind: TargetKind = "class",
    store: Store,
    like: Sequence[str] = (),
    run: Run | None = None,
) -> Plan:
    """Compare the table with the store. Writes nothing.

    `like` are names of other datasets in the store that may hold some of the same payloads.
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
    donors = [donor for known in (name, *like) for donor in store.donors(known)]
    previous = store.latest(name)
    encoders = {m: feature.encoder.fingerprint() for m, feature in features.items()}
    there = {encoder: store.shards_of(encoder) for encoder in encoders.values()}
    scanned: list[ScannedShard] = []
    with ExitStack() as stack:
        integrity = Integrity(stack)
        planners = {
            m: ModalityPlanner(
                m,
                feature=feature,
                encoder=encoders[m],
                known=there[encoders[m]],
                donors=donors,
                stack=stack,
            )
            for m, feature in features.items()
        }
        unread: list[SampleShard] = []

        def look(shard: SampleShard, marks: Marks) -> None:
            """Take a shard's ids and payload keys into account."""
            integrity.add(marks)
            for planner in planners.values():
                planner.ask(shard, marks=marks)

        scanner, found_shards = scan_table(
            source, columns=columns, before=before.scan if before else None, run=run
        )
        for found, marks in found_shards:
            scanned.append(found)
            for planner in planners.values():
                planner.add(found.shard)
            if marks is None:
                unread.append(found.shard)
            else:
                look(found.shard, marks)
        samples = tuple(found.shard for found in scanned)
        if not samples:
            raise SourceError(f"{source.files[0]}: the table has no rows")
        reader = SampleReader(store, source=source, columns=columns)
        known = before if before is not None and before.holds(samples) else None
        if known is not None:
            asking = {shard for planner in planners.values() for shard in planner.asking}
            unread = [shard for shard in unread if shard.fingerprint in asking]
        for shard, marks in zip(unread, reader.marks(unread), strict=True):
            look(shard, marks)
        if known is not None:
            repeats, untrained = known.repeats, known.untrained
        else:
            integrity.refuse_repeated_ids(column=dataset.id, shards=samples, rows=reader.read)
            repeats = integrity.repeats(shards=samples, rows=reader.read)
            untrained = integrity.untrained()
        results = {
            m: planner.result(samples, previous=previous, store=store)
            for m, planner in planners.items()
        }
    record = ScanRecord(
        scan=scanner.result(), repeats=repeats, untrained=untrained, derived=derived.found
    )
    return Plan(
        name=name,
        source=source,
        columns=columns,
        samples=samples,
        modalities={m: part for m, (part, _) in results.items()},
        work=tuple(one for _, work in results.values() for one in work),
        splits=_total(found.splits for found in scanned),
        labelled=_total(found.labelled for found in scanned),
        repeats=repeats,
        untrained=untrained,
        record=None if record == before else record,
        previous=previous,
        seconds=time.perf_counter() - begun,
    )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
