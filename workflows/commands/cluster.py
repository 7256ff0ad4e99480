"""`sensorium submit`: a run on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from workflows.commands.app import STAGES, PipelineFile, command
from workflows.commands.ending import Deadline, OnOverlap
from workflows.console import make_console, size


@command(panel=STAGES, example="sensorium submit pipeline.yaml --address http://head:8265")
def submit(
    pipeline: PipelineFile,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the cluster's dashboard; RAY_API_SERVER_ADDRESS, or "
            "http://127.0.0.1:8265, by default.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="End when the job has been started.")
    ] = False,
    on_overlap: OnOverlap = "leave",
    deadline: Deadline = None,
) -> None:
    """`run` as a job on a Ray cluster: ship code and YAML, follow the log, exit as it does.

    Ctrl-C ends the following, not the job; the same command attaches again.
    No credentials are sent: the cluster's nodes have their own.
    """
    from workflows.pipeline import load_pipeline
    from workflows.submit import follow
    from workflows.submit import submit as submit_job
    from workflows.upkeep import parse_duration

    console, errors = make_console(), make_console(stderr=True)
    options = ["--on-overlap", on_overlap]
    if deadline is not None:
        parse_duration(deadline)
        options += ["--deadline", deadline]
    job, shipment = submit_job(load_pipeline(pipeline), address=address, options=options)
    if job.attached:
        console.print(f"[bold]submit[/bold]   {job.id} is under way; attached to it")
    else:
        console.print(
            f"[bold]submit[/bold]   {job.id}: {len(shipment.files)} files, {size(shipment.bytes)}"
        )
    if detach:
        console.print(f"         the same command follows it; to end it: {job.how_to_stop}")
        return
    try:
        code = follow(job, on_lost=lambda text: errors.print(escape(text), soft_wrap=True))
    except KeyboardInterrupt:
        errors.print(
            f"the job goes on, and the same command follows it again; to end it: {job.how_to_stop}",
            soft_wrap=True,
        )
        raise
    if code:
        raise typer.Exit(code)
