"""What is told of how a table is divided.

Of payloads that stand in several rows, of what is on two sides of a split, and of classes that
nothing is learned of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape

from features.integrity import Repeats
from features.plan import Plan
from workflows.console import count, several, share
from workflows.reporting.data_findings import Leak, Repeated
from workflows.runs import without_passwords

SHOWN = 3
"""Pairs of samples that are named for each leak."""
MOST_OFF = 1 / 3
"""By which part of it a split's share may be off before that is told."""
CLASSES = 10
"""Classes without training rows that are named."""


def leaks_of(repeats: Mapping[str, Repeats], *, group: str | None) -> list[Leak]:
    """What is on two sides of a split, by modality, and groups (of the column `group`).

    What training and test rows share comes first, then what others share with the test rows.
    """
    found = [
        Leak(
            modality=modality,
            group="" if modality else group or "group",
            sides=(one, other),
            count=distinct,
            examples=tuple(
                (without_passwords(first), without_passwords(second))
                for first, second in part.examples.get(f"{one}/{other}", ())[:SHOWN]
            ),
        )
        for modality, part in repeats.items()
        for (one, other), distinct in (
            (_two(sides), distinct) for sides, distinct in part.divided.items()
        )
    ]
    return sorted(found, key=lambda leak: ("test" not in leak.sides, "train" not in leak.sides))


def _two(sides: str) -> tuple[str, str]:
    one, other = sides.split("/")
    return one, other


def repeated_of(repeats: Mapping[str, Repeats]) -> Iterator[Repeated]:
    """The modalities of which payloads stand in several rows."""
    for modality, found in repeats.items():
        if modality and found.repeated:
            yield Repeated(modality=modality, rows=found.repeated, payloads=found.values)


def print_repeats(plan: Plan, *, console: Console) -> None:
    """A line for each leak, and one of all that is repeated; nothing where nothing is."""
    for leak in leaks_of(plan.repeats, group=plan.dataset.split.group):
        what = f"{several(leak.count, leak.noun)} {leak.of}"
        one, other = leak.sides
        pairs = "; ".join(
            f"sample {first} ({one}) and sample {second} ({other})"
            for first, second in leak.examples
        )
        more = " …" if leak.count > len(leak.examples) else ""
        console.print(
            f"[bold yellow]leak[/bold yellow]     {escape(what)} in both {one} and {other}"
            + (f": {escape(pairs)}{more}" if pairs else ""),
            soft_wrap=True,
        )
    repeated = list(repeated_of(plan.repeats))
    if repeated:
        parts = ", ".join(
            f"{found.modality} {count(found.rows)} ({share(found.rows, found.payloads)})"
            for found in repeated
        )
        console.print(
            f"         payloads that stand in more than one row: {escape(parts)}", soft_wrap=True
        )


def print_shares(plan: Plan, *, console: Console) -> None:
    """A line where a split by groups is far from the share of the samples that it is to have."""
    split = plan.dataset.split
    rows = sum(plan.splits.values())
    if split.column is not None or not rows:
        return
    wanted = {"validation": split.validation, "test": split.test}
    far = [
        f"{name} has {share(plan.splits.get(name, 0), rows)} of the samples and not "
        f"{share(round(part * rows), rows)}"
        for name, part in wanted.items()
        if abs(plan.splits.get(name, 0) / rows / part - 1) > MOST_OFF
    ]
    if far:
        remedy = "" if split.stratify else "; `stratify: COLUMN` counts groups, and comes nearer"
        console.print(
            f"[bold yellow]split[/bold yellow]    {', '.join(far)}: groups of "
            f"{escape(str(split.group))} are few, or some are large{remedy}",
            soft_wrap=True,
        )


def print_untrained(plan: Plan, *, console: Console) -> None:
    """A warning that names the classes without a training row; nothing where there is none."""
    classes = plan.untrained
    if not classes:
        return
    more = f" and {count(len(classes) - CLASSES)} more" if len(classes) > CLASSES else ""
    noun = "class" if len(classes) == 1 else "classes"
    console.print(
        f"[bold red]warning[/bold red]  {escape(str(plan.target))}: no training row is of the "
        f"{noun} {escape(', '.join(classes[:CLASSES]))}{more}, so none is ever learned",
        soft_wrap=True,
    )
