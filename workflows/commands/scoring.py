"""What is done with registered models: rows are answered, and the like of something found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from features.spec import PayloadKey
from workflows.commands.app import MODELS, command
from workflows.commands.registry import Json, Tracking, meant_by, refuse_unknown
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
    from workflows.pipeline import StageError
    from workflows.serving.score import Request, open_place, score_registered
    from workflows.tracking import connected

    console = make_console()
    meant = meant_by(model, tracking=tracking)
    with connected(meant.tracking) as client, Connection() as connection:
        refuse_unknown(client, name=meant.uri)
        try:
            done = score_registered(
                Request(
                    uri=meant.uri,
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
            raise StageError(f"{meant.uri}: {error}") from error
    console.print(
        f"{several(done.rows, 'row')} in {several(done.files, 'file')} at {out}: "
        f"{count(done.unanswered)} without an answer, {count(done.problems)} with a payload that "
        "could not be used",
        soft_wrap=True,
    )


@command(
    panel=MODELS,
    example='sensorium search digits.yaml "a seven, leaning left" --in photo --html found.html',
)
def search(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_URI|PIPELINE",
            help="models:/NAME@ALIAS or models:/NAME/VERSION; a name alone, or the pipeline's YAML "
            "file, is its champion. It must be an alignment, which has a space to search; of a "
            "pipeline whose champion is none, the best alignment of its last run is taken.",
            show_default=False,
        ),
    ],
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            help="A text, or the path or s3:// URI of an image, sound or film; numbers as JSON.",
            show_default=False,
        ),
    ],
    candidate: Annotated[
        str | None,
        typer.Option(
            help="Search in the space of this candidate of the pipeline, champion or not.",
            show_default=False,
        ),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(
            help="Modality of the query; by default that of a file's content, or of text.",
            show_default=False,
        ),
    ] = None,
    among: Annotated[
        list[str] | None,
        typer.Option(
            "--in", help="Search this modality alone; may be repeated.", show_default=False
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-k", help="How many are shown.", min=1, max=200)
    ] = 10,
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Show so many of each modality: those of the query's own are mostly nearer.",
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a page with thumbnails and players.", show_default=False),
    ] = None,
    as_json: Json = False,
    snapshot: Annotated[
        str | None,
        typer.Option(
            help="Search this snapshot: the beginning of its id, or `latest`; by default the one "
            "that the model was fitted to.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        Literal["auto", "exact", "cells"],
        typer.Option(
            help="Compare with all vectors, or look into cells of them (FAISS); by default the "
            "first up to 2,000,000.",
        ),
    ] = "auto",
    store: Annotated[
        str | None,
        typer.Option(
            help="Store of the embeddings; by default that of the pipeline which registered the "
            "model.",
            show_default=False,
        ),
    ] = None,
    tracking: Tracking = None,
) -> None:
    """Find the samples of a snapshot, of any modality, that are nearest to a text or a file.

    The index is made on the first search of a model, and kept in the store; later ones make only
    the parts of what has changed.
    """
    import datetime
    import sys
    from contextlib import nullcontext

    from workflows import scoring
    from workflows.cluster import Connection
    from workflows.pipeline import StageError
    from workflows.reporting.whole_file import whole_file
    from workflows.serving.score import open_place
    from workflows.space.searching import Request, search_registered
    from workflows.space.telling import answer_json, print_answer
    from workflows.tracking import connected

    # What programs read is JSON alone.
    console = make_console(stderr=as_json)
    meant = meant_by(model, tracking=tracking)
    with nullcontext() if html is None else whole_file(html, what="--html") as page:
        with connected(meant.tracking) as client, Connection() as connection:
            if candidate is None:
                refuse_unknown(client, name=meant.uri)
            try:
                answer = search_registered(
                    Request(
                        uri=meant.uri,
                        query=query,
                        candidate=candidate,
                        modality=modality,
                        among=tuple(among or ()),
                        top=top,
                        each=each,
                        snapshot=snapshot,
                        way=index,
                        opened=html is not None,
                        folder=str(Path.cwd()),
                    ),
                    client=client,
                    store=None if store is None else open_place(store, what="--store"),
                    pipeline=meant.pipeline,
                    connection=connection,
                    console=console,
                )
            except (scoring.EncoderMismatch, scoring.ForeignModel) as error:
                raise StageError(f"{meant.uri}: {error}") from error
        if page is not None:
            from workflows.reporting.search_page import render

            page.write(render(answer, created=datetime.datetime.now(datetime.UTC)))
    if as_json:
        sys.stdout.write(answer_json(answer) + "\n")
        return
    print_answer(answer, console=console)
    if html is not None:
        console.print(f"page: {html}", soft_wrap=True, markup=False)
