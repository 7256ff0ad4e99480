"""A registered model put to use elsewhere: `serve`, `export`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from workflows.commands.app import MODELS, command, names_a_pipeline
from workflows.commands.registry import Tracking, refuse_unknown, tracking_uri
from workflows.console import make_console

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_URI|PIPELINE",
        help="models:/NAME@ALIAS or models:/NAME/VERSION; a name alone, or the pipeline's YAML "
        "file, is its champion.",
        show_default=False,
    ),
]


@command(panel=MODELS, example="sensorium serve digits --port 5001 --root /data/photos")
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 5001,
    root: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or s3://BUCKET/PREFIX below which requests may name files; as often as "
            "there are some. Without it, $SENSORIUM_SERVE_ROOTS; else no file is read.",
            show_default=False,
        ),
    ] = None,
    max_mb: Annotated[int, typer.Option(help="Largest request, in MB.", min=1)] = 64,
    tracking: Tracking = None,
) -> None:
    """Answer HTTP requests as `mlflow models serve` does, but strictly: nonsense is refused by 400.

    POST to /invocations: texts as they are, files as `data:;base64,CONTENT`, or by a path or URI
    below a --root. A payload that is broken is treated as missing, and `problems` say so.
    """
    from workflows.serving.places import ROOTS
    from workflows.serving.server import serve as serve_model

    os.environ[ROOTS] = ",".join(root) if root else os.environ.get(ROOTS, "")
    with _loaded(model, tracking=tracking) as found:
        make_console().print(
            f"[bold]serve[/bold]    {escape(found.uri)} at http://{host}:{port}/invocations",
            soft_wrap=True,
        )
        serve_model(found.model, host=host, port=port, most_bytes=max_mb * 10**6)
