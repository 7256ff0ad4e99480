"""One run of a pipeline, or of one of its stages, changes things at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from rich.console import Console
from rich.markup import escape

from features.turns import Overtaken, Turn
from workflows.outcome import Outcome
from workflows.pipeline import Pipeline

WAIT_SECONDS = 5.0
"""How often a run that waits for another looks whether that has ended."""
OnOverlap = Literal["leave", "wait"]
T = TypeVar("T")


class LeftToAnother(Exception):
    """Another run of the pipeline is at work, and this one was to leave it to that."""


def one_at_a_time(
    pipeline: Pipeline,
    work: Callable[[Callable[[], None]], T],
    *,
    on_overlap: OnOverlap,
    console: Console,
    check: Callable[[], None] | None = None,
    outcome: Outcome | None = None,
) -> T:
    """What `work` returns, called when no other run of the pipeline is at work.

    It is given a function to call before it changes anything, which takes the pipeline's turn
    (`features.turns`) or makes sure of it, and first calls `check`; who changes nothing takes none.
    Where another is at work this waits for its end, or raises LeftToAnother. It is left to the
    living alone, or a job that is tried again after a crash would end well and have done nothing.
    Where another was quicker between the look and the change, `work` is called again.
    """
    what = f"run {pipeline.name}"
    with Turn(pipeline.open_store().storage, name=what, what=what) as lease:

        def confirm() -> None:
            if check is not None:
                check()
            lease.confirm()

        while True:
            _look(lease, on_overlap=on_overlap, outcome=outcome or Outcome(), console=console)
            try:
                return work(confirm)
            except Overtaken:
                console.print("         another run has been at work meanwhile; looking again")


def _look(lease: Turn, *, on_overlap: OnOverlap, outcome: Outcome, console: Console) -> None:
    """Return when no other run of the pipeline is at work; LeftToAnother if one is, and so wished.

    The turn itself is taken when there is something to change.
    """

    def say(what: str) -> None:
        console.print(f"[bold]run[/bold]      waiting {escape(what)}")

    if lease.look() is None:
        return
    with outcome.stage("wait"):
        if on_overlap == "wait":
            lease.wait(every=WAIT_SECONDS, on_wait=lambda who: say(f"for {who}"))
            return
        who = lease.living_holder(
            every=WAIT_SECONDS, on_wait=lambda who: say(f"to see whether this is alive: {who}")
        )
    if who is not None:
        raise LeftToAnother(
            f"another run is at work, and this one leaves it to that: {who} (`--on-overlap wait` "
            "would wait for its end)"
        )
