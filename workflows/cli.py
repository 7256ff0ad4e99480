"""The `sensorium` command: one function a subcommand, and the exit codes.

Nothing heavy is imported before it is needed, so that a run with nothing to do is quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from workflows.console import make_console

if TYPE_CHECKING:
    from workflows.promote import Promotion

EXIT_CODES = (
    "Exit codes: 0 done, or nothing to do; 1 failed; 2 bad usage or configuration; "
    "3 the gate refused; 4 more bad rows than the budget allows; 130 interrupted."
)
FAILED, BAD_CONFIGURATION, GATE_REFUSED, OVER_BUDGET, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    name="sensorium",
    help="Embed once, fuse many, promote the best: from a table of samples with text, images "
    "and sound to a registered multimodal model.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="The pipeline's YAML file.", show_default=False)
]


def main() -> None:
    """Run the command line, and turn the errors that are meant for its user into exit codes."""
    from workflows.embed import BudgetExceeded, quarantine_table
    from workflows.pipeline import ConfigurationError, StageError

    errors = make_console(stderr=True)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            errors.print("[bold red]interrupted[/bold red] run the same command again to go on")
        raise
    except ConfigurationError as error:
        for line in str(error).splitlines():
            errors.print(f"[bold red]configuration[/bold red] {escape(line)}", soft_wrap=True)
        raise SystemExit(BAD_CONFIGURATION) from None
    except BudgetExceeded as error:
        errors.print(f"[bold red]over budget[/bold red] {escape(str(error))}", soft_wrap=True)
        errors.print(quarantine_table(error.counts, rows=error.rows))
        errors.print(
            "Nothing was committed; the embeddings of the good rows are kept. Mend the payloads "
            "or raise dataset.max_bad_fraction, and run again."
        )
        raise SystemExit(OVER_BUDGET) from None
    except StageError as error:
        errors.print(f"[bold red]failed[/bold red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(FAILED) from None


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


@app.command(epilog=f"Example: sensorium demo --dir /tmp/digits\n\n{EXIT_CODES}")
def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Folder for everything that the demo makes.")
    ] = Path("demo"),
    samples: Annotated[
        int | None, typer.Option(help="Use only so many of the 1,797 digits.", min=300, max=1797)
    ] = None,
) -> None:
    """The main job, on digits spoken, written and drawn in three languages, which it makes."""
    from workflows.run import run, run_demo

    console = make_console()
    pipeline = run_demo(directory, samples=samples, console=console)
    _exit_by_gate(run(pipeline, console=console))


@app.command(epilog=f"Example: sensorium plan pipeline.yaml\n\n{EXIT_CODES}")
def plan(pipeline: PipelineFile) -> None:
    """What would be embedded and trained, in rows, and what it costs. Changes nothing."""
    from workflows.pipeline import load_pipeline
    from workflows.run import print_plan

    print_plan(load_pipeline(pipeline), console=make_console())


@app.command(epilog=f"Example: sensorium embed pipeline.yaml\n\n{EXIT_CODES}")
def embed(pipeline: PipelineFile) -> None:
    """Stage 1: compute the embeddings that are not in the store, and commit a snapshot."""
    from workflows.cluster import Connection
    from workflows.embed import embed as run_embed
    from workflows.pipeline import load_pipeline

    loaded = load_pipeline(pipeline)
    with Connection() as connection:
        run_embed(loaded, connection=connection, console=make_console())


@app.command(epilog=f"Example: sensorium train pipeline.yaml\n\n{EXIT_CODES}")
def train(pipeline: PipelineFile) -> None:
    """Stage 2: fit the candidates that are not yet fitted to the last snapshot."""
    from workflows.cluster import Connection
    from workflows.pipeline import load_pipeline
    from workflows.train import last_snapshot
    from workflows.train import train as run_train

    loaded = load_pipeline(pipeline)
    snapshot = last_snapshot(loaded)
    with Connection() as connection:
        run_train(loaded, snapshot=snapshot, connection=connection, console=make_console())


@app.command(epilog=f"Example: sensorium promote pipeline.yaml --dry-run\n\n{EXIT_CODES}")
def promote(
    pipeline: PipelineFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge, but register and move nothing.")
    ] = False,
) -> None:
    """Stage 3: record the runs, register the winner, and make it champion if the gate passes."""
    from workflows.pipeline import load_pipeline
    from workflows.run import promote_last

    promotion = promote_last(load_pipeline(pipeline), dry_run=dry_run, console=make_console())
    _exit_by_gate(promotion, dry_run=dry_run)


@app.command(epilog=f"Example: sensorium run pipeline.yaml\n\n{EXIT_CODES}")
def run(pipeline: PipelineFile) -> None:
    """All three stages and the report; each does only what is not done."""
    from workflows.pipeline import load_pipeline
    from workflows.run import run as run_all

    _exit_by_gate(run_all(load_pipeline(pipeline), console=make_console()))


@app.command(
    epilog=f"Example: sensorium report pipeline.yaml --out /tmp/report.html\n\n{EXIT_CODES}"
)
def report(
    pipeline: PipelineFile,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; NAME-report.html beside the YAML by default."),
    ] = None,
) -> None:
    """Write the HTML report of the last run."""
    from workflows.pipeline import load_pipeline
    from workflows.run import write_last_report

    write_last_report(load_pipeline(pipeline), out=out, console=make_console())


@app.command(epilog="Example: sensorium schema > pipeline.schema.json")
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from workflows.pipeline import PipelineSpec

    typer.echo(json.dumps(PipelineSpec.model_json_schema(), indent=2, ensure_ascii=False))


def _exit_by_gate(promotion: Promotion, *, dry_run: bool = False) -> None:
    """Exit with 3 if the gate refused, now; a refusal of an earlier run is nothing new."""
    if promotion.refused and (promotion.changed or dry_run):
        raise typer.Exit(GATE_REFUSED)
