"""`sensorium store ls | verify | gc`."""

from __future__ import annotations

from typing import Annotated

import typer

from workflows.commands.app import EXIT_CODES, FAILED, store
from workflows.console import make_console

StoreOrPipeline = Annotated[
    str,
    typer.Argument(
        metavar="STORE_OR_PIPELINE",
        help="A folder, s3://BUCKET/PREFIX, or a pipeline's YAML file, whose store is meant.",
        show_default=False,
    ),
]


@store.command(epilog=f"Example: sensorium store ls s3://bucket/store\n\n{EXIT_CODES}")
def ls(place: StoreOrPipeline) -> None:
    """Sizes and counts by kind, encoder and snapshot; what refers to what. Changes nothing.

    Exits with 1 if a shard that a snapshot names is not there.
    """
    from workflows.upkeep import find_store, list_store

    found, _ = find_store(place)
    if not list_store(found, console=make_console()):
        raise typer.Exit(FAILED)


@store.command(epilog=f"Example: sensorium store verify pipeline.yaml\n\n{EXIT_CODES}")
def verify(
    place: StoreOrPipeline,
    snapshot: Annotated[
        str | None, typer.Option(help="Id of the snapshot to verify, or its beginning.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Verify all snapshots, not the latest ones alone.")
    ] = False,
) -> None:
    """Read all files of the latest snapshots and compare them with their names and checksums.

    Exits with 1 if any is damaged or lost. Changes nothing.
    """
    from workflows.upkeep import find_store, verify_store

    found, pipeline = find_store(place)
    if not verify_store(found, pipeline, wanted=snapshot, every=every, console=make_console()):
        raise typer.Exit(FAILED)


@store.command(epilog=f"Example: sensorium store gc pipeline.yaml --dry-run\n\n{EXIT_CODES}")
def gc(
    place: StoreOrPipeline,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")
    ] = False,
    grace: Annotated[
        str, typer.Option(help="Keep what is younger than this: 90s, 30m, 12h, 7d, 2w.")
    ] = "7d",
    keep: Annotated[
        int, typer.Option(help="Keep so many of the last snapshots of each name.", min=1)
    ] = 3,
    candidates: Annotated[
        bool,
        typer.Option(
            "--candidates",
            help="Delete fitted candidates too that neither a kept snapshot nor a registered "
            "model needs, and the state of trainings that were never ended.",
        ),
    ] = False,
) -> None:
    """Delete what no kept snapshot names, is old enough, and no running job may need."""
    from workflows.upkeep import collect, find_store, parse_duration

    seconds = parse_duration(grace)
    found, pipeline = find_store(place)
    collect(
        found,
        pipeline,
        keep=keep,
        grace=seconds,
        candidates=candidates,
        dry_run=dry_run,
        console=make_console(),
    )
