"""What the report remarks on a run: a few sentences a section."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

from workflows.reporting.data_remarks import shared, untrained
from workflows.reporting.findings import (
    ConditionFindings,
    EnsembleFindings,
    ReportData,
)
from workflows.reporting.search_findings import SearchFindings
from workflows.reporting.seeds import on_seeds
from workflows.reporting.wording import (
    count,
    few,
    fine,
    number,
    percent,
    probability,
    say,
    score,
    value,
)

BREAKDOWN_NOTE = "Challenger − champion where it may hide; decides nothing unless listed above."


def on_candidates(data: ReportData) -> list[Markup]:
    """What the comparison of the candidates says."""
    fitted = [item.test for item in data.candidates if item.test is not None]
    if not fitted:
        return [say("No candidate has been measured on test rows.")]
    rows = count(fitted[0].n, "test row")
    heading = escape(data.metric.heading)
    lines = [say("{} on {}, which no candidate has seen.", heading, rows)]
    records = {item.name for item in data.modalities if item.kind == "table"}
    seen = [
        leak
        for leak in data.leaks
        if leak.sides == ("train", "test") and leak.modality not in records
    ]
    if seen:
        lines = [say("{} on {}.", heading, rows)]
        what, title = few([shared(leak) for leak in seen]), data.metric.title
        high = "high" if data.metric.higher_is_better else "low"
        lines.append(
            say(
                "Leak: {} in both train and test, so the {} may be too {}; see Data.",
                what,
                title,
                high,
            )
        )
    if not data.metric.higher_is_better:
        lines.append(say("Less is better; a gain is by how much less it is."))
    tests = {item.lead.test for item in data.candidates if item.lead is not None}
    if tests:
        lines.append(
            say(
                "Whether the winner's lead is real is tested on the same rows ({}), and corrected "
                "for the number of candidates (Holm).",
                ", ".join(sorted(tests)),
            )
        )
    lines += _against_single(data)
    lines += on_seeds(data)
    lines += _against_constant(data)
    return lines


def _against_constant(data: ReportData) -> list[Markup]:
    """What a model would reach that has learnt nothing but which class is the most frequent."""
    if data.confusion is None or data.metric.title != "accuracy" or not data.confusion.sum():
        return []
    share = float(data.confusion.sum(axis=1).max() / data.confusion.sum())
    tested = [item for item in data.candidates if item.test is not None]
    poor = sum(item.test.low <= share for item in tested if item.test is not None)
    lines = [say("To answer the most frequent class always would be right in {}.", score(share))]
    if poor:
        lines.append(
            say(
                "{} of {} candidates are not surely better than that: if their validation loss "
                "never fell, give them more {}.",
                number(poor),
                number(len(tested)),
                "patience",
            )
        )
    return lines


def _against_single(data: ReportData) -> list[Markup]:
    """What joining modalities is worth, by the same test as the winner's other leads."""
    best, single = data.candidate(data.winner), data.candidate(data.best_single)
    if best is None or single is None or all(i.family == "single" for i in data.candidates):
        return []
    if best is single:
        return [say("No fusion beats {}, the best single modality.", single.name)]
    lead = single.lead
    if lead is None:
        return []
    if not lead.sure:
        found = "Whether the winner on validation, {}, beats {} alone is not sure: p = {}."
        return [say(found, best.name, single.name, escape(probability(lead.p)))]
    if lead.gain.value > 0:
        return [say("The winner on validation, {}, surely beats {} alone.", best.name, single.name)]
    found = "On the test rows {} alone surely beats the winner on validation, {}."
    return [say(found, single.name, best.name)]


def on_ensembles(data: ReportData) -> list[Markup]:
    """What each ensemble took, and what that came to."""
    lines = [say("Made of candidates that are fitted already, with no step of their own.")]
    for item in data.ensembles:
        taken = few([member.name for member in item.members if member.taken])
        if not item.monitor:
            lines.append(say("{} is the mean of the answers of {}.", item.candidate, taken))
            continue
        tried = count(len(item.members), "fit")
        lines.append(say("{} took {} of {}: {}.", item.candidate, number(item.taken), tried, taken))
        lines += _came_to(item)
    if any(item.monitor for item in data.ensembles):
        lines.append(
            say(
                "A soup begins with the best fit, and takes in turn each other one with which it "
                "is not worse on validation."
            )
        )
    return lines


def _came_to(item: EnsembleFindings) -> list[Markup]:
    """What a soup is on validation, beside its best fit."""
    taken = [member for member in item.members if member.taken]
    if len(taken) < 2 or taken[0].alone is None or taken[-1].with_it is None:
        return []
    reached, alone = fine(taken[-1].with_it), fine(taken[0].alone)
    return [
        say(
            "On validation its {} is {}, and that of its best fit alone {}.",
            escape(item.monitor),
            reached,
            alone,
        )
    ]


