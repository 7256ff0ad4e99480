"""The verdict of a run: one line, one paragraph, and the key numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from workflows.reporting.findings import CandidateFindings, GateFindings, ReportData
from workflows.reporting.wording import (
    NO_BREAK,
    count,
    few,
    interval,
    number,
    percent,
    quiet,
    say,
    score,
    title,
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The verdict of the run, in one line and one paragraph."""

    badge: str
    tone: Literal["good", "bad", "quiet"]
    title: str
    lead: Markup


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the numbers under the headline."""

    label: str
    value: str
    note: str


def headline(data: ReportData) -> Headline:
    """What the person wants to know who opens the report in the morning."""
    best, gate = data.candidate(data.winner), data.gate
    if best is None:
        failed = sum(item.failure is not None for item in data.candidates)
        all_of = count(len(data.candidates), "candidate")
        lead = say("No candidate has been fitted; {} of {} failed.", number(failed), all_of)
        return Headline(
            badge="No candidate", tone="bad", title="There is nothing to promote", lead=lead
        )
    what, reached = title(best), _reached(best, data)
    if gate is None:
        return Headline(
            badge="Not before the gate",
            tone="quiet",
            title=f"Best candidate: {what}",
            lead=_join(reached, say("It has not been compared with the champion.")),
        )
    if gate.passed is False:
        champion = gate.champion_after
        stays = f"Champion stays version{NO_BREAK}{champion}" if champion else "Still no champion"
        return Headline(
            badge="Gate refused",
            tone="bad",
            title=f"{stays}; {what} was refused",
            lead=_join(reached, _refusal(gate)),
        )
    if gate.taken_back:
        return Headline(
            badge="Taken back",
            tone="quiet",
            title=f"Champion: version{NO_BREAK}{gate.champion_after or 'none'}",
            lead=_join(
                reached,
                say(
                    "As version {}, {} was champion and has been taken back; it stays out until "
                    "it is approved.",
                    str(gate.version),
                    what,
                ),
            ),
        )
    if gate.champion_after != gate.version:
        why = "This was a trial run." if gate.dry_run else "The alias has not been moved."
        if gate.waiting:
            why = "It waits for a person to approve it."
        return Headline(
            badge="Gate passed",
            tone="good",
            title=f"{_capital(what)} would become champion",
            lead=_join(reached, say(why)),
        )
    promoted = gate.champion_before != gate.version
    return Headline(
        badge="Promoted" if promoted else "Champion unchanged",
        tone="good" if promoted else "quiet",
        title=f"Champion: version{NO_BREAK}{gate.version}, {what}",
        lead=_join(reached, _succession(gate)),
    )


def _join(*sentences: Markup | None) -> Markup:
    return Markup(" ").join(sentence for sentence in sentences if sentence)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _reached(best: CandidateFindings, data: ReportData) -> Markup:
    metric = escape(data.metric.title)
    if best.test is None:
        return say("Its {} is not known: no test row has a label.", metric)
    if best.gain is None or best.name == data.best_single:
        reached = say("Test {} {} {}.", metric, score(best.test.value), quiet(best.test))
        return _join(reached, _standing(data))
    reached = say(
        "Test {} {} {}, {} {} over the best single modality, {}.",
        metric,
        score(best.test.value),
        quiet(best.test),
        score(best.gain.value, True),
        quiet(best.gain, True),
        data.best_single,
    )
    return _join(reached, _standing(data))


def _standing(data: ReportData) -> Markup | None:
    """Over how many of the others the winner's lead is real."""
    leads = {item.name: item.lead for item in data.candidates if item.lead is not None}
    if not leads:
        return None
    behind = [name for name, lead in leads.items() if lead.sure and lead.gain.value > 0]
    ahead = [name for name, lead in leads.items() if lead.sure and lead.gain.value < 0]
    level = [name for name in leads if name not in behind + ahead]
    if len(behind) == len(leads):
        if len(leads) == 1:
            return say("Its lead over the other candidate is real.")
        return say("Its lead over all {} other candidates is real.", str(len(leads)))
    found = []
    if behind:
        found.append(
            say("Its lead over {} of the {} others is real.", str(len(behind)), str(len(leads)))
        )
    if level:
        found.append(say("It cannot be told from {}.", few(level)))
    if ahead:
        found.append(say("On the test rows {} is surely better.", few(ahead)))
    return _join(*found)


def _refusal(gate: GateFindings) -> Markup | None:
    failed = [item for item in gate.conditions if item.passed is False]
    if not failed:
        return None
    overall = next((item for item in gate.conditions if item.champion is not None), None)
    champion = None
    if overall is not None:
        champion = say(
            "That is the challenger's; the champion reaches {} on the same rows.",
            score(overall.champion or 0.0),
        )
    more = f" ({len(failed) - 1} more did not hold)" if len(failed) > 1 else ""
    detail = Markup("{}").format(f"{failed[0].detail}{more}")
    return _join(champion, say("It fell at the condition {}: {}.", failed[0].name, detail))


def _succession(gate: GateFindings) -> Markup | None:
    if gate.champion_before is None:
        return say("It is the first champion.")
    if gate.champion_before == gate.version:
        return None
    against = next((item.difference for item in gate.conditions if item.difference), None)
    before = f"version {gate.champion_before}"
    if against is None:
        return say("It follows {}.", before)
    return say(
        "It follows {}, {} {} against it.", before, score(against.value, True), quiet(against, True)
    )


def _whose(data: ReportData) -> str:
    """Whose number a tile shows, where it is not the champion's."""
    refused = data.gate is not None and data.gate.passed is False
    return "Challenger, t" if refused else "T"


def tiles(data: ReportData) -> list[Tile]:
    """The key numbers, best first."""
    best = data.candidate(data.winner)
    found = []
    if best is not None and best.test is not None:
        found.append(
            Tile(
                label=f"{_whose(data)}est {data.metric.title}",
                value=score(best.test.value),
                note=interval(best.test),
            )
        )
        if best.gain is not None and best.name != data.best_single:
            note = f"{interval(best.gain, True)} {data.best_single}"
            found.append(
                Tile(
                    label="Over the best single",
                    value=score(best.gain.value, True),
                    note=note,
                )
            )
    failed = sum(item.failure is not None for item in data.candidates)
    present = sum(item.present for item in data.modalities)
    bad = sum(item.bad for item in data.modalities)
    there = present + bad
    found += [
        Tile(
            label="Candidates",
            value=number(len(data.candidates)),
            note=f"{failed} failed" if failed else "all fitted",
        ),
        Tile(
            label="Samples",
            value=number(data.samples),
            note=_outputs(data),
        ),
        Tile(
            label="Embedded",
            value=number(present),
            note=f"payloads of {count(len(data.modalities), 'modality', 'modalities')}",
        ),
        Tile(
            label="Quarantined",
            value=number(bad),
            note=f"{percent(bad / there if there else 0)} of payloads",
        ),
    ]
    return found


def _outputs(data: ReportData) -> str:
    """What is predicted, in number."""
    nouns = {
        "classification": ("class", "classes"),
        "multilabel": ("label", "labels"),
        "regression": ("number to predict", "numbers to predict"),
    }
    if data.task not in nouns:
        return ""
    return count(len(data.classes), *nouns[data.task])
