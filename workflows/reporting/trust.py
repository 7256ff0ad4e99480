"""The report's sections on how far to trust the candidates, and on what the winner leans on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from workflows.reporting import figures, lines, plots
from workflows.reporting.findings import CandidateFindings, ReportData
from workflows.reporting.study_findings import Leaning, StudyFindings, SubsetFindings
from workflows.reporting.wording import count, number, percent, say, score

MOST_SUBSETS = 16
"""A figure of more shows those of one modality, those that lack one, and the whole."""
CLEARLY = 0.1
"""Share of the whole by which one modality is ahead of another where it is told."""


def winners_study(data: ReportData) -> StudyFindings | None:
    """That of the winner; None if there is none."""
    return next((item for item in data.studies if item.candidate == data.winner), None)


def trust_table(
    data: ReportData, *, candidates: Sequence[CandidateFindings]
) -> dict[str, Any] | None:
    """Each candidate with what is left of its metric, and how far its probabilities are off."""
    by_name = {item.candidate: item for item in data.studies}
    rows = []
    for item in candidates:
        study = by_name.get(item.name)
        if study is None or item.test is None:
            continue
        rows.append(
            {
                "name": item.name,
                "family": item.family,
                "test": item.test.value,
                "reliability": study.reliability,
                "kept": [
                    _cell(study.kept_of_subsets),
                    _cell(study.kept("noise")),
                    _cell(study.kept("swapped")),
                ],
            }
        )
    if not rows:
        return None
    return {
        "rows": rows,
        "reliable": any(row["reliability"] is not None for row in rows),
    }


def _cell(share: float | None) -> dict[str, Any] | None:
    """A share that is left, the warmer the less it is."""
    if share is None or not math.isfinite(share):
        return None
    return {"share": share, "tint": min(0.6, max(0.0, 1 - share) * 1.2)}


def reliability_plot(data: ReportData) -> Markup | None:
    """The winner's; None if it has no probabilities."""
    study = winners_study(data)
    if study is None or study.reliability is None or not study.reliability.bins:
        return None
    bins = study.reliability.bins
    return Markup(
        lines.reliability(
            confidence=np.array([item.confidence for item in bins]),
            right=np.array([item.right for item in bins]),
            rows=np.array([item.rows for item in bins]),
            label=f"How often {data.winner} is right, by the probability of its answer",
        )
    )


def fall_plots(data: ReportData) -> list[dict[str, Any]]:
    """One plot a modality of the winner: what is lost as it is impaired, beside the others."""
    study = winners_study(data)
    if study is None or not study.curves:
        return []
    modalities = list(dict.fromkeys(curve.modality for curve in study.curves))
    absent = _absent(study)
    drawn = [
        value
        for item in data.studies
        for curve in item.curves
        if curve.modality in modalities
        for value in curve.values
    ]
    limits = lines.fall_limits([*drawn, *absent.values()])
    found = []
    for modality in modalities:
        by_kind = {
            kind: [
                lines.Line(
                    levels=curve.levels, values=curve.values, strong=item.candidate == data.winner
                )
                for item in data.studies
                for curve in item.curves
                if (curve.modality, curve.impairment) == (modality, kind)
            ]
            for kind in ("noise", "swapped")
        }
        own = {c.impairment: c.kept for c in study.curves if c.modality == modality}
        kept = own.get("noise", math.nan)
        found.append(
            {
                "name": modality,
                "note": f"{percent(kept)} kept in noise" if math.isfinite(kept) else "",
                "svg": Markup(
                    lines.falls(
                        noise=by_kind["noise"],
                        swapped=by_kind["swapped"],
                        without=absent.get(modality),
                        limits=limits,
                        label=f"{data.metric.heading} of {data.winner} as {modality} is impaired",
                    )
                ),
            }
        )
    return found


