"""What is done with registered models: approved, taken back, and asked where they come from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from workflows.commands.app import MODELS, command, names_a_pipeline
from workflows.console import make_console, table

if TYPE_CHECKING:
    from features.storage import Storage
    from workflows.pipeline import Pipeline
    from workflows.tracking import MlflowClient

Which = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PIPELINE",
        help="A registered model's name, or the pipeline's YAML file.",
        show_default=False,
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="MLflow's tracking URI, if a model is named; $MLFLOW_TRACKING_URI by default.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@dataclass(frozen=True, kw_only=True)
class Meant:
    """Which model a person means, and where it is registered."""

    uri: str
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION`."""
    tracking: str
    pipeline: Pipeline | None
    """If its YAML file was named."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A registered model, where it is registered, and the store in which turns are taken."""

    client: MlflowClient
    model: str
    storage: Storage | None


@command(panel=MODELS, example="sensorium approve pipeline.yaml")
def approve(
    which: Which,
    version: Annotated[
        int | None,
        typer.Option(help="The version; that of the alias `challenger` by default.", min=1),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    tracking: Tracking = None,
) -> None:
    """Make a challenger champion that passed the gate and waits for a person's word."""
    from workflows.promotion.operate import approve as approve_version

    with _registered(which, tracking=tracking) as found:
        done = approve_version(
            found.client,
            model=found.model,
            number=None if version is None else str(version),
            reason=reason,
            storage=found.storage,
        )
    _tell(which, model=found.model, detail=done.detail)


def _tell(which: str, *, model: str, detail: str) -> None:
    """What was done to the alias, and that the report does not know of it."""
    console = make_console()
    console.print(f"{escape(model)}: {escape(detail)}", soft_wrap=True)
    if names_a_pipeline(which):
        console.print(
            f"The report is of before: `sensorium report {escape(which)}` writes it anew.",
            soft_wrap=True,
        )


@command(panel=MODELS, example='sensorium rollback digits --reason "wrong labels in May"')
def rollback(
    which: Which,
    to: Annotated[
        int | None,
        typer.Option(help="The version; the champion before the present one by default.", min=1),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "",
    tracking: Tracking = None,
) -> None:
    """Make an earlier champion champion again; what is taken back is not promoted by a run."""
    from workflows.promotion.operate import roll_back

    with _registered(which, tracking=tracking) as found:
        done = roll_back(
            found.client,
            model=found.model,
            to=None if to is None else str(to),
            reason=reason,
            storage=found.storage,
        )
    _tell(which, model=found.model, detail=done.detail)


@command(panel=MODELS, example="sensorium history digits --json")
def history(which: Which, as_json: Json = False, tracking: Tracking = None) -> None:
    """How the champion changed: when, by whom, from which version to which, and on what grounds."""
    from workflows.promotion.history import history as moves_of

    with _registered(which, tracking=tracking) as found:
        moves = moves_of(found.client, model=found.model)
    if as_json:
        json.dump([asdict(move) for move in moves], sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    console = make_console()
    if not moves:
        console.print(f"{escape(found.model)} never had a champion")
        return
    made = table(
        "when (UTC)", "from", "to", "how", "why", numbers=("from", "to"), wraps=("why", "how")
    )
    for move in moves:
        how = f"{move.kind} by {move.by}" if move.by else move.kind
        when = move.at.removesuffix("+00:00").replace("T", " ")
        made.add_row(when, move.before or "–", move.after or "–", escape(how), escape(move.verdict))
    console.print(made)


@command(panel=MODELS, example="sensorium lineage models:/digits@champion")
def lineage(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_URI|NAME|PIPELINE",
            help="models:/NAME/3, models:/NAME@champion, a name (its champion) or a YAML file.",
            show_default=False,
        ),
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(help="List the versions that were fitted to this snapshot.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="List the versions that take embeddings of this encoder.")
    ] = None,
    as_json: Json = False,
    tracking: Tracking = None,
) -> None:
    """What a version was made of, or which versions were made of a snapshot or an encoder.

    Snapshots and encoders are named by their ids, or the first six characters or more.
    """
    users = snapshot is not None or encoder is not None
    if which is None and not users:
        raise typer.BadParameter("name a model, or else give --snapshot or --encoder")
    if users:
        if which is not None:
            if not names_a_pipeline(which):
                raise typer.BadParameter(
                    "--snapshot and --encoder ask for all versions: with them, name a YAML file, "
                    "which says where MLflow is, or nothing"
                )
            from workflows.pipeline import load_pipeline

            tracking = tracking or load_pipeline(which).tracking_uri
        _print_users(snapshot=snapshot, encoder=encoder, as_json=as_json, tracking=tracking)
    elif which is not None:
        _print_lineage(which, as_json=as_json, tracking=tracking)


def _print_lineage(which: str, *, as_json: bool, tracking: str | None) -> None:
    from workflows.promotion.lineage import lineage_of, resolve

    with _registered(which, tracking=tracking) as found:
        of = lineage_of(found.client, version=resolve(found.client, name=found.model))
    if as_json:
        json.dump(asdict(of), sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    aliases = f" ({', '.join(of.aliases)})" if of.aliases else ""
    lines = [
        ("model", f"{of.model} version {of.version}{aliases}, registered {of.registered}"),
        ("candidate", f"{of.candidate} {of.fingerprint}"),
        ("snapshot", of.snapshot),
        *(("source", source) for source in of.sources or ("not recorded",)),
        *(("encoder", f"{name}: {encoder}") for name, encoder in of.encoders.items()),
        ("config", f"{of.config} (pipeline.json of the training's run)"),
        ("code", f"git {of.code}"),
        ("run", of.run),
        ("gate", of.gate),
        ("parent", f"version {of.parent}" if of.parent else "none: there was no champion before"),
        ("promoted", of.promoted or "never"),
    ]
    console = make_console()
    for name, text in lines:
        console.print(f"[bold]{name:<10}[/bold]{escape(text)}", soft_wrap=True)


def _print_users(
    *, snapshot: str | None, encoder: str | None, as_json: bool, tracking: str | None
) -> None:
    from workflows.promotion.lineage import lineage_of, users_of
    from workflows.tracking import connected

    with connected(tracking_uri(tracking)) as client:
        found = [
            lineage_of(client, version=version)
            for version in users_of(client, snapshot=snapshot, encoder=encoder)
        ]
    if as_json:
        json.dump([asdict(item) for item in found], sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    console = make_console()
    if not found:
        console.print("no registered version uses it")
        return
    made = table("model", "version", "alias", "candidate", "snapshot", "gate", numbers=("version",))
    for item in found:
        made.add_row(
            escape(item.model),
            item.version,
            ", ".join(item.aliases),
            escape(item.candidate),
            item.snapshot[:12],
            item.gate,
        )
    console.print(made)


@contextmanager
def _registered(which: str, *, tracking: str | None) -> Iterator[Registered]:
    """The model that is meant, by the pipeline that registers it or by its name."""
    from workflows.pipeline import load_pipeline
    from workflows.tracking import connected

    if names_a_pipeline(which) or Path(which).is_file():
        pipeline = load_pipeline(which)
        with connected(tracking or pipeline.tracking_uri) as client:
            storage = pipeline.open_store().storage
            yield Registered(client=client, model=pipeline.model, storage=storage)
        return
    with connected(tracking_uri(tracking)) as client:
        refuse_unknown(client, name=which)
        yield Registered(client=client, model=which, storage=None)


def meant_by(which: str, *, tracking: str | None) -> Meant:
    """The model that a URI means; the champion, if it is a name or a pipeline's YAML file."""
    from workflows.pipeline import load_pipeline

    if names_a_pipeline(which):
        pipeline = load_pipeline(which)
        return Meant(
            uri=f"models:/{pipeline.model}@champion",
            tracking=tracking or pipeline.tracking_uri,
            pipeline=pipeline,
        )
    uri = which if "/" in which else f"models:/{which}@champion"
    return Meant(uri=uri, tracking=tracking_uri(tracking), pipeline=None)


def refuse_unknown(client: MlflowClient, *, name: str) -> None:
    """StageError, with what there is, for a model that is not registered."""
    from features.fingerprint import nearest_hint
    from workflows.pipeline import StageError

    model = name.removeprefix("models:/").partition("@")[0].partition("/")[0]
    names = sorted(found.name for found in client.search_registered_models())
    if model not in names:
        raise StageError(
            f"no model {model!r} is registered here; {nearest_hint(model, names)}registered: "
            f"{', '.join(names) or 'none'}"
        )


def tracking_uri(given: str | None) -> str:
    """Where MLflow is, if no pipeline says it; ConfigurationError if nothing does."""
    import os

    from workflows.pipeline import ConfigurationError
    from workflows.tracking import there_is_a_database

    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigurationError(
            "this alone does not say where MLflow is: give --tracking URI, set "
            "MLFLOW_TRACKING_URI, or name the pipeline's YAML file instead"
        )
    if not there_is_a_database(uri):
        raise ConfigurationError(f"{uri}: no such file; see --tracking and MLFLOW_TRACKING_URI")
    return uri