def on_searches(data: ReportData) -> list[Markup]:
    """What was searched, and which values are best."""
    lines = []
    for search in data.searches:
        fields = few([dimension.field for dimension in search.dimensions])
        trials = count(len(search.trials), "trial")
        lines.append(say("{} of {}, in {}.", fields, search.of, trials))
        lines.append(_found(search))
    lines.append(
        say(
            "Trials are compared on validation alone. The worse of them are stopped early, and the "
            "test rows have no say."
        )
    )
    return lines


def _found(search: SearchFindings) -> Markup:
    best = search.best
    if not search.over:
        return say("The search is not over.")
    if best is None or best.settled is None:
        return say("No trial could be fitted to its end.")
    values = ", ".join(f"{name} {value(found)}" for name, found in best.values.items())
    if len(best.by_seed) > 1:
        return say(
            "Best over all its seeds: trial {}, {}, with a mean {} of {} on validation.",
            number(best.number),
            values,
            escape(search.monitor),
            score(best.settled),
        )
    return say(
        "Best: {}, with {} {} on validation.", values, escape(search.monitor), score(best.settled)
    )


def search_note(search: SearchFindings) -> str:
    """How the trials of a search were stopped, and what became of the best of them."""
    reached = [
        sum(len(t.reached) > rung for t in search.trials) for rung in range(len(search.epochs))
    ]
    steps = [
        f"{number(trials)} for {count(epochs, 'epoch')}"
        for trials, epochs in zip(reached, search.epochs, strict=True)
        if trials
    ]
    text = f"Fitted: {', then the best '.join(steps)}."
    if search.over and search.best is not None and search.seeds > 1:
        finalists = min(search.finalists, reached[-1])
        text += (
            f" The best was fitted with {search.seeds} seeds."
            if finalists == 1
            else f" The best {finalists} were fitted with {search.seeds} seeds, and are compared "
            "by their mean."
        )
    return text


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
        lines.append(untrained(data))
    groups = [item for item in data.slices if item.group is not None and item.score.n >= 10]
    if len(groups) > 1:
        sign = 1 if data.metric.higher_is_better else -1
        worst = min(groups, key=lambda item: sign * item.score.value)
        name = f"{worst.group} {worst.value}"
        lines.append(say("Weakest slice: {}, with {}.", name, score(worst.score.value)))
    best = data.candidate(data.winner)
    if best is not None and best.masked:
        dear = min(best.masked, key=lambda item: item.difference.value)
        change = score(dear.difference.value, True)
        lines.append(say("It loses most without {}: {}.", dear.modality, change))
    return lines


def on_curves(data: ReportData) -> list[Markup]:
    """How to read the learning curves."""
    lines = [
        say("By epoch. All share one scale of accuracy, and of loss where it is the same loss.")
    ]
    if any(item.family == "alignment" and item.epochs for item in data.candidates):
        lines.append(say("The loss of an alignment or of a translation has a scale of its own."))
    return lines


def on_retrieval(data: ReportData) -> list[Markup]:
    """How to read the retrieval tables, and the strongest pair."""
    lines = [
        say(
            "A query of one modality ranks the samples of another, by an alignment in its common "
            "space, by a translation in that of the answer. The tick marks chance."
        )
    ]
    pairs = [
        (block.candidate, pair)
        for block in data.retrieval
        for pair in block.pairs
        if 1 in pair.same_class
    ]
    if pairs:
        candidate, best = max(pairs, key=lambda found: found[1].same_class[1])
        by = f" ({candidate})" if len({name for name, _ in pairs}) > 1 else ""
        lines.append(
            say(
                "Strongest: {}; its first answer is of the right class {} of the time.",
                f"{best.query} → {best.target}{by}",
                percent(best.same_class[1]),
            )
        )
    named = [
        (share["test"], name)
        for space in data.spaces
        for name, share in space.zero_shot.items()
        if "test" in share
    ]
    if named:
        share, name = max(named)
        lines.append(
            say(
                "By the names of the classes alone, without a label, {} is told apart {} of the "
                "time.",
                name,
                percent(share),
            )
        )
    return lines


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
    if gate.waiting:
        lines.append(say("The alias challenger is set; a person is to approve it."))
    if gate.already:
        lines.append(say("This was decided in an earlier run."))
    lines += [say("{}.", escape(f"{note[:1].upper()}{note[1:]}")) for note in gate.notes]
    return lines


def gate_note(conditions: Sequence[ConditionFindings]) -> str:
    """Whether there is anything to compare with."""
    if any(item.champion is not None for item in conditions):
        return "Both models answered the same rows; the difference is challenger − champion."
    return "There was no champion to compare with."
