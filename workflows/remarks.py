"""What the report remarks on a run: its headline, its key numbers, a few sentences a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from markupsafe import Markup

from workflows.findings import (
    CandidateFindings,
    ConditionFindings,
    GateFindings,
    Leak,
    ReportData,
    RetrievalFindings,
)
from workflows.wording import (
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

MOST_LEAKS = 3
BREAKDOWN_NOTE = "Challenger − champion where it may hide; decides nothing unless listed above."


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
    if gate.champion_after != gate.version:
        why = "This was a trial run." if gate.dry_run else "The alias has not been moved."
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
    if best.test is None:
        return say("Its accuracy is not known: no test row has a label.")
    if best.gain is None or best.name == data.best_single:
        return say("Test accuracy {} {}.", score(best.test.value), quiet(best.test))
    return say(
        "Test accuracy {} {}, {} {} over the best single modality, {}.",
        score(best.test.value),
        quiet(best.test),
        score(best.gain.value, True),
        quiet(best.gain, True),
        data.best_single,
    )


def _refusal(gate: GateFindings) -> Markup | None:
    failed = [item for item in gate.conditions if item.passed is False]
    if not failed:
        return None
    more = f" ({len(failed) - 1} more did not hold)" if len(failed) > 1 else ""
    detail = Markup("{}").format(f"{failed[0].detail}{more}")
    return say("It fell at the condition {}: {}.", failed[0].name, detail)


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


def tiles(data: ReportData) -> list[Tile]:
    """The key numbers, best first."""
    best = data.candidate(data.winner)
    found = []
    if best is not None and best.test is not None:
        found.append(
            Tile(label="Test accuracy", value=score(best.test.value), note=interval(best.test))
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
            note=count(len(data.classes), "class", "classes"),
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


def on_candidates(data: ReportData) -> list[Markup]:
    """What the comparison of the candidates says."""
    fitted = [item.test for item in data.candidates if item.test is not None]
    if not fitted:
        return [say("No candidate has been measured on test rows.")]
    lines = [say("Accuracy on {}, which no candidate has seen.", count(fitted[0].n, "test row"))]
    records = {item.name for item in data.modalities if item.kind == "table"}
    seen = [
        leak
        for leak in data.leaks
        if leak.sides == ("train", "test") and leak.modality not in records
    ]
    if seen:
        lines = [say("Accuracy on {}.", count(fitted[0].n, "test row"))]
        what = few([_shared(leak) for leak in seen])
        lines.append(
            say("Leak: {} in both train and test, so the accuracy may be too high; see Data.", what)
        )
    best = data.candidate(data.winner)
    if best is None:
        return lines
    if best.name == data.best_single or best.gain is None:
        lines.append(say("No fusion beats {}, the best single modality.", data.best_single or "–"))
    elif best.gain.low > 0:
        lines.append(
            say(
                "The winner on validation, {}, surely beats {} alone: the interval of the "
                "difference excludes zero.",
                best.name,
                data.best_single,
            )
        )
    else:
        lines.append(
            say(
                "Whether the winner on validation, {}, beats {} alone is not sure: the interval "
                "of the difference includes zero.",
                best.name,
                data.best_single,
            )
        )
    return lines


def on_failures(data: ReportData) -> list[Markup]:
    """What the errors of the winner say."""
    lines = []
    if data.confusion is not None and data.confusion.sum():
        total = int(data.confusion.sum())
        wrong = total - int(np.trace(data.confusion))
        lines.append(
            say(
                "The winner, {}, answers {} of {} wrongly.",
                data.winner,
                number(wrong),
                count(total, "test row"),
            )
        )
    if data.untrained:
        lines.append(_untrained(data))
    groups = [item for item in data.slices if item.group is not None and item.accuracy.n >= 10]
    if len(groups) > 1:
        worst = min(groups, key=lambda item: item.accuracy.value)
        name = f"{worst.group} {worst.value}"
        lines.append(say("Weakest slice: {}, with {}.", name, score(worst.accuracy.value)))
    best = data.candidate(data.winner)
    if best is not None and best.masked:
        dear = min(best.masked, key=lambda item: item.difference.value)
        change = score(dear.difference.value, True)
        lines.append(say("It leans most on {}: without it, {}.", dear.modality, change))
    return lines


def on_curves(data: ReportData) -> list[Markup]:
    """How to read the learning curves."""
    lines = [
        say("By epoch. All share one scale of accuracy, and of loss where it is the same loss.")
    ]
    if any(item.family == "alignment" and item.epochs for item in data.candidates):
        lines.append(say("The contrastive loss of an alignment has a scale of its own."))
    return lines


def on_retrieval(data: ReportData) -> list[Markup]:
    """How to read the retrieval tables, and the strongest pair."""
    lines = [
        say(
            "In an alignment's common space, a query of one modality ranks the samples of "
            "another. The tick marks chance."
        )
    ]
    pairs = [pair for block in data.retrieval for pair in block.pairs if 1 in pair.same_class]
    if pairs:
        best = max(pairs, key=lambda pair: pair.same_class[1])
        lines.append(
            say(
                "Strongest: {}; its first answer is of the right class {} of the time.",
                f"{best.query} → {best.target}",
                percent(best.same_class[1]),
            )
        )
    return lines


def retrieval_title(block: RetrievalFindings, *, same_class: bool, several: bool) -> str:
    """Title of one retrieval table."""
    what = "The same class" if same_class else "The very same sample"
    return f"{block.candidate}: {what[0].lower()}{what[1:]}" if several else what


def on_data(data: ReportData) -> list[Markup]:
    """How much is there, how much is not, and that missing is not bad."""
    missing = sum(item.missing for item in data.modalities)
    bad = sum(item.bad for item in data.modalities)
    there = bad + sum(item.present for item in data.modalities)
    share = percent(missing / (missing + there) if missing + there else 0)
    lines = [say("{}; {} of their payloads are missing.", count(data.samples, "sample"), share)]
    if bad:
        lines.append(say("{} of those that are there could not be used.", percent(bad / there)))
    lines.append(say("What is missing or bad is masked, never replaced by zeros."))
    if data.untrained:
        lines.append(_untrained(data))
    for leak in data.leaks[:MOST_LEAKS]:
        lines.append(say("Leak: {} in both {} and {}.", _shared(leak), *leak.sides))
    if len(data.leaks) > MOST_LEAKS:
        lines.append(say("And {} more leaks.", number(len(data.leaks) - MOST_LEAKS)))
    return lines


def _untrained(data: ReportData) -> Markup:
    classes = few(data.untrained, limit=10)
    if len(data.untrained) == 1:
        return say("No training row is of the class {}, so it is never learned.", classes)
    return say("No training row is of the classes {}, so none of them is ever learned.", classes)


def _shared(leak: Leak) -> str:
    return f"{count(leak.count, leak.noun)} {leak.of}"


def on_leaks(data: ReportData) -> str:
    """What it means that something stands in two splits."""
    text = "Stand in two splits; the test split shares nothing with the others."
    if any("test" in leak.sides for leak in data.leaks):
        text = (
            "Stand in two splits. The test rows among them measure what is remembered, and not "
            "what is learned."
        )
    records = {item.name for item in data.modalities if item.kind == "table"}
    if any(leak.modality in records for leak in data.leaks):
        text += " Records of few and coarse fields may be alike by chance."
    return text


def on_repeated(data: ReportData) -> str:
    """Which payloads stand in several rows; empty if none does."""
    parts = [
        f"{found.modality} {number(found.rows)} ({percent(found.rows / found.payloads)})"
        for found in data.repeated
    ]
    return f"Payloads that stand in more than one row: {', '.join(parts)}." if parts else ""


def on_quarantine(total: int) -> str:
    """What the quarantine holds."""
    if not total:
        return "Every payload that is there could be read."
    return f"{count(total, 'payload')} could not be used; each is kept out, with its reason."


def on_gate(data: ReportData) -> list[Markup]:
    """What the gate decided and what became of the alias."""
    gate = data.gate
    if gate is None:
        return [say("The best candidate and the champion answer the same test rows.")]
    version = f"{gate.model}, version {gate.version}" if gate.version else gate.model
    verdict = {True: "passed", False: "refused", None: "not judged, chosen by hand"}[gate.passed]
    lines = [say("{}: {}.", version, verdict)]
    after = f"version {gate.champion_after}"
    if gate.dry_run:
        lines.append(say("A trial run: no alias was touched."))
    elif gate.champion_before != gate.champion_after:
        before = f"version {gate.champion_before}" if gate.champion_before else "nothing"
        lines.append(say("The alias champion moved from {} to {}.", before, after))
    elif gate.champion_after:
        lines.append(say("The alias champion stays at {}.", after))
    else:
        lines.append(say("The alias champion is not set."))
    if gate.already:
        lines.append(say("This was decided in an earlier run."))
    return lines


def gate_note(conditions: Sequence[ConditionFindings]) -> str:
    """Whether there is anything to compare with."""
    if any(item.champion is not None for item in conditions):
        return "Both models answered the same rows; the difference is challenger − champion."
    return "There was no champion to compare with."
