"""The report of a run: one HTML file that needs nothing else, for screen, phone and paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workflows import changes, figures, remarks, wording
from workflows.collect import collect
from workflows.findings import (
    CandidateFindings,
    ConditionFindings,
    ReportData,
    RetrievalFindings,
)

__all__ = ["ReportData", "collect", "render"]

TEMPLATES = Path(__file__).parent / "templates"
MOST_PAIRS = 6
MOST_CELLS = 24
"""Columns of the example row."""

FAMILY_NAMES = {
    "single": "single modality",
    "fusion": "fusion",
    "alignment": "alignment",
    "plain": "other",
}


def render(data: ReportData) -> str:
    """The report as one HTML document, without scripts and without any reference to elsewhere."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    for name in ("score", "interval", "number", "percent", "duration", "moment", "describe", "few"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["css"] = lambda share: f"{min(1.0, max(0.0, share)) * 100:.1f}%"
    candidates = _ranked(data.candidates)
    present = {item.family for item in candidates}
    css = (TEMPLATES / "report.css").read_text()
    return environment.get_template("report.html.j2").render(
        data=data,
        css=Markup(css),
        headline=remarks.headline(data),
        tiles=remarks.tiles(data),
        says={
            "candidates": remarks.on_candidates(data),
            "failures": remarks.on_failures(data),
            "curves": remarks.on_curves(data),
            "retrieval": remarks.on_retrieval(data),
            "data": remarks.on_data(data),
            "changes": changes.on_changes(data.drift),
            "gate": remarks.on_gate(data),
        },
        candidates=candidates,
        families=[family for family in FAMILY_NAMES if family in present],
        family_names=FAMILY_NAMES,
        plots={
            "candidates": figures.candidates_plot(data, candidates=candidates),
            "confusion": figures.confusion_plot(data),
            "slices": figures.slice_plots(data),
        },
        wide_confusion=len(data.classes) > 14,
        confusion_note=_confusion_note(data),
        pairs=_pairs(data),
        masked=_masked(candidates),
        curves=figures.curves(candidates),
        retrieval=[table for block in data.retrieval for table in _retrieval_tables(data, block)],
        total_bad=sum(reason.count for reason in data.bad_reasons),
        leak_note=remarks.on_leaks(data),
        repeated_note=remarks.on_repeated(data),
        quarantine_note=remarks.on_quarantine(sum(r.count for r in data.bad_reasons)),
        changes=changes.change_rows(data.drift),
        gate_tables=_gate_tables(data),
        facts=_facts(data),
        commands=_commands(data),
    )


def _ranked(candidates: Sequence[CandidateFindings]) -> list[CandidateFindings]:
    """By test accuracy, the best first; those without any at the end."""
    return sorted(candidates, key=lambda c: (c.test is None, -(c.test.value if c.test else 0)))


def _confusion_note(data: ReportData) -> str:
    note = "Test rows by true class and answer: blue is right, orange is wrong."
    if len(data.classes) > figures.MOST_CLASSES:
        note += f" The {figures.MOST_CLASSES} of {len(data.classes)} classes with the most errors."
    return note


def _pairs(data: ReportData) -> list[dict[str, Any]]:
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


def _masked(candidates: Sequence[CandidateFindings]) -> dict[str, Any] | None:
    shown = [item for item in candidates if item.masked]
    if not shown:
        return None
    modalities = list(dict.fromkeys(m.modality for item in shown for m in item.masked))
    rows = []
    for item in shown:
        by_name = {masked.modality: masked for masked in item.masked}
        cells = [
            {
                "accuracy": found.accuracy,
                "difference": found.difference,
                # half an accuracy lost is as warm as it gets
                "tint": min(0.6, max(0.0, -found.difference.value) * 1.2),
            }
            if (found := by_name.get(modality))
            else None
            for modality in modalities
        ]
        test = item.test.value if item.test else None
        rows.append({"name": item.name, "family": item.family, "test": test, "cells": cells})
    return {"modalities": modalities, "rows": rows}


