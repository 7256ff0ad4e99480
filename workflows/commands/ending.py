"""How a run ends, for those who watch over it: its line of JSON, and who else is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from workflows.commands.app import BAD_CONFIGURATION, FAILED, INTERRUPTED, OVER_BUDGET

if TYPE_CHECKING:
    from workflows.outcome import Outcome, Status

OnOverlap = Annotated[
    Literal["leave", "wait"],
    typer.Option(
        help="Where another run of the pipeline is at work: `leave` it to that and end with 0, as "
        "a schedule comes again (once it is seen to be alive, within 30 s; what a dead one left is "
        "done, within 3 minutes); or `wait` for its end, then look what is left to do."
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="End after this time (90s, 30m, 2h) with 1, and keep what is done; the next run goes "
        "on from there.",
        show_default=False,
    ),
]


@contextmanager
def told(outcome: Outcome, *, as_json: bool, console: Console) -> Iterator[None]:
    """Note how the block ends; as JSON, print that last, however it ends.

    A run that was left to another is a good end.
    """
    from workflows.overlap import LeftToAnother

    code = 0
    try:
        yield
    except LeftToAnother as left:
        outcome.status = "left"
        console.print(escape(str(left)), soft_wrap=True)
    except typer.Exit as end:
        code = end.exit_code
        raise
    except BaseException as error:
        outcome.status, code = status_of(error)
        outcome.error = str(error) or type(error).__name__
        raise
    finally:
        if as_json:
            typer.echo(outcome.line(exit_code=code))


def status_of(error: BaseException) -> tuple[Status, int]:
    """What an error is in an outcome, and the exit code that `workflows.cli` makes of it."""
    from workflows.embed import BudgetExceeded
    from workflows.outcome import DeadlinePassed
    from workflows.pipeline import ConfigurationError
    from workflows.stopping import Terminated

    if isinstance(error, Terminated):
        return "terminated", INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, ConfigurationError | typer.BadParameter):
        return "bad configuration", BAD_CONFIGURATION
    if isinstance(error, BudgetExceeded):
        return "over budget", OVER_BUDGET
    if isinstance(error, DeadlinePassed):
        return "out of time", FAILED
    return "failed", FAILED
