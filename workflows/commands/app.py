"""The application that all commands belong to, and their exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 1 failed; 2 bad usage or configuration; "
    "3 the gate refused; 4 more bad rows than the budget allows; 130 interrupted."
)
FAILED, BAD_CONFIGURATION, GATE_REFUSED, OVER_BUDGET, INTERRUPTED = 1, 2, 3, 4, 130

STAGES, MODELS, LOOKING = "Stages", "Models", "Looking closer"
"""The panels of `--help`."""
ORDER = (
    *("demo", "plan", "embed", "train", "promote", "run", "submit", "report"),
    *("score", "serve", "export", "search", "approve", "rollback", "history", "lineage"),
    *("trace", "schema", "check-encoder", "store"),
)
"""Commands as `--help` lists them."""


class Commands(TyperGroup):
    """The commands in the order in which they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="sensorium",
    cls=Commands,
    help="Embed once, fuse many, promote the best: from a table of samples with text, images "
    "and sound to a registered multimodal model.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


store = typer.Typer(
    name="store",
    help="What a store holds, whether it is whole, and the deletion of what nobody needs.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(store, rich_help_panel=LOOKING)

Command = TypeVar("Command", bound=Callable[..., None])


def command(*, panel: str, example: str, name: str | None = None) -> Callable[[Command], Command]:
    """Make a function a command of `sensorium`, with an example and the exit codes in its help."""
    epilog = f"Example: {example}\n\n{EXIT_CODES}"
    return app.command(name, rich_help_panel=panel, epilog=epilog)


PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="The pipeline's YAML file.", show_default=False)
]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"sensorium {version('sensorium')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def names_a_pipeline(which: str) -> bool:
    """Whether what a person has named is a pipeline's YAML file, and no model."""
    return which.endswith((".yaml", ".yml"))