def _retrieval_tables(data: ReportData, block: RetrievalFindings) -> list[dict[str, Any]]:
    """Two matrices, query × answer: the same sample, and any sample of the same class."""
    queries = list(dict.fromkeys(pair.query for pair in block.pairs))
    targets = [*(name for name in queries if any(p.target == name for p in block.pairs))]
    targets = list(dict.fromkeys([*targets, *(pair.target for pair in block.pairs)]))
    by_pair = {(pair.query, pair.target): pair for pair in block.pairs}
    sizes = sorted({pair.gallery for pair in block.pairs})
    gallery = (
        wording.number(sizes[0])
        if len(sizes) == 1
        else f"{wording.number(sizes[0])} to {wording.number(sizes[-1])}"
    )
    tables = []
    for same_class in (False, True):

        def cell(query: str, target: str, same_class: bool = same_class) -> dict[str, Any] | None:
            pair = by_pair.get((query, target))
            recall = None if pair is None else pair.same_class if same_class else pair.same_sample
            if pair is None or not recall:
                return None
            chance = pair.chance_class if same_class else pair.chance_sample
            first, *more = sorted(recall)
            return {
                "value": recall[first],
                "chance": chance.get(first),
                "bars": [recall[k] for k in reversed(more)] + [recall[first]],
                "more": " · ".join(f"@{k} {wording.score(recall[k])}" for k in more),
            }

        rows = [{"query": q, "cells": [cell(q, t) for t in targets]} for q in queries]
        if not any(cell for row in rows for cell in row["cells"]):
            continue
        tables.append(
            {
                "title": remarks.retrieval_title(
                    block, same_class=same_class, several=len(data.retrieval) > 1
                ),
                "note": f"How often the first answer of {gallery} is right ({block.split} split); "
                "behind it, the first 5 and 10.",
                "targets": targets,
                "rows": rows,
            }
        )
    return tables


def _gate_tables(data: ReportData) -> list[dict[str, Any]]:
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
                bounds=(-1.0, 1.0),
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


def _facts(data: ReportData) -> list[tuple[str, str]]:
    facts = [
        ("Snapshot", data.snapshot),
        ("Pipeline digest", data.digest),
        ("Git commit", data.git_commit),
        ("Tracking", data.tracking_uri),
    ]
    return [(name, value) for name, value in facts if value]


def _commands(data: ReportData) -> list[dict[str, str]]:
    commands = []
    if data.tracking_uri:
        text = f"mlflow ui --backend-store-uri {_quoted(data.tracking_uri)}"
        if not data.tracking_uri.startswith(("http://", "https://", "databricks")):
            commands.append({"title": "Open the runs in MLflow", "text": text})
    if data.load_uri:
        lines = ["import mlflow, pandas", ""]
        if data.tracking_uri:
            lines.append(f"mlflow.set_tracking_uri({data.tracking_uri!r})")
        lines.append(f"model = mlflow.pyfunc.load_model({data.load_uri!r})")
        lines += _example_row(data)
        lines.append("model.predict(pandas.DataFrame([row]))")
        commands.append({"title": "Load the champion", "text": "\n".join(lines)})
    return commands


def _example_row(data: ReportData) -> list[str]:
    """Python that makes a row of the table, each column with a value of the right form."""
    cells = {name: cell for item in reversed(data.modalities) for name, cell in item.cells.items()}
    names = [name for item in data.modalities for name in item.cells]
    names = list(dict.fromkeys(names))
    lines = [f"    {name!r}: {_literal(cells[name])}," for name in names[:MOST_CELLS]]
    if len(names) > MOST_CELLS:
        lines.append(
            f"    # and {len(names) - MOST_CELLS} more columns; what is left out is missing"
        )
    return ["row = {", *lines, "}"]


def _literal(value: Any) -> str:
    """Python that makes a value; a list of many equal numbers as a product."""
    if not isinstance(value, list):
        return repr(value)
    if len(value) > 4 and all(item == value[0] for item in value):
        return f"[{_literal(value[0])}] * {len(value)}"
    return f"[{', '.join(map(_literal, value))}]"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
