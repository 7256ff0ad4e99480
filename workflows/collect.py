"""From a run to its findings: what the store and the gate hold, as what the report says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.quarantine import read_quarantine
from features.repeats import repeats_in
from features.snapshot import ModalityShards, Snapshot
from features.store import Store
from training.candidate import CandidateRecord, read_predictions
from training.evaluation.significance import holm
from workflows.answers import Answers, estimate
from workflows.drift import find_drift
from workflows.findings import (
    BadPayload,
    BadReason,
    CandidateFindings,
    ConditionFindings,
    Epoch,
    Estimate,
    Failure,
    GateFindings,
    Lead,
    MetricFindings,
    ModalityFindings,
    Recall,
    ReportData,
    RetrievalFindings,
    SplitFindings,
)
from workflows.gate import Comparison, Condition
from workflows.inputs import example_cells, input_of
from workflows.plots import Family
from workflows.promote import Promotion, choose_winner
from workflows.quarantine import group_reasons
from workflows.repeats import leaks_of, repeated_of
from workflows.runs import without_passwords

if TYPE_CHECKING:
    from workflows.pipeline import Pipeline

LISTED_PAYLOADS = 50
LISTED_REASONS = 20
LIBRARIES = ("sensorium", "torch", "ray", "mlflow", "pyarrow", "numpy")
"""What the report names the versions of; all of them decide what comes out of a run."""


def collect(
    *,
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    promotion: Promotion | None = None,
    created: datetime | None = None,
    git_commit: str = "",
    versions: Mapping[str, str] | None = None,
) -> ReportData:
    """All that the report says about a run.

    `promotion` is what stage 3 found and did; without it the report says that no candidate
    was judged, and marks the best on the validation split. `created` is now by default, and
    `versions` are those of this process.
    """
    confidence, metric = pipeline.spec.promotion.confidence, pipeline.metric
    predictions = {
        record.name: read_predictions(store, record.fingerprint)
        for record in records
        if record.status == "fitted"
    }
    answers = {
        split: {
            name: Answers.from_table(table, split=split, task=pipeline.spec.task, metric=metric)
            for name, table in predictions.items()
        }
        for split in ("validation", "test")
    }
    tested = {name: found for name, found in answers["test"].items() if len(found.rows)}
    single = best_single(records, tested)
    if promotion is not None:
        winner: str | None = promotion.winner
    else:
        winner = choose_winner(records, metric=metric).name if predictions else None
    targets = [f"target.{name}" for name in pipeline.spec.task.targets]
    samples = _samples(store, snapshot=snapshot, targets=targets)
    classes = next((tuple(map(str, record.classes)) for record in records), ())
    quarantine = read_quarantine(store, snapshot)
    repeats = repeats_in(store, snapshot=snapshot)
    best = tested.get(winner) if winner is not None else None
    leads = find_leads(tested, winner=winner, confidence=confidence)
    return ReportData(
        pipeline=pipeline.name,
        created=created or datetime.now().astimezone(),
        target=", ".join(pipeline.spec.task.targets),
        samples=snapshot.rows,
        classes=classes,
        splits=tuple(_splits(samples, targets=targets)),
        modalities=tuple(
            _modality(
                name,
                snapshot.modalities[name],
                cells=example_cells(
                    input_of(name, features=pipeline.spec.features, snapshot=snapshot)
                ),
                stated=feature.encoder.model_dump(mode="json", exclude_unset=True),
            )
            for name, feature in pipeline.spec.features.items()
        ),
        candidates=tuple(
            _candidate(
                record,
                validation=answers["validation"].get(record.name),
                test=tested.get(record.name),
                single=tested.get(single) if single is not None else None,
                lead=leads.get(record.name),
                order=tuple(snapshot.modalities),
                confidence=confidence,
            )
            for record in records
        ),
        winner=winner,
        best_single=single,
        task=pipeline.spec.task.type,
        metric=MetricFindings(
            title=metric.title, higher_is_better=metric.higher_is_better, share=metric.share
        ),
        confidence=confidence,
        confusion=best.confusion(classes=len(classes))
        if best is not None and pipeline.spec.task.type == "classification"
        else None,
        slices=()
        if best is None
        else tuple(
            best.slices(samples=samples, store=store, snapshot=snapshot, confidence=confidence)
        ),
        retrieval=tuple(_retrieval(records, order=tuple(snapshot.modalities))),
        untrained=_untrained(samples, targets=targets),
        leaks=tuple(leaks_of(repeats, group=pipeline.spec.dataset.split.group)),
        repeated=tuple(repeated_of(repeats)),
        quarantined=tuple(
            BadPayload(**{name: without_passwords(str(value)) for name, value in row.items()})
            for row in quarantine.slice(0, LISTED_PAYLOADS).to_pylist()
        ),
        bad_reasons=tuple(_reasons(quarantine)),
        gate=None if promotion is None else _gate(promotion),
        drift=find_drift(store, snapshot, previous=store.previous(pipeline.name)),
        snapshot=snapshot.id,
        digest=pipeline.digest,
        git_commit=git_commit,
        versions=_versions() if versions is None else versions,
        tracking_uri=without_passwords(pipeline.tracking_uri),
        load_uri=f"models:/{pipeline.model}@champion"
        if promotion is not None and promotion.champion_after is not None
        else "",
    )


def _family(record: CandidateRecord) -> Family:
    if record.spec.get("type") in ("alignment", "cca"):
        return "alignment"
    return "single" if len(record.modalities) == 1 else "fusion"


def best_single(records: Sequence[CandidateRecord], tested: Mapping[str, Answers]) -> str | None:
    """The single modality that is best on the test rows: the hardest one to compare with."""
    names = [r.name for r in records if r.name in tested and _family(r) == "single"]
    return max(
        names, key=lambda name: tested[name].metric.gain(tested[name].value, 0), default=None
    )


def find_leads(
    tested: Mapping[str, Answers], *, winner: str | None, confidence: float
) -> dict[str, Lead]:
    """How far the winner is ahead of each other candidate, and whether that is real.

    All p-values together are corrected for their number.
    """
    if winner is None or winner not in tested:
        return {}
    others = [name for name in tested if name != winner]
    found = [tested[winner].difference(over=tested[name], confidence=confidence) for name in others]
    corrected = holm([item.p for item in found])
    return {
        name: Lead(
            gain=estimate(item.gain, rows=len(tested[name].rows)),
            p=p,
            test=item.test,
            sure=p < 1 - confidence,
        )
        for name, item, p in zip(others, found, corrected, strict=True)
    }


def _candidate(
    record: CandidateRecord,
    *,
    validation: Answers | None,
    test: Answers | None,
    single: Answers | None,
    lead: Lead | None,
    order: Sequence[str],
    confidence: float,
) -> CandidateFindings:
    masked = () if test is None else tuple(test.masked(confidence=confidence))
    return CandidateFindings(
        name=record.name,
        type=str(record.spec.get("type", "")),
        family=_family(record),
        modalities=tuple(sorted(record.modalities, key=order.index)),
        parameters=record.parameters,
        seconds=record.seconds,
        best_epoch=record.best_epoch,
        epochs=tuple(
            Epoch(
                epoch=int(epoch["epoch"]),
                train_loss=_number(epoch.get("train_loss")),
                validation_loss=_number(epoch.get("validation_loss")),
                validation_accuracy=_number(epoch.get("validation_accuracy")),
            )
            for epoch in record.epochs
        ),
        validation=None
        if validation is None or not len(validation.rows)
        else validation.score(confidence=confidence),
        test=None if test is None else test.score(confidence=confidence),
        gain=None
        if test is None or single is None
        else test.gain(over=single, confidence=confidence),
        lead=lead,
        masked=tuple(sorted(masked, key=lambda item: order.index(item.modality))),
        failure=None if record.status == "fitted" else _failure(record.failure or {}),
    )


def _failure(failure: Mapping[str, Any]) -> Failure:
    places = {
        "epoch": failure.get("epoch"),
        "step": failure.get("step"),
        "learning rate": failure.get("learning_rate"),
    }
    where = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in places.items()
        if value is not None
    ]
    return Failure(
        reason=str(failure.get("reason", "no reason was recorded")),
        where=", ".join(where),
        sample_ids=tuple(map(str, failure.get("sample_ids") or ())),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _samples(store: Store, *, snapshot: Snapshot, targets: Sequence[str]) -> pa.Table:
    slices = [f"slice.{name}" for name in snapshot.slices]
    return store.read_samples(snapshot, columns=["split", *targets, *slices])


def _splits(samples: pa.Table, *, targets: Sequence[str]) -> Iterator[SplitFindings]:
    split = samples["split"]
    labelled = pa.chunked_array([np.ones(len(split), dtype=bool)])
    for name in targets:
        labelled = pc.and_(labelled, pc.is_valid(samples[name]))
    for name in ("train", "validation", "test"):
        chosen = pc.fill_null(pc.equal(split, name), False)
        yield SplitFindings(
            name=name,
            rows=pc.sum(chosen).as_py() or 0,
            labelled=pc.sum(pc.and_(chosen, labelled)).as_py() or 0,
        )
    if split.null_count:
        unused = pc.sum(pc.and_(pc.is_null(split), labelled)).as_py() or 0
        yield SplitFindings(name="not used", rows=split.null_count, labelled=unused)


def _untrained(samples: pa.Table, *, targets: Sequence[str]) -> tuple[str, ...]:
    """Classes (or labels of lists) that stand in some row, and in none of the training split."""
    trained = samples.filter(pc.fill_null(pc.equal(samples["split"], "train"), False))
    lacking = set[Any]()
    for target in targets:
        if not pa.types.is_floating(samples[target].type):
            lacking |= _distinct(samples[target]) - _distinct(trained[target])
    return tuple(map(str, sorted(lacking)))


def _distinct(labels: pa.ChunkedArray) -> set[Any]:
    """The labels of a column, or of its lists."""
    flat = pc.list_flatten(labels) if pa.types.is_list(labels.type) else labels
    return set(pc.unique(flat.drop_null()).to_pylist())


def _retrieval(
    records: Sequence[CandidateRecord], *, order: Sequence[str]
) -> Iterator[RetrievalFindings]:
    for record in records:
        found: dict[str, list[Recall]] = {}
        for item in record.retrieval or ():
            pair = Recall(
                query=item["query"],
                target=item["target"],
                rows=item["rows"],
                gallery=item["gallery"],
                same_sample=_by_k(item.get("recall")),
                same_class=_by_k(item.get("class_recall")) if item.get("class_rows", 1) else {},
                chance_sample=_by_k(item.get("chance")),
                chance_class=_by_k(item.get("class_chance")),
            )
            found.setdefault(item["split"], []).append(pair)
        for split, pairs in found.items():
            pairs.sort(key=lambda pair: (order.index(pair.query), order.index(pair.target)))
            yield RetrievalFindings(candidate=record.name, split=split, pairs=tuple(pairs))


def _by_k(values: Mapping[str, float] | None) -> dict[int, float]:
    return {int(k): float(v) for k, v in (values or {}).items() if v is not None}


def _modality(
    name: str, part: ModalityShards, *, cells: Mapping[str, Any], stated: Mapping[str, Any]
) -> ModalityFindings:
    """`stated` are the encoder's options as the pipeline gives them, without the defaults."""
    options = [f"{key} {value}" for key, value in stated.items() if key not in ("type", "dim")]
    return ModalityFindings(
        name=name,
        cells=cells,
        kind=part.kind,
        encoder=str(part.encoder.get("type", "")),
        options=", ".join(options),
        fingerprint=part.encoder_fingerprint,
        dim=part.dim,
        present=part.present,
        missing=part.missing,
        bad=part.bad,
    )


