"""The report's figures: which findings are drawn, and how they are laid out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from workflows.reporting import plots, wording
from workflows.reporting.findings import (
    CandidateFindings,
    Estimate,
    ReportData,
    SliceFindings,
)
from workflows.reporting.scatter import Tried, limits_of, scatter
from workflows.reporting.search_findings import SearchFindings, TrialFindings

WIDE, PANEL, NARROW = 800, 370, 350
"""Widths of a plot: for a screen, for half of it, for a phone, in pixels."""
MOST_CLASSES = 24
"""A larger confusion matrix shows the classes with the most errors."""
MOST_SLICES = 16
FEW_ROWS = 10
"""A slice of fewer rows is not called weak, whatever it reaches."""


def both(rows: Sequence[plots.IntervalRow], **options: Any) -> dict[str, Any]:
    """An interval plot for a screen and for a phone; the page shows one of them."""
    label = options.pop("label")
    return {
        name: Markup(plots.intervals(rows, label=label, width=width, **options))
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    }


def row(label: str, estimate: Estimate, *, signed: bool = False, **more: Any) -> plots.IntervalRow:
    """A line of an interval plot that shows an estimate, with it written at the end."""
    return plots.IntervalRow(
        label=label,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        text=wording.full(estimate, signed),
        **more,
    )


def candidates_plot(
    data: ReportData, *, candidates: Sequence[CandidateFindings]
) -> dict[str, Any] | None:
    """Test results with their intervals, in the order given; None if there are none."""
    rows = [
        row(
            item.name,
            item.test,
            hollow=item.validation.value if item.validation else None,
            family=item.family,
            strong=item.name == data.winner,
        )
        for item in candidates
        if item.test is not None
    ]
    if not rows:
        return None
    single = data.candidate(data.best_single)
    return both(
        rows,
        label=f"Test {data.metric.title} of each candidate with its interval",
        bounds=data.metric.bounds,
        reference=single.test.value if single and single.test else None,
        reference_label="best single modality",
    )


def _worst_classes(counts: np.ndarray) -> np.ndarray:
    """The classes to show: all, or those that take part in most errors, in their order."""
    if len(counts) <= MOST_CLASSES:
        return np.arange(len(counts))
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    return np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])


def confusion_plot(data: ReportData) -> Markup | None:
    """The winner's confusion matrix; None if there is none."""
    if data.confusion is None or not data.confusion.sum():
        return None
    shown = _worst_classes(data.confusion)
    return Markup(
        plots.confusion(
            data.confusion[np.ix_(shown, shown)],
            totals=data.confusion[shown].sum(axis=1),
            labels=[data.classes[index] for index in shown],
            label=f"Confusion matrix of {data.winner} on the test rows",
        )
    )


def slice_plots(data: ReportData) -> list[dict[str, Any]]:
    """One plot for each slice column and one for what is missing, with title and note."""
    best = data.candidate(data.winner)
    if best is None or best.test is None:
        return []
    groups: dict[str | None, list[SliceFindings]] = {}
    for item in data.slices:
        groups.setdefault(item.group, []).append(item)
    found = []
    for group, items in groups.items():
        kept = items
        if len(items) > MOST_SLICES:
            sign = 1 if data.metric.higher_is_better else -1
            by_weakness = sorted(items, key=lambda s: (s.score.n < FEW_ROWS, sign * s.score.value))
            kept = by_weakness[:MOST_SLICES]
        title = "By what is missing" if group is None else f"By {group}"
        note = "In brackets: how many test rows."
        if len(kept) < len(items):
            note = f"The {len(kept)} weakest of {len(items)}. {note}"
        rows = [row(f"{item.value} ({item.score.n})", item.score) for item in kept]
        svg = plots.intervals(
            rows,
            label=f"{best.name}: {data.metric.title} {title[:1].lower()}{title[1:]}",
            bounds=data.metric.bounds,
            width=PANEL,
            reference=best.test.value,
            reference_label="all rows",
        )
        found.append({"title": title, "note": note, "svg": Markup(svg)})
    return found


def _curve(item: CandidateFindings) -> plots.Curve:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(epoch, name) for epoch in item.epochs], dtype=float)

    return plots.Curve(
        epochs=column("epoch"),
        train_loss=column("train_loss"),
        validation_loss=column("validation_loss"),
        validation_accuracy=column("validation_accuracy"),
        best_epoch=item.best_epoch,
    )


def curves(candidates: Sequence[CandidateFindings]) -> list[dict[str, Any]]:
    """One small plot a candidate; losses share a scale within what shares a loss."""
    drawn = {item.name: _curve(item) for item in candidates if item.epochs}
    if not drawn:
        return []
    limits = {}
    for contrastive in (False, True):
        losses = [
            values
            for item in candidates
            if item.name in drawn and (item.family == "alignment") == contrastive
            for values in (drawn[item.name].train_loss, drawn[item.name].validation_loss)
        ]
        limits[contrastive] = plots.loss_limits(losses)
    accuracy = plots.accuracy_limits([curve.validation_accuracy for curve in drawn.values()])
    last = int(max(curve.epochs.max() for curve in drawn.values()))
    found = []
    for item in candidates:
        if item.name not in drawn:
            continue
        svg = plots.curves(
            drawn[item.name],
            label=f"Learning curves of {item.name}",
            epochs=last,
            loss_limits=limits[item.family == "alignment"],
            accuracy_limits=accuracy,
        )
        kept = f"epoch {item.best_epoch}" if item.best_epoch is not None else ""
        note = "failed" if item.failure else kept
        found.append({"name": item.name, "note": note, "svg": Markup(svg)})
    return found


def search_plots(search: SearchFindings) -> list[dict[str, Any]]:
    """One small plot a searched field; all of a search share their scale."""
    trials = [trial for trial in search.trials if trial.like is None and trial.reached]
    if not any(value is not None for trial in trials for value in trial.reached):
        return []
    limits = limits_of(
        [value for trial in trials for value in trial.reached],
        lower_is_better=search.lower_is_better,
    )
    found = []
    for dimension in search.dimensions:
        tried = [
            _tried(trial, search=search, field=dimension.field)
            for trial in sorted(trials, key=lambda trial: trial.number)
            if dimension.field in trial.values
        ]
        svg = scatter(
            tried,
            dimension=dimension,
            limits=limits,
            label=f"{search.name}: {search.monitor} by {dimension.field}",
        )
        note = "log scale" if dimension.log else ""
        found.append({"name": dimension.field, "note": note, "svg": Markup(svg)})
    return found


def _tried(trial: TrialFindings, *, search: SearchFindings, field: str) -> Tried:
    reached = [math.nan if value is None else value for value in trial.reached]
    to_the_end = len(reached) == len(search.epochs)
    return Tried(
        value=trial.values[field],
        first=reached[0],
        last=reached[-1],
        state="best" if trial is search.best else "end" if to_the_end else "stopped",
    )
