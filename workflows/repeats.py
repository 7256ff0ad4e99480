"""What is told of payloads that stand in several rows, and of what is on two sides of a split."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from features.plan import Plan
from workflows.console import count, several, share


def print_repeats(plan: Plan, *, console: Console) -> None:
    """A line for each leak, and one of all that is repeated; nothing where nothing is."""
    for name, found in plan.repeats.items():
        for sides, distinct in found.divided.items():
            one, other = sides.split("/")
            what = several(distinct, "payload") + f" of {name}"
            if not name:
                what = several(distinct, "group") + f" ({plan.dataset.split.group})"
            examples = f" (samples {', '.join(found.examples[:3])} …)" if found.examples else ""
            console.print(
                f"[bold yellow]leak[/bold yellow]     {escape(what)} in both {one} and {other}"
                f"{escape(examples)}",
                soft_wrap=True,
            )
    repeated = {name: found for name, found in plan.repeats.items() if name and found.repeated}
    if repeated:
        parts = ", ".join(
            f"{name} {count(found.repeated)} ({share(found.repeated, found.values)})"
            for name, found in repeated.items()
        )
        console.print(
            f"         payloads that stand in an earlier row too: {escape(parts)}", soft_wrap=True
        )
