"""What the report and the terminal say of candidates that differ in nothing but their seed.

How far the fits of one setting lie apart is what chance alone does. A lead that is smaller than
that is no lead of the setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from training.candidate import CandidateRecord
from training.evaluation.metrics import Metric
from training.settings import settings_of
from workflows.reporting.search_findings import SeedFindings
from workflows.reporting.wording import count, number, say, score

if TYPE_CHECKING:
    from workflows.reporting.findings import ReportData


def find_seeds(
    records: Sequence[CandidateRecord], *, metric: Metric, winner: str | None
) -> tuple[SeedFindings, ...]:
    """The settings that were fitted with several seeds, the best on validation first."""

    def reached(group: Sequence[CandidateRecord], split: str) -> tuple[float, ...]:
        values = ((record.metrics or {}).get(split, {}).get(metric.name) for record in group)
        return tuple(float(value) for value in values if value is not None and math.isfinite(value))

    settings = [
        SeedFindings(
            names=tuple(record.name for record in group),
            validation=reached(group, "validation"),
            test=reached(group, "test"),
            wins=any(record.name == winner for record in group),
        )
        for group in settings_of(records)
    ]
    ranked = sorted(
        (item for item in settings if item.validation), key=lambda item: -metric.gain(item.mean, 0)
    )
    found = []
    for item in ranked:
        if len(item.names) < 2:
            continue
        overtaken = None
        if item.wins and len(item.validation) > 1:
            worst = min(item.validation, key=lambda value: metric.gain(value, 0))
            others = [other for other in ranked if not other.wins]
            overtaken = next(
                (other.names[0] for other in others if metric.gain(other.mean, worst) > 0), None
            )
        found.append(dataclasses.replace(item, overtaken=overtaken))
    return tuple(found)


def on_seeds(data: ReportData) -> list[Markup]:
    """Whether the winner's place hangs on its seed."""
    mine = next((item for item in data.seeds if item.wins), None)
    if mine is None:
        return []
    low, high = min(mine.validation), max(mine.validation)
    lines = [
        say(
            "Settings are compared by their mean over their seeds. The winner's {} reach {} to {} "
            "on validation.",
            count(len(mine.names), "seed"),
            score(low),
            score(high),
        )
    ]
    if mine.overtaken is not None:
        lines.append(
            say(
                "Unstable: that is further apart than the winner's setting is ahead of {}; with "
                "another seed it might have lost.",
                mine.overtaken,
            )
        )
    return lines


def seeds_table(data: ReportData) -> list[dict[str, Any]]:
    """A row a setting: what its seeds came to, as mean and ends."""

    def cell(values: Sequence[float]) -> dict[str, Any] | None:
        if not values:
            return None
        mean = sum(values) / len(values)
        return {"mean": mean, "low": min(values), "high": max(values)}

    return [
        {
            "name": item.names[0],
            "wins": item.wins,
            "unstable": item.overtaken is not None,
            "fits": number(len(item.names)),
            "failed": len(item.names) - len(item.validation),
            "validation": cell(item.validation),
            "test": cell(item.test),
        }
        for item in data.seeds
    ]


def seeds_line(found: Sequence[SeedFindings], *, winner: str) -> str:
    """The same on one line of the terminal; empty if the winner was fitted with one seed."""
    mine = next((item for item in found if item.wins), None)
    if mine is None:
        return ""
    line = (
        f"seeds    {winner}'s setting reaches {min(mine.validation):.3f} to "
        f"{max(mine.validation):.3f} on validation over {len(mine.names)} seeds"
    )
    failed = len(mine.names) - len(mine.validation)
    if failed:
        line += f", of which {failed} failed"
    if mine.overtaken is None:
        return line
    return f"{line}; unstable: {mine.overtaken} lies within that, so another seed might have lost"
