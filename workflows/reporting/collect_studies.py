"""How far the candidates can be trusted, and what the winner leans on: out of their records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from features.shard import vectors
from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord, read_shapley
from training.evaluation.bootstrap import metric_interval
from training.evaluation.metrics import Metric, metrics_of
from training.evaluation.resampling import calibration_bins
from training.evaluation.robustness import kept_of_subsets, kept_over_levels
from training.task import TaskSpec
from workflows.reporting.answers import NO_VALUE, Answers
from workflows.reporting.study_findings import (
    Bin,
    CurveFindings,
    Leaning,
    Reliability,
    StudyFindings,
    SubsetFindings,
)

LEAST_ROWS = 5
"""A slice of fewer rows has no leaning of its own."""


def find_studies(
    records: Sequence[CandidateRecord],
    *,
    tested: Mapping[str, Answers],
    metric: Metric,
    task: TaskSpec,
    order: Sequence[str],
    confidence: float,
) -> Iterator[StudyFindings]:
    """Of every candidate what was found when it was fitted, and the reliability of its answers.

    `order` is that of the modalities.
    """
    for record in records:
        if record.name in tested and record.study:
            yield _study(
                record,
                answers=tested[record.name],
                metric=metric,
                task=task,
                order=order,
                confidence=confidence,
            )


def _study(
    record: CandidateRecord,
    *,
    answers: Answers,
    metric: Metric,
    task: TaskSpec,
    order: Sequence[str],
    confidence: float,
) -> StudyFindings:
    study = record.study
    subsets = [
        _subset(item, name=metric.name, order=order)
        for item in study["subsets"]
        if metric.name in item["metrics"]
    ]
    curves: list[CurveFindings] = []
    whole = study["clean"].get(metric.name)
    for item in study["perturbed"]:
        values = item["values"].get(metric.name)
        if values is not None and whole is not None:
            kept = kept_over_levels(metric, levels=item["levels"], values=values, whole=whole)
            curves.append(
                CurveFindings(
                    modality=item["modality"],
                    impairment=item["kind"],
                    levels=(0.0, *item["levels"]),
                    values=(whole, *values),
                    kept=kept,
                )
            )
    return StudyFindings(
        candidate=record.name,
        rows=int(study.get("rows", 0)),
        of=int(study["of"]),
        perturbed_rows=int(study["perturbed_rows"]),
        subsets=tuple(subsets),
        curves=tuple(sorted(curves, key=lambda curve: order.index(curve.modality))),
        kept_of_subsets=kept_of_subsets(
            metric, values=[item.value for item in subsets[:-1]], whole=subsets[-1].value
        )
        if len(subsets) > 1
        else None,
        reliability=_reliability(record, answers=answers, task=task, confidence=confidence),
    )


def _subset(item: Mapping[str, Any], *, name: str, order: Sequence[str]) -> SubsetFindings:
    low, high = item["intervals"].get(name, (None, None))
    return SubsetFindings(
        modalities=tuple(sorted(item["modalities"], key=order.index)),
        value=item["metrics"][name],
        low=low,
        high=high,
    )


def _reliability(
    record: CandidateRecord, *, answers: Answers, task: TaskSpec, confidence: float
) -> Reliability | None:
    metric = metrics_of(task).get("calibration_error")
    if metric is None or not metric.applies(len(record.classes)):
        return None
    error = metric_interval(
        metric, targets=answers.targets, answers=answers.answers, confidence=confidence
    )
    return Reliability(
        error=error.mean,
        low=error.low,
        high=error.high,
        temperature=record.temperature,
        bins=tuple(reliability_bins(answers.targets, answers.answers)),
    )


def reliability_bins(targets: np.ndarray, answers: np.ndarray) -> Iterator[Bin]:
    """The curve that calibration is read from: of one class a row the answers by their probability,
    of labels all labels of all rows. Bins that are empty are left out.
    """
    if targets.ndim == 1:
        answered = answers.argmax(axis=1)
        p = answers[np.arange(len(answered)), answered].astype(float)
        right = answered == targets
    else:
        p, right = answers.astype(float).reshape(-1), targets.astype(bool).reshape(-1)
    bins = calibration_bins(p)
    for number in np.unique(bins):
        chosen = bins == number
        yield Bin(
            rows=int(chosen.sum()),
            confidence=float(p[chosen].mean()),
            right=float(right[chosen].mean()),
        )


def find_leanings(
    record: CandidateRecord,
    *,
    store: Store,
    snapshot: Snapshot,
    samples: pa.Table,
    order: Sequence[str],
) -> Iterator[Leaning]:
    """What a candidate's answers lean on: over all test rows that were tried, then by slice."""
    table = read_shapley(store, record.fingerprint)
    if table is None or not len(table):
        return
    modalities = sorted(record.modalities, key=order.index)
    values = {m: _values(table[f"shapley.{m}"]) for m in modalities}
    if not all(np.isfinite(x).all() for x in values.values()):
        return
    rows = table["row"].to_numpy()
    yield _leaning(values, np.ones(len(rows), bool), group=None, value="all")
    for column in snapshot.slices:
        cells = samples[f"slice.{column}"].take(pa.array(rows)).to_pylist()
        texts = np.array([NO_VALUE if cell is None else str(cell) for cell in cells])
        for text in np.unique(texts):
            chosen = texts == text
            if chosen.sum() >= LEAST_ROWS:
                yield _leaning(values, chosen, group=column, value=str(text))


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """`[R, O]`, of one class a row `[R, 1]`."""
    if pa.types.is_fixed_size_list(column.type):
        return vectors(column)
    return column.to_numpy()[:, None]


def _leaning(
    values: Mapping[str, np.ndarray], chosen: np.ndarray, *, group: str | None, value: str
) -> Leaning:
    return Leaning(
        group=group,
        value=value,
        rows=int(chosen.sum()),
        strength={m: float(np.abs(x[chosen]).mean()) for m, x in values.items()},
        direction={m: float(x[chosen].mean()) for m, x in values.items()},
    )
