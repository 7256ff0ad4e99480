"""The end of a run, in the terminal: candidates, what fusion gains, the champion, where to look."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from features.snapshot import Snapshot
from training.candidate import CandidateRecord, read_predictions
from training.evaluation.metrics import Metric
from workflows.console import count, duration, table
from workflows.pipeline import Pipeline
from workflows.promotion.outcome import Promotion
from workflows.promotion.promote import choose_winner
from workflows.reporting.answers import Answers
from workflows.reporting.collect_candidates import best_single, find_leads
from workflows.reporting.findings import Estimate, Lead
from workflows.reporting.seeds import find_seeds, seeds_line
from workflows.runs import without_passwords


def print_summary(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    promotion: Promotion,
    console: Console,
) -> None:
    """The candidates, what fusion gains, the champion, and where to look further."""
    confidence, metric = pipeline.spec.promotion.confidence, pipeline.metric
    store = pipeline.open_store()
    groups = store.read_groups(snapshot)
    tested = {
        record.name: Answers.from_table(
            read_predictions(store, record.fingerprint),
            split="test",
            task=pipeline.spec.task,
            metric=metric,
            groups=groups,
        )
        for record in records
        if record.status == "fitted"
    }
    scores = {name: found.score(confidence=confidence) for name, found in tested.items()}
    leads = find_leads(tested, winner=promotion.winner, confidence=confidence)
    console.print(
        candidate_table(
            records,
            metric=metric,
            test=scores,
            leads=leads,
            winner=promotion.winner,
            confidence=confidence,
            console=console,
        )
    )
    seeds = seeds_line(
        find_seeds(records, metric=metric, winner=promotion.winner), winner=promotion.winner
    )
    if seeds:
        console.print(seeds, soft_wrap=True)
    constant = constant_line(tested, scores=scores, metric=metric)
    if constant:
        console.print(constant, soft_wrap=True)
    fusions = [r for r in records if r.name in tested and len(r.modalities) > 1]
    line = fusion_line(
        winner=promotion.winner,
        fusion=choose_winner(fusions, metric=metric).name if fusions else None,
        single=best_single(records, tested),
        leads=leads,
    )
    if line:
        console.print(line)
    verdict = promotion.verdict
    if promotion.champion_after is None:
        console.print(f"champion none yet of {promotion.model}")
    elif promotion.promoted and verdict is not None:
        console.print(
            f"champion [bold green]{promotion.model} version {promotion.champion_after}"
            f"[/bold green] ({promotion.winner}), test {metric.title} {verdict.score:.3f} "
            f"[{verdict.low:.3f}, {verdict.high:.3f}]"
        )
    else:
        console.print(f"champion {promotion.model} version {promotion.champion_after} stays")
    if promotion.waiting:
        console.print(
            f"waiting  [bold yellow]{promotion.model} version {promotion.version}[/bold yellow] "
            f"passed the gate and is `challenger`: sensorium approve {pipeline.path.name}",
            soft_wrap=True,
        )
    console.print(f"report   {escape(str(pipeline.report_path))}", soft_wrap=True)
    console.print(f"MLflow   {escape(_mlflow(pipeline.tracking_uri))}", soft_wrap=True)


def constant_line(
    tested: Mapping[str, Answers], *, scores: Mapping[str, Estimate], metric: Metric
) -> str:
    """Which candidates are not surely better than always the most frequent class; empty if all are,
    or accuracy is not what they are judged by.
    """
    if metric.name != "accuracy" or not tested:
        return ""
    targets = next(iter(tested.values())).targets
    share = float(np.bincount(targets).max() / len(targets))
    poor = [name for name, estimate in scores.items() if estimate.low <= share]
    if not poor:
        return ""
    return (
        f"[yellow]chance[/yellow]   {escape(', '.join(poor))}: not surely better than the most "
        f"frequent class alone, which is right in {share:.3f}"
    )


def fusion_line(
    *, winner: str, fusion: str | None, single: str | None, leads: Mapping[str, Lead]
) -> str:
    """What joining modalities is worth, by the leads that the table shows; empty if one is lacking.

    The winner against the best single modality on the test rows, or, if it is a single modality
    itself, the best fusion against it.
    """
    if fusion is None or single is None:
        return ""
    against = single if winner == fusion else winner
    lead = leads.get(single if winner == fusion else fusion)
    if lead is None:
        return ""
    gain, low, high = lead.gain.value, lead.gain.low, lead.gain.high
    if winner != fusion:
        gain, low, high = -gain, -high, -low
    verb = "is not clearly better or worse than"
    if lead.sure:
        verb = "beats" if gain > 0 else "loses to"
    what = "the best single modality" if against == single else "the winner on validation"
    return (
        f"fusion   {fusion} {verb} {against}, {what}: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] on the test split"
    )


def candidate_table(
    records: Sequence[CandidateRecord],
    *,
    metric: Metric,
    test: Mapping[str, Estimate],
    leads: Mapping[str, Lead],
    winner: str | None,
    confidence: float,
    console: Console,
) -> Table:
    """The candidates side by side: what they are, their metric with its interval, and how surely
    the winner is better.

    Where the terminal is too narrow, what it took goes first; the interval and the lead stay whole.
    """
    numbers = ["validation", f"test, {confidence:.0%} interval", "winner ahead by"]
    numbers += ["parameters", "epochs", "time"]
    rows: list[tuple[list[str], str | None]] = []
    for record in records:
        if record.status == "failed" or record.metrics is None:
            rows.append(([record.name, "", "failed"], "red"))
            continue
        estimate = test[record.name]
        cells = [
            record.name,
            f"{record.metrics['validation'].get(metric.name, math.nan):.3f}",
            f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]",
            "winner" if record.name == winner else _ahead(leads.get(record.name)),
            count(record.parameters),
            f"{len(record.epochs)}",
            duration(record.seconds),
        ]
        rows.append((cells, "bold green" if record.name == winner else None))
    for columns in (numbers, numbers[:-1], numbers[:-2], numbers[:-3]):
        made = table("candidate", *columns, numbers=columns, folds=("candidate",))
        for cells, style in rows:
            made.add_row(*cells[: 1 + len(columns)], style=style)
        wide = console.options.update(max_width=10 * console.width + 1000)
        if Measurement.get(console, wide, made).maximum <= console.width:
            break
    return made


def _ahead(lead: Lead | None) -> str:
    if lead is None:
        return ""
    return f"{lead.gain.value:+.3f} {'surely' if lead.sure else 'unsure'}"


def _mlflow(uri: str) -> str:
    """Where to look at the runs: the server, or the command that opens MLflow's page."""
    if uri.startswith("http"):
        return without_passwords(uri)
    command = Path(sys.executable).with_name("mlflow")
    if command.is_relative_to(Path.cwd()):
        command = command.relative_to(Path.cwd())
    return f"{command} ui --backend-store-uri {without_passwords(uri)}"