def _absent(study: StudyFindings) -> dict[str, float]:
    """By modality, what the metric is with all the others."""
    if not study.subsets:
        return {}
    whole = set(study.subsets[-1].modalities)
    return {
        (whole - set(item.modalities)).pop(): item.value
        for item in study.subsets
        if len(item.modalities) == len(whole) - 1
    }


def subsets_plot(data: ReportData) -> dict[str, Any] | None:
    """What the winner is worth with each subset of its modalities, fewest first."""
    study = winners_study(data)
    if study is None or len(study.subsets) < 2:
        return None
    whole = study.subsets[-1]
    rows = [
        plots.IntervalRow(
            label=_named(item, whole=whole),
            value=item.value,
            low=item.value if item.low is None else item.low,
            high=item.value if item.high is None else item.high,
            text=score(item.value)
            if item.low is None or item.high is None
            else f"{score(item.value)} [{score(item.low)}, {score(item.high)}]",
            family="single" if len(item.modalities) == 1 else "fusion",
            strong=item is whole,
        )
        for item in _shown(study.subsets)
    ]
    return figures.both(
        rows,
        label=f"Test {data.metric.title} of {data.winner} with some of its modalities",
        bounds=data.metric.bounds,
        reference=whole.value,
        reference_label="all there",
    )


def _shown(subsets: Sequence[SubsetFindings]) -> Sequence[SubsetFindings]:
    if len(subsets) <= MOST_SUBSETS:
        return subsets
    most = len(subsets[-1].modalities)
    return [item for item in subsets if len(item.modalities) in (1, most - 1, most)]


def _named(item: SubsetFindings, *, whole: SubsetFindings) -> str:
    if item is whole:
        return "all"
    if len(item.modalities) > 2:
        return f"all but {', '.join(m for m in whole.modalities if m not in item.modalities)}"
    return " + ".join(item.modalities)


def subsets_table(
    data: ReportData, *, candidates: Sequence[CandidateFindings]
) -> dict[str, Any] | None:
    """Every candidate with each subset; None if no candidate has several modalities."""
    by_name = {item.candidate: item for item in data.studies if len(item.subsets) > 1}
    if not by_name:
        return None
    largest = max(by_name.values(), key=lambda item: len(item.subsets))
    columns = [item.modalities for item in _shown(largest.subsets)]
    rows = []
    for item in candidates:
        if item.name not in by_name:
            continue
        values = {s.modalities: s.value for s in by_name[item.name].subsets}
        rows.append({"name": item.name, "cells": [values.get(column) for column in columns]})
    whole = largest.subsets[-1]
    return {
        "columns": [_named(item, whole=whole) for item in _shown(largest.subsets)],
        "rows": rows,
    }


def leaning_table(data: ReportData) -> dict[str, Any] | None:
    """Shapley values of the winner's modalities over all rows and by slice."""
    if not data.leanings:
        return None
    modalities = list(data.leanings[0].strength)
    most = max(value for item in data.leanings for value in item.strength.values()) or 1.0
    slices = sorted(data.leanings[1:], key=lambda item: item.group or "")
    kept = [data.leanings[0], *slices[: figures.MOST_SLICES]]
    rows = [
        {
            "group": item.group,
            "value": item.value,
            "rows": item.rows,
            "cells": [
                {
                    "strength": item.strength[m],
                    "direction": item.direction[m],
                    "share": item.strength[m] / most,
                }
                for m in modalities
            ],
        }
        for item in kept
    ]
    return {"modalities": modalities, "rows": rows, "left_out": len(slices) + 1 - len(kept)}


