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
    from workflows.embed import BudgetExceeded
    from workflows.pipeline import ConfigurationError, StageError
    from workflows.quarantine import quarantine_table

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
    except (StageError, OSError) as error:  # of a disk or a server: it says which file and why
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
def embed(
    pipeline: PipelineFile,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try the payloads in quarantine again.")
    ] = False,
) -> None:
    """Stage 1: compute the embeddings that are not in the store, and commit a snapshot."""
    from workflows.cluster import Connection
    from workflows.embed import embed as run_embed
    from workflows.pipeline import load_pipeline

    loaded = load_pipeline(pipeline)
    with Connection() as connection:
        run_embed(loaded, connection=connection, console=make_console(), retry=retry)


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


@app.command(epilog=f"Example: sensorium trace pipeline.yaml T-1042 --json\n\n{EXIT_CODES}")
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


@app.command(epilog="Example: sensorium schema > pipeline.schema.json")
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    from workflows.pipeline import PipelineSpec

    typer.echo(json.dumps(PipelineSpec.model_json_schema(), indent=2, ensure_ascii=False))


@app.command(
    epilog="Example: sensorium check-encoder my_encoders.LengthSpec --option scale=10 "
    f"--samples a.txt --samples b.txt\n\n{EXIT_CODES}"
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


store = typer.Typer(
    name="store",
    help="What a store holds, whether it is whole, and the deletion of what nobody needs.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(store)

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


def _exit_by_gate(promotion: Promotion, *, dry_run: bool = False) -> None:
    """Exit with 3 if the gate refused, now; a refusal of an earlier run is nothing new."""
    if promotion.refused and (promotion.changed or dry_run):
        raise typer.Exit(GATE_REFUSED)
