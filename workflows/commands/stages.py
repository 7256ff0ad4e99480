"""The stages as commands, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workflows.commands.app import GATE_REFUSED, STAGES, PipelineFile, command
from workflows.commands.ending import Deadline, OnOverlap, told
from workflows.console import make_console

if TYPE_CHECKING:
    from workflows.promotion.outcome import Promotion


@command(panel=STAGES, example="sensorium demo --dir /tmp/digits")
def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Folder for everything that the demo makes.")
    ] = Path("demo"),
    samples: Annotated[
        int | None, typer.Option(help="Use only so many of the 1,797 digits.", min=300, max=1797)
    ] = None,
) -> None:
    """The main job, on digits spoken, written and drawn in three languages, which it makes."""
    from workflows.outcome import Outcome
    from workflows.run import run, run_demo

    console = make_console()
    with told(Outcome(), as_json=False, console=console):
        pipeline = run_demo(directory, samples=samples, console=console)
        exit_by_gate(run(pipeline, console=console))


@command(panel=STAGES, example="sensorium plan pipeline.yaml")
def plan(pipeline: PipelineFile) -> None:
    """What would be embedded and trained, in rows, and what it costs. Changes nothing."""
    from workflows.pipeline import load_pipeline
    from workflows.run import print_plan

    print_plan(load_pipeline(pipeline), console=make_console())


@command(panel=STAGES, example="sensorium embed pipeline.yaml")
def embed(
    pipeline: PipelineFile,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try the payloads in quarantine again.")
    ] = False,
    on_overlap: OnOverlap = "leave",
) -> None:
    """Stage 1: compute the embeddings that are not in the store, and commit a snapshot."""
    from workflows.cluster import Connection
    from workflows.embed import embed as run_embed
    from workflows.outcome import Outcome
    from workflows.overlap import one_at_a_time
    from workflows.pipeline import load_pipeline
    from workflows.stopping import stopping

    console = make_console()
    with told(Outcome(), as_json=False, console=console):
        loaded = load_pipeline(pipeline)
        with stopping() as check, Connection() as connection:
            one_at_a_time(
                loaded,
                lambda confirm: run_embed(
                    loaded, connection=connection, console=console, retry=retry, confirm=confirm
                ),
                on_overlap=on_overlap,
                check=check,
                console=console,
            )


@command(panel=STAGES, example="sensorium train pipeline.yaml")
def train(pipeline: PipelineFile, on_overlap: OnOverlap = "leave") -> None:
    """Stage 2: fit the candidates that are not yet fitted to the last snapshot."""
    from workflows.cluster import Connection
    from workflows.outcome import Outcome
    from workflows.overlap import one_at_a_time
    from workflows.pipeline import load_pipeline
    from workflows.stopping import stopping
    from workflows.train import last_snapshot
    from workflows.train import train as run_train

    console = make_console()
    with told(Outcome(), as_json=False, console=console):
        loaded = load_pipeline(pipeline)
        with stopping() as check, Connection() as connection:
            one_at_a_time(
                loaded,
                lambda confirm: run_train(
                    loaded,
                    snapshot=last_snapshot(loaded),
                    connection=connection,
                    console=console,
                    confirm=confirm,
                ),
                on_overlap=on_overlap,
                check=check,
                console=console,
            )


@command(panel=STAGES, example="sensorium promote pipeline.yaml --dry-run")
def promote(
    pipeline: PipelineFile,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge, but register and move nothing.")
    ] = False,
    on_overlap: OnOverlap = "leave",
) -> None:
    """Stage 3: record the runs, register the winner, and make it champion if the gate passes."""
    from workflows.outcome import Outcome
    from workflows.overlap import one_at_a_time
    from workflows.pipeline import load_pipeline
    from workflows.run import promote_last

    console = make_console()
    with told(Outcome(), as_json=False, console=console):
        loaded = load_pipeline(pipeline)
        if dry_run:  # it changes nothing, and is in nobody's way
            promotion = promote_last(loaded, dry_run=True, console=console)
        else:
            promotion = one_at_a_time(
                loaded,
                lambda confirm: promote_last(
                    loaded, dry_run=False, console=console, confirm=confirm
                ),
                on_overlap=on_overlap,
                console=console,
            )
        exit_by_gate(promotion, dry_run=dry_run)


@command(panel=STAGES, example="sensorium run pipeline.yaml --deadline 2h --json")
def run(
    pipeline: PipelineFile,
    on_overlap: OnOverlap = "leave",
    deadline: Deadline = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what the run came to as one line of JSON, the last; always."
        ),
    ] = False,
) -> None:
    """All three stages and the report; each does only what is not done.

    One run of a pipeline is at work at a time.
    SIGTERM ends it as the deadline does, with 130.
    """
    from workflows.outcome import Outcome
    from workflows.pipeline import load_pipeline
    from workflows.run import run as run_all
    from workflows.upkeep import parse_duration

    console, outcome = make_console(), Outcome()
    with told(outcome, as_json=as_json, console=console):
        seconds = None if deadline is None else parse_duration(deadline)
        loaded = load_pipeline(pipeline)
        promotion = run_all(
            loaded, console=console, on_overlap=on_overlap, deadline=seconds, outcome=outcome
        )
        exit_by_gate(promotion)


@command(panel=STAGES, example="sensorium report pipeline.yaml --out /tmp/report.html")
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


def exit_by_gate(promotion: Promotion, *, dry_run: bool = False) -> None:
    """Exit with 3 if the gate refused, now; a refusal of an earlier run is nothing new."""
    if promotion.refused and (promotion.changed or dry_run):
        raise typer.Exit(GATE_REFUSED)