def on_trust(data: ReportData) -> list[Markup]:
    """Which candidate holds up, and whether the winner is as sure as it should be."""
    study = winners_study(data)
    if study is None:
        return []
    found = []
    if study.reliability is not None:
        found.append(_sureness(data, study))
    kept = {item.candidate: item.kept("noise") for item in data.studies if len(item.curves) > 2}
    known = {name: v for name, v in kept.items() if v is not None and math.isfinite(v)}
    if len(known) > 1 and data.winner in known:
        best = max(known, key=lambda name: known[name])
        if best == data.winner:
            found.append(say("No other candidate of several modalities keeps more in noise."))
        else:
            found.append(
                say(
                    "In noise {} keeps most of its worth, {}; the winner keeps {}.",
                    best,
                    percent(min(1.0, known[best])),
                    percent(min(1.0, known[data.winner])),
                )
            )
    if study.perturbed_rows < study.of:
        found.append(
            say(
                "Noise and swaps are of {} of the {} test rows, drawn by a fixed seed.",
                number(study.perturbed_rows),
                number(study.of),
            )
        )
    return found


def _sureness(data: ReportData, study: StudyFindings) -> Markup:
    reliability = study.reliability
    assert reliability is not None
    gap = sum((item.confidence - item.right) * item.rows for item in reliability.bins)
    gap /= sum(item.rows for item in reliability.bins)
    if abs(gap) < 0.01:
        verdict = say("is, on the average, as sure as it is right")
    else:
        points = f"{abs(gap) * 100:.1f}"
        verdict = say("is {} sure, by {} points", "too" if gap > 0 else "not enough", points)
    if reliability.temperature == 1:
        return say("The winner, {}, {}.", data.winner, verdict)
    return say(
        "The winner, {}, {}. Its probabilities are scaled by a temperature of {}, fitted to the "
        "validation rows.",
        data.winner,
        verdict,
        f"{reliability.temperature:.2f}",
    )


def on_leaning(data: ReportData) -> list[Markup]:
    """What the winner's answers come from."""
    study, found = winners_study(data), []
    if data.leanings:
        whole = data.leanings[0]
        total = sum(whole.strength.values())
        if total > 0:
            first = _most(whole)
            if _is_clear(whole):
                found.append(
                    say(
                        "{} of what the winner's answers owe to their inputs, they owe to {}.",
                        percent(whole.strength[first] / total),
                        first,
                    )
                )
            else:
                found.append(say("The winner's answers owe no modality clearly more than others."))
            other = next((i for i in data.leanings[1:] if _most(i) != first and _is_clear(i)), None)
            if other is not None:
                found.append(
                    say(
                        "Not so in {}: there it leans most on {}.",
                        f"{other.group} {other.value}",
                        _most(other),
                    )
                )
    if study is not None and len(study.subsets) > 1:
        best = _best_part(data, study)
        found.append(
            say(
                "Of its subsets {} is worth most, {} {}.",
                " + ".join(best.modalities),
                escape(data.metric.title),
                score(best.value),
            )
        )
        if study.rows < study.of:
            found.append(
                say(
                    "Over {} of the {} test rows, drawn by a fixed seed.",
                    number(study.rows),
                    number(study.of),
                )
            )
    return found


def _most(item: Leaning) -> str:
    return max(item.strength, key=lambda m: item.strength[m])


def _is_clear(item: Leaning) -> bool:
    """Whether the strongest modality is ahead of the next by a tenth of the whole."""
    second, first = sorted(item.strength.values())[-2:] if len(item.strength) > 1 else (0.0, 1.0)
    return first - second >= CLEARLY * sum(item.strength.values())


def _best_part(data: ReportData, study: StudyFindings) -> SubsetFindings:
    sign = 1 if data.metric.higher_is_better else -1
    return max(study.subsets[:-1], key=lambda item: sign * item.value)


def falls_note(data: ReportData) -> str:
    """How to read the plots of what is lost."""
    study = winners_study(data)
    if study is None:
        return ""
    others = len(data.studies) > 1
    note = f"Test {data.metric.title} of the winner, over {count(study.perturbed_rows, 'row')}"
    note += "; the thin lines are the other candidates." if others else "."
    if study.subsets:
        note += " Dashed: the winner without the modality at all."
    return note