def _reasons(quarantine: pa.Table) -> Iterator[BadReason]:
    """The reasons without the names in them, most frequent first; rare ones beyond a few as one."""
    groups = sorted(group_reasons(quarantine), key=lambda group: -group.rows)
    for group in groups[:LISTED_REASONS]:
        yield BadReason(
            modality=group.modality, stage=group.stage, reason=group.reason, count=group.rows
        )
    rest = sum(group.rows for group in groups[LISTED_REASONS:])
    if rest:
        yield BadReason(modality="", stage="", reason="other reasons", count=rest)


def _gate(promotion: Promotion) -> GateFindings:
    verdict = promotion.verdict
    return GateFindings(
        passed=None if verdict is None else verdict.passed,
        conditions=() if verdict is None else tuple(map(_condition, verdict.conditions)),
        breakdown=() if verdict is None else tuple(map(_condition, verdict.breakdown)),
        model=promotion.model,
        version=promotion.version,
        champion_before=promotion.champion_before,
        champion_after=promotion.champion_after,
        already=promotion.earlier and not promotion.changed,
        dry_run=promotion.dry_run and verdict is not None and not promotion.earlier,
    )


def _condition(item: Comparison) -> ConditionFindings:
    difference = None
    if item.difference is not None and item.low is not None and item.high is not None:
        difference = Estimate(value=item.difference, low=item.low, high=item.high, n=item.rows)
    found = ConditionFindings(
        name=item.name,
        rows=item.rows,
        challenger=item.challenger,
        champion=item.champion,
        difference=difference,
    )
    if not isinstance(item, Condition):
        return found
    return dataclasses.replace(
        found, threshold=item.threshold, passed=item.passed, detail=item.detail
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
