"""Commands that look and change nothing: `trace`, `schema`, `check-encoder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from workflows.commands.app import FAILED, LOOKING, PipelineFile, command
from workflows.console import make_console


@command(panel=LOOKING, example="sensorium trace pipeline.yaml T-1042 --json")
def trace(
    pipeline: PipelineFile,
    sample_id: Annotated[
        str, typer.Argument(metavar="SAMPLE_ID", help="Id of the sample.", show_default=False)
    ],
    snapshot: Annotated[
        str | None,
        typer.Option(help="Id of a snapshot, or its beginning; the latest by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Where a sample comes from, and by what, when and where its embeddings were computed."""
    from workflows.pipeline import load_pipeline
    from workflows.trace import print_trace, trace_json
    from workflows.trace import trace as find

    found = find(load_pipeline(pipeline), sample_id=sample_id, wanted=snapshot)
    if as_json:
        typer.echo(trace_json(found))
    else:
        print_trace(found, console=make_console())


@command(panel=LOOKING, example="sensorium schema > pipeline.schema.json")
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from workflows.pipeline import PipelineSpec

    typer.echo(json.dumps(PipelineSpec.model_json_schema(), indent=2, ensure_ascii=False))


@command(
    panel=LOOKING,
    example="sensorium check-encoder my_encoders.LengthSpec --option scale=10 "
    "--samples a.txt --samples b.txt",
)
def check_encoder(
    encoder: Annotated[
        str,
        typer.Argument(
            help="Dotted path of an EncoderSpec of yours, or the name of a built-in encoder.",
            show_default=False,
        ),
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A field of the spec, its value as in YAML."),
    ] = None,
    samples: Annotated[
        list[Path] | None,
        typer.Option(help="Files of payloads to try it on, instead of built-in ones."),
    ] = None,
) -> None:
    """Try an encoder on payloads: shapes, neighbours, threads, odd ones, another process.

    Exits with 1 if a check fails, and says what to do.
    """
    from workflows.check_encoder import check

    found = check(encoder, options=option or [], samples=samples or [], console=make_console())
    if not found:
        raise typer.Exit(FAILED)
