"""What the report remarks on the data: what is missing, what is bad, what stands in two splits."""

from __future__ import annotations

from markupsafe import Markup

from workflows.reporting.data_findings import Leak
from workflows.reporting.findings import ReportData
from workflows.reporting.wording import count, few, number, percent, say

MOST_LEAKS = 3


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
        lines.append(untrained(data))
    for leak in data.leaks[:MOST_LEAKS]:
        lines.append(say("Leak: {} in both {} and {}.", shared(leak), *leak.sides))
    if len(data.leaks) > MOST_LEAKS:
        lines.append(say("And {} more leaks.", number(len(data.leaks) - MOST_LEAKS)))
    return lines


def untrained(data: ReportData) -> Markup:
    """That classes have no training row."""
    classes = few(data.untrained, limit=10)
    if len(data.untrained) == 1:
        return say("No training row is of the class {}, so it is never learned.", classes)
    return say("No training row is of the classes {}, so none of them is ever learned.", classes)


def shared(leak: Leak) -> str:
    """How many payloads or groups stand on two sides of a split."""
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
