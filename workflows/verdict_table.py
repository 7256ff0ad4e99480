"""The gate's verdict on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from workflows.console import table
from workflows.promotion.gate import POWER
from workflows.promotion.verdict import Comparison, Verdict

MOST_SLICES = 8
"""Slices that decide nothing and are shown, those that lost most first; the report shows all."""


def print_verdict(verdict: Verdict, *, console: Console) -> None:
    """Condition by condition what was asked, what both models reach, and whether it holds."""
    made = table(
        "condition", "challenger", "champion", "gain", "", numbers=("challenger", "champion"),
        wraps=("condition",),
    )  # fmt: skip
    shown = {condition.name for condition in verdict.conditions}
    slices = [item for item in verdict.breakdown if item.name not in shown and item.champion]
    slices = sorted(slices, key=_gain)[:MOST_SLICES]
    for row in verdict.table()[: len(verdict.conditions)]:
        failed = row["verdict"] == "FAIL"
        name = row["name"] if row["name"] != "floor" else verdict.metric
        made.add_row(
            f"{escape(name)} {escape(row['rule'])}" if row["rule"] else escape(name),
            row["challenger"],
            row["champion"],
            escape(row["difference"]),
            row["verdict"],
            style="bold red" if failed else None,
        )
    for item in slices:
        row = next(row for row in verdict.table() if row["name"] == item.name)
        made.add_row(
            escape(item.name), row["challenger"], row["champion"], escape(row["difference"]), "",
            style="dim",
        )  # fmt: skip
    console.print(made)
    failed_ones = [condition for condition in verdict.conditions if not condition.passed]
    for condition in failed_ones[1:]:  # the first is in the verdict's sentence
        console.print(
            f"         refused: {escape(condition.name)}: {escape(condition.detail)}",
            soft_wrap=True,
        )
    for line in notes(verdict):
        console.print(f"         {escape(line)}", soft_wrap=True)


def notes(verdict: Verdict) -> list[str]:
    """What the table cannot say: McNemar's p, what could have been found, and the test set."""
    found = []
    first = verdict.conditions[0]
    if first.p is not None:
        p = "below 0.001" if first.p < 0.001 else f"{first.p:.3f}"
        found.append(f"McNemar's p is {p}: how likely chance alone makes equal models differ so")
    if verdict.detectable is not None and not first.passed:
        found.append(
            f"on {verdict.rows:,} test rows a true gain of {verdict.detectable:.3f} passes with a "
            f"probability of {POWER:.0%}; more test rows find smaller ones"
        )
    if verdict.test_set is not None and verdict.test_set.sentence:
        found.append(verdict.test_set.sentence)
    return found


def _gain(item: Comparison) -> float:
    return item.difference if item.difference is not None else 0.0
