"""The report of a run: one HTML file that needs nothing else, for screen, phone and paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflows.reporting import changes, data_remarks, figures, remarks, tables, trust, wording
from workflows.reporting.collect import collect
from workflows.reporting.findings import CandidateFindings, ReportData
from workflows.reporting.headline import headline, tiles
from workflows.reporting.seeds import seeds_table

__all__ = ["ReportData", "collect", "render"]

TEMPLATES = Path(__file__).parent / "templates"


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
    for name in (
        "score",
        "fine",
        "interval",
        "number",
        "percent",
        "duration",
        "moment",
        "describe",
        "hyperparameters",
        "few",
        "probability",
    ):
        environment.filters[name] = getattr(wording, name)
    environment.filters["css"] = lambda share: f"{min(1.0, max(0.0, share)) * 100:.1f}%"
    candidates = _ranked(data)
    present = {item.family for item in candidates}
    css = (TEMPLATES / "report.css").read_text()
    return environment.get_template("report.html.j2").render(
        data=data,
        css=Markup(css),
        headline=headline(data),
        tiles=tiles(data),
        says={
            "candidates": remarks.on_candidates(data),
            "ensembles": remarks.on_ensembles(data),
            "searches": remarks.on_searches(data),
            "failures": remarks.on_failures(data),
            "trust": trust.on_trust(data),
            "leaning": trust.on_leaning(data),
            "curves": remarks.on_curves(data),
            "retrieval": remarks.on_retrieval(data),
            "data": data_remarks.on_data(data),
            "changes": changes.on_changes(data.drift),
            "gate": remarks.on_gate(data),
        },
        candidates=candidates,
        leads=any(item.lead is not None for item in candidates),
        families=[family for family in FAMILY_NAMES if family in present],
        family_names=_family_names(candidates),
        plots={
            "candidates": figures.candidates_plot(data, candidates=candidates),
            "confusion": figures.confusion_plot(data),
            "slices": figures.slice_plots(data),
            "reliability": trust.reliability_plot(data),
            "falls": trust.fall_plots(data),
            "subsets": trust.subsets_plot(data),
        },
        trust=trust.trust_table(data, candidates=candidates),
        leaning=trust.leaning_table(data),
        subsets=trust.subsets_table(data, candidates=candidates),
        falls_note=trust.falls_note(data),
        wide_confusion=len(data.classes) > 14,
        confusion_note=_confusion_note(data),
        pairs=tables.confused_pairs(data),
        masked=tables.masked_table(candidates, share=data.metric.share),
        metrics=tables.metrics_table(candidates),
        ensembles=tables.ensemble_tables(data),
        searches=tables.search_tables(data),
        spaces=tables.space_table(data),
        seeds=seeds_table(data),
        curves=figures.curves(candidates),
        retrieval=tables.retrieval_blocks(data),
        total_bad=sum(reason.count for reason in data.bad_reasons),
        leak_note=data_remarks.on_leaks(data),
        repeated_note=data_remarks.on_repeated(data),
        quarantine_note=data_remarks.on_quarantine(sum(r.count for r in data.bad_reasons)),
        changes=changes.change_rows(data.drift),
        gate_tables=tables.gate_tables(data),
        facts=_facts(data),
        commands=_commands(data),
    )


def _family_names(candidates: Sequence[CandidateFindings]) -> dict[str, str]:
    """What the marks stand for; translations bear that of alignments."""
    spaces = {item.type == "translation" for item in candidates if item.family == "alignment"}
    names = [
        name for found, name in ((False, "alignment"), (True, "translation")) if found in spaces
    ]
    return {**FAMILY_NAMES, "alignment": " or ".join(names)}


def _ranked(data: ReportData) -> list[CandidateFindings]:
    """By what they reached on the test rows, the best first; those without any at the end."""
    sign = -1 if data.metric.higher_is_better else 1
    return sorted(
        data.candidates, key=lambda c: (c.test is None, sign * (c.test.value if c.test else 0))
    )


def _confusion_note(data: ReportData) -> str:
    note = "Test rows by true class and answer: blue is right, orange is wrong."
    if len(data.classes) > figures.MOST_CLASSES:
        note += f" The {figures.MOST_CLASSES} of {len(data.classes)} classes with the most errors."
    return note


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
