"""From a run to its findings: what the store and the gate hold, as what the report says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from features.quarantine import read_quarantine
from features.repeats import repeats_in
from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord, read_predictions
from training.evaluation.metrics import metrics_of
from training.search.walk import Search
from workflows.drift import find_drift
from workflows.inputs import example_cells, input_of
from workflows.promotion.outcome import Promotion
from workflows.promotion.promote import choose_winner
from workflows.promotion.verdict import Comparison, Condition
from workflows.repeats import leaks_of, repeated_of
from workflows.reporting.answers import Answers
from workflows.reporting.collect_candidates import (
    best_single,
    find_candidate,
    find_ensembles,
    find_leads,
)
from workflows.reporting.collect_data import (
    find_modality,
    find_reasons,
    find_splits,
    find_untrained,
    list_quarantined,
    read_targets,
)
from workflows.reporting.collect_searches import find_searches
from workflows.reporting.collect_spaces import find_retrieval, find_spaces
from workflows.reporting.collect_studies import find_leanings, find_studies
from workflows.reporting.findings import (
    ConditionFindings,
    Estimate,
    GateFindings,
    MetricFindings,
    ReportData,
)
from workflows.reporting.seeds import find_seeds
from workflows.runs import without_passwords
from workflows.verdict_table import notes

if TYPE_CHECKING:
    from workflows.pipeline import Pipeline

LIBRARIES = ("sensorium", "torch", "ray", "mlflow", "pyarrow", "numpy")
"""What the report names the versions of; all of them decide what comes out of a run."""


def collect(
    *,
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    promotion: Promotion | None = None,
    searches: Sequence[Search] = (),
    created: datetime | None = None,
    git_commit: str = "",
    versions: Mapping[str, str] | None = None,
) -> ReportData:
    """All that the report says about a run.

    `promotion` is what stage 3 found and did; without it the report says that no candidate
    was judged, and marks the best on the validation split. `searches` are those of the pipeline,
    as they stand. `created` is now by default, and `versions` are those of this process.
    """
    confidence, metric = pipeline.spec.promotion.confidence, pipeline.metric
    predictions = {
        record.name: read_predictions(store, record.fingerprint)
        for record in records
        if record.status == "fitted"
    }
    groups = store.read_groups(snapshot)
    answers = {
        split: {
            name: Answers.from_table(
                table, split=split, task=pipeline.spec.task, metric=metric, groups=groups
            )
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
    samples = read_targets(store, snapshot=snapshot, targets=targets)
    classes = next((tuple(map(str, record.classes)) for record in records), ())
    quarantine = read_quarantine(store, snapshot)
    repeats = repeats_in(store, snapshot=snapshot)
    best = tested.get(winner) if winner is not None else None
    leads = find_leads(tested, winner=winner, confidence=confidence)
    order = tuple(snapshot.modalities)
    titles = {name: found.title for name, found in metrics_of(pipeline.spec.task).items()}
    candidates = tuple(
        find_candidate(
            record,
            validation=answers["validation"].get(record.name),
            test=tested.get(record.name),
            single=tested.get(single) if single is not None else None,
            lead=leads.get(record.name),
            order=order,
            titles=titles,
            confidence=confidence,
        )
        for record in records
    )
    return ReportData(
        pipeline=pipeline.name,
        created=created or datetime.now().astimezone(),
        target=", ".join(pipeline.spec.task.targets),
        samples=snapshot.rows,
        classes=classes,
        splits=tuple(find_splits(samples, targets=targets)),
        modalities=tuple(
            find_modality(
                name,
                snapshot.modalities[name],
                cells=example_cells(
                    input_of(name, features=pipeline.spec.features, snapshot=snapshot)
                ),
                stated=feature.encoder.model_dump(mode="json", exclude_unset=True),
            )
            for name, feature in pipeline.spec.features.items()
        ),
        candidates=candidates,
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
        studies=tuple(
            find_studies(
                records,
                tested=tested,
                metric=metric,
                task=pipeline.spec.task,
                order=order,
                confidence=confidence,
            )
        ),
        leanings=()
        if best is None
        else tuple(
            find_leanings(
                next(record for record in records if record.name == winner),
                store=store,
                snapshot=snapshot,
                samples=samples,
                order=order,
            )
        ),
        ensembles=tuple(find_ensembles(records, candidates=candidates, titles=titles)),
        searches=tuple(find_searches(searches, pipeline=pipeline)),
        seeds=find_seeds(records, metric=metric, winner=winner),
        retrieval=tuple(find_retrieval(records, order=order)),
        spaces=tuple(find_spaces(records, order=order)),
        untrained=find_untrained(samples, targets=targets),
        leaks=tuple(leaks_of(repeats, group=pipeline.spec.dataset.split.group)),
        repeated=tuple(repeated_of(repeats)),
        quarantined=tuple(list_quarantined(quarantine)),
        bad_reasons=tuple(find_reasons(quarantine)),
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
        waiting=promotion.waiting,
        taken_back=promotion.taken_back,
        notes=() if verdict is None else tuple(notes(verdict)),
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
        found,
        threshold=item.threshold,
        passed=item.passed,
        detail=re.sub(r"(?<![\w.])-(?=\d)", "−", item.detail),
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
