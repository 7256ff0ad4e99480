"""What is done with a registered model's answers: `score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from features.spec import PayloadKey
from workflows.commands.app import MODELS, command, names_a_pipeline
from workflows.commands.registry import Tracking, refuse_unknown, tracking_uri
from workflows.console import count, make_console, several


@command(
    panel=MODELS,
    example="sensorium score digits.yaml new.parquet s3://bucket/answers --id id",
)
def score(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_URI|PIPELINE",
            help="models:/NAME@ALIAS or models:/NAME/VERSION; a name alone, or the pipeline's YAML "
            "file, is its champion.",
            show_default=False,
        ),
    ],
    table: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="The table: whatever `dataset.path` may be. Columns as the model was trained on.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="Folder or s3://BUCKET/PREFIX for Parquet files of answers, in the table's order.",
            show_default=False,
        ),
    ],
    id_column: Annotated[
        str, typer.Option("--id", help="Column of unique ids, which the answers keep.")
    ] = "sample_id",
    format: Annotated[
        str | None, typer.Option(help="Format of the table; by its name if it is not given.")
    ] = None,
    payload_key: Annotated[
        PayloadKey,
        typer.Option(
            help="What stands for a payload behind a path: the pipeline's `dataset.payload_key`."
        ),
    ] = "stat",
    store: Annotated[
        str | None,
        typer.Option(
            help="Store of the embeddings; by default that of the pipeline which registered the "
            "model, whose embeddings are not computed again.",
            show_default=False,
        ),
    ] = None,
    shapley: Annotated[
        bool,
        typer.Option("--shapley", help="Write what each modality adds to each number, exactly."),
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Write each modality's embedding.")
    ] = False,
    max_bad_fraction: Annotated[
        float,
        typer.Option(
            help="Largest share of a modality's payloads that may be bad before nothing is "
            "written (exit code 4).",
            min=0,
            max=1,
        ),
    ] = 1.0,
    tracking: Tracking = None,
) -> None:
    """Answer every row of a table with a registered model; goes on where it was killed.

    Bad payloads are treated as missing, and a row of which nothing is known has no answer; the
    column `problems` says why.
    """
    from workflows import scoring
    from workflows.cluster import Connection
    from workflows.pipeline import StageError, load_pipeline
    from workflows.serving.score import Request, open_place, score_registered
    from workflows.tracking import connected

    console = make_console()
    if names_a_pipeline(model):
        pipeline = load_pipeline(model)
        uri, model = tracking or pipeline.tracking_uri, f"models:/{pipeline.model}@champion"
    else:
        uri = tracking_uri(tracking)
        model = model if "/" in model else f"models:/{model}@champion"
    with connected(uri) as client, Connection() as connection:
        refuse_unknown(client, name=model)
        try:
            done = score_registered(
                Request(
                    uri=model,
                    table=table,
                    id_column=id_column,
                    format=format,
                    payload_key=payload_key,
                    folder=str(Path.cwd()),
                    shapley=shapley,
                    embeddings=embeddings,
                    max_bad_fraction=max_bad_fraction,
                ),
                client=client,
                store=None if store is None else open_place(store, what="--store"),
                out=open_place(out, what="OUT"),
                connection=connection,
                console=console,
            )
        except (scoring.EncoderMismatch, scoring.ForeignModel) as error:
            raise StageError(f"{model}: {error}") from error
    console.print(
        f"{several(done.rows, 'row')} in {several(done.files, 'file')} at {out}: "
        f"{count(done.unanswered)} without an answer, {count(done.problems)} with a payload that "
        "could not be used",
        soft_wrap=True,
    )
