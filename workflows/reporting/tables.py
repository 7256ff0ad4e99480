"""The report's tables: rows and cells of what the template lays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workflows.reporting import figures, remarks, wording
from workflows.reporting.findings import (
    CandidateFindings,
    ConditionFindings,
    Recall,
    ReportData,
    RetrievalFindings,
)
from workflows.reporting.search_findings import SearchFindings, TrialFindings

MOST_TRIALS = 12
"""Trials of a search that are shown; the others are folded away."""
MOST_PAIRS = 6


def confused_pairs(data: ReportData) -> list[dict[str, Any]]:
    """The wrong answers that are most frequent, as counts and as shares of their class."""
    if data.confusion is None:
        return []
    wrong = data.confusion.copy()
    np.fill_diagonal(wrong, 0)
    totals = data.confusion.sum(axis=1)
    found = [
        {
            "true": data.classes[true],
            "answer": data.classes[answer],
            "count": int(wrong[true, answer]),
            "total": int(totals[true]),
            "share": float(wrong[true, answer] / totals[true]),
        }
        for true, answer in zip(*np.nonzero(wrong), strict=True)
    ]
    return sorted(found, key=lambda pair: (-pair["count"], -pair["share"]))[:MOST_PAIRS]


def masked_table(candidates: Sequence[CandidateFindings], *, share: bool) -> dict[str, Any] | None:
    """What each candidate is worth without each modality; None if nothing is known of it."""
    shown = [item for item in candidates if item.masked]
    if not shown:
        return None
    modalities = list(dict.fromkeys(m.modality for item in shown for m in item.masked))
    rows = []
    for item in shown:
        # Half an accuracy lost is as warm as it gets, or half of what there was.
        unit = 1.0 if share or item.test is None else abs(item.test.value) or 1.0
        by_name = {masked.modality: masked for masked in item.masked}
        cells = [
            {
                "score": found.score,
                "difference": found.difference,
                "tint": min(0.6, max(0.0, -found.difference.value / unit) * 1.2),
            }
            if (found := by_name.get(modality))
            else None
            for modality in modalities
        ]
        test = item.test.value if item.test else None
        rows.append({"name": item.name, "family": item.family, "test": test, "cells": cells})
    return {"modalities": modalities, "rows": rows}


def metrics_table(candidates: Sequence[CandidateFindings]) -> dict[str, Any] | None:
    """All that was measured of each candidate; None if it is no more than the one metric."""
    shown = [item for item in candidates if item.metrics]
    titles = list(
        dict.fromkeys(
            title for item in shown for values in item.metrics.values() for title in values
        )
    )
    if len(titles) < 2:
        return None

    def cell(item: CandidateFindings, title: str) -> dict[str, float | None]:
        return {split: item.metrics.get(split, {}).get(title) for split in ("test", "validation")}

    rows = [
        {"name": item.name, "family": item.family, "cells": [cell(item, t) for t in titles]}
        for item in shown
    ]
    return {"titles": titles, "rows": rows}


def search_tables(data: ReportData) -> list[dict[str, Any]]:
    """Of each search its trials, the best first: those that are shown, and those folded away."""
    tables = []
    for search in data.searches:
        rows = []
        for trial in search.trials:
            reached = [
                {"value": value, "last": rung == len(trial.reached) - 1}
                for rung, value in enumerate(trial.reached)
            ]
            rows.append(
                {
                    "name": trial.name,
                    "number": trial.number,
                    "values": [
                        wording.value(trial.values[dimension.field])
                        if dimension.field in trial.values
                        else "–"
                        for dimension in search.dimensions
                    ],
                    "reached": [*reached, *[None] * (len(search.epochs) - len(reached))],
                    "seeds": _over_seeds(trial),
                    "end": _end(trial, search=search),
                    "best": search.over and trial is search.best,
                    "winner": trial.name == data.winner,
                }
            )
        fold = len(rows) > MOST_TRIALS
        tables.append(
            {
                "title": search.name,
                "note": remarks.search_note(search),
                "fields": [dimension.field for dimension in search.dimensions],
                "monitor": search.monitor,
                "epochs": search.epochs,
                "by_seed": any(row["seeds"] for row in rows),
                "shown": rows[: MOST_TRIALS if fold else len(rows)],
                "folded": rows[MOST_TRIALS:] if fold else [],
                "plots": figures.search_plots(search),
            }
        )
    return tables


def _over_seeds(trial: TrialFindings) -> dict[str, float] | None:
    """What a finalist came to over its seeds; None of other trials."""
    known = [value for value in trial.by_seed if value is not None]
    if len(trial.by_seed) < 2 or trial.settled is None:
        return None
    return {"mean": trial.settled, "low": min(known), "high": max(known)}


def _end(trial: TrialFindings, *, search: SearchFindings) -> str:
    """Where a trial was stopped, if it was."""
    if trial.like is not None:
        return f"as trial {trial.like}"
    if not trial.reached:
        return "not fitted yet"
    last = len(trial.reached)
    if trial.reached[-1] is None:
        return "failed"
    if last < len(search.epochs):
        return f"stopped at {wording.count(search.epochs[last - 1], 'epoch')}"
    return "best" if trial is search.best else "to the end"


def ensemble_tables(data: ReportData) -> list[dict[str, Any]]:
    """Of each ensemble its members, and at the end itself."""
    return [
        {
            "title": item.candidate,
            "note": (
                f"The fits that were tried, in this order, by their {item.monitor} on validation."
                if item.monitor
                else "The candidates whose answers are averaged."
            ),
            "monitor": item.monitor,
            "members": item.members,
            "itself": data.candidate(item.candidate),
        }
        for item in data.ensembles
    ]


def space_table(data: ReportData) -> dict[str, Any] | None:
    """How well each common space tells classes apart; None if that was not measured."""
    if not data.spaces:
        return None
    named = list(dict.fromkeys(name for space in data.spaces for name in space.zero_shot))
    rows = []
    for space in data.spaces:
        shares = [space.probe, space.neighbours, *(space.zero_shot.get(name, {}) for name in named)]
        cells = [
            {"test": share.get("test"), "validation": share.get("validation")} for share in shares
        ]
        rows.append({"name": space.candidate, "cells": cells})
    columns = ["Linear probe", "Nearest neighbours", *(f"Zero-shot, {name}" for name in named)]
    return {"columns": columns, "rows": rows}


def retrieval_blocks(data: ReportData) -> list[dict[str, Any]]:
    """Of each candidate its retrieval tables, the best candidate first."""
    return [
        {
            "title": f"{block.candidate}, {block.split} split",
            "first_right": block.first_right,
            "tables": [
                table
                for same_class in (False, True)
                if (table := _matrix(block, same_class=same_class)) is not None
            ],
        }
        for block in data.retrieval
    ]


def _matrix(block: RetrievalFindings, *, same_class: bool) -> dict[str, Any] | None:
    """Query × answer, where the same sample is right, or any sample of the same class."""
    queries = list(dict.fromkeys(pair.query for pair in block.pairs))
    targets = [name for name in queries if any(pair.target == name for pair in block.pairs)]
    targets = list(dict.fromkeys([*targets, *(pair.target for pair in block.pairs)]))
    by_pair = {(pair.query, pair.target): pair for pair in block.pairs}
    rows = [
        {
            "query": query,
            "cells": [
                None if pair is None else _recall_cell(pair, same_class=same_class)
                for pair in (by_pair.get((query, target)) for target in targets)
            ],
        }
        for query in queries
    ]
    if not any(cell for row in rows for cell in row["cells"]):
        return None
    sizes = sorted({pair.gallery for pair in block.pairs})
    gallery = (
        wording.number(sizes[0])
        if len(sizes) == 1
        else f"{wording.number(sizes[0])} to {wording.number(sizes[-1])}"
    )
    ranked = "the mean average precision (mAP)"
    if not same_class:
        ranked = f"the median rank of the right answer, and {ranked}"
    return {
        "title": "The same class" if same_class else "The very same sample",
        "note": f"How often the first answer of {gallery} is right ({block.split} split); "
        f"behind it, the first 5 and 10. Below, {ranked}.",
        "targets": targets,
        "rows": rows,
    }


def _recall_cell(pair: Recall, *, same_class: bool) -> dict[str, Any] | None:
    recall = pair.same_class if same_class else pair.same_sample
    if not recall:
        return None
    chance = pair.chance_class if same_class else pair.chance_sample
    precision = pair.precision_class if same_class else pair.precision_sample
    first, *more = sorted(recall)
    ranked = []
    if not same_class and pair.median_rank is not None:
        ranked.append(f"median rank {pair.median_rank:g}")
    if precision is not None:
        ranked.append(f"mAP {wording.score(precision)}")
    return {
        "value": recall[first],
        "chance": chance.get(first),
        "bars": [recall[k] for k in reversed(more)] + [recall[first]],
        "more": " · ".join(f"@{k} {wording.score(recall[k])}" for k in more),
        "ranked": ranked,
    }


def gate_tables(data: ReportData) -> list[dict[str, Any]]:
    """What the gate compared: what decides, and what else it looked at."""
    if data.gate is None:
        return []
    tables = []
    blocks: tuple[tuple[str, Sequence[ConditionFindings], bool], ...] = (
        ("Conditions", data.gate.conditions, True),
        ("Slices and missing modalities", data.gate.breakdown, False),
    )
    for title, comparisons, decides in blocks:
        compared = any(item.champion is not None for item in comparisons)
        if not comparisons or not (compared or decides):
            continue
        rows = [
            figures.row(item.name, item.difference, signed=True)
            for item in comparisons
            if item.difference is not None
        ]
        if len(rows) > figures.MOST_SLICES:
            rows = sorted(rows, key=lambda row: row.value)[: figures.MOST_SLICES]
        plot = None
        if rows and not decides:
            plot = figures.both(
                rows,
                label="Challenger − champion on each slice",
                reference=0.0,
                reference_label="no difference",
                bounds=(-1.0, 1.0) if data.metric.share else (-math.inf, math.inf),
                signed=True,
            )
        note = remarks.gate_note(comparisons) if decides else remarks.BREAKDOWN_NOTE
        tables.append(
            {
                "title": title,
                "note": note,
                "comparisons": comparisons,
                "decides": decides,
                "compared": compared,
                "plot": plot,
            }
        )
    return tables
