"""Batch scoring: a registered model's answers to every row of a table, through the store.

The table is embedded as stage 1 embeds one, with the model's encoders, so that what is in the store
is not computed again; then each shard of samples is answered on the cluster, and written as one
Parquet file. What is there is not written again, so a scoring that was killed goes on; a manifest,
written last, says what the files are. The driver keeps one small record a shard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from features.fingerprint import fingerprint, nearest_hint
from features.planning import make_plan
from features.scan_tasks import Run
from features.snapshot import Snapshot
from features.sources import Source, SourceError, open_source
from features.sources.formats import FORMATS
from features.spec import DatasetSpec, FeatureSpec, PayloadKey, ShardSize, SplitSpec
from features.storage import Storage, open_storage
from features.store import Store
from training.task import parse_task
from workflows.cluster import Connection, in_actors
from workflows.console import duration, progress, several
from workflows.embed import embed_table
from workflows.pipeline import ConfigurationError, StageError
from workflows.promotion.lineage import resolve
from workflows.promotion.operate import storage_of
from workflows.promotion.registry import tags_of
from workflows.serving.answer_shard import RESULT, WORK, Scored, Scoring, ShardScorer, ShardToScore

if TYPE_CHECKING:
    from features.plan import Plan
    from workflows.scoring import LoadedModel
    from workflows.tracking import MlflowClient

MANIFEST, CLAIM = "_manifest.json", "_scoring.json"
"""Readers of folders of Parquet files pass over names that begin so."""
SHARD_ROWS = ShardSize()
"""Samples of a file of answers."""
COUNTED = ("rows", "unanswered", "problems")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored, by what, and what is to be written of it."""

    uri: str
    """Of the model, as MLflow names it: `models:/digits@champion`."""
    table: str
    id_column: str
    format: str | None = None
    payload_key: PayloadKey = "stat"
    """As `dataset.payload_key` has it; by another than the pipeline's, nothing is known again."""
    folder: str = "."
    """From where the table's relative path starts."""
    like: Sequence[str] = ()
    """Names of datasets in the store whose embeddings may be those of this table's payloads."""
    shapley: bool = False
    embeddings: bool = False
    max_bad_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a scoring came to."""

    rows: int
    unanswered: int
    problems: int
    written: int
    """Files that were not there before."""
    files: int


def open_place(root: str, *, what: str) -> Storage:
    """A folder or bucket that a person has named; ConfigurationError if there can be none."""
    try:
        return open_storage(root)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigurationError(f"{what}: {error}") from error


def score_registered(
    request: Request,
    *,
    client: MlflowClient,
    store: Storage | None,
    out: Storage,
    connection: Connection,
    console: Console,
) -> Done:
    """As `score`, with the model loaded, through the store of the pipeline that registered it."""
    from workflows import scoring

    version = resolve(client, name=request.uri)
    own = storage_of(version) if store is None else store
    if own is None:
        raise ConfigurationError(
            f"the store of the pipeline that registered {request.uri} is not to be reached from "
            "here; name one by --store, an empty folder for instance"
        )
    try:
        like: tuple[str, ...] = (Store(own).read_snapshot(tags_of(version)["snapshot"]).name,)
    except (KeyError, FileNotFoundError):
        like = ()
    # The version, whatever its alias means when this is run again.
    uri = f"models:/{version.name}/{version.version}"
    with scoring.loaded(uri, base=request.folder) as model:
        return score(
            replace(request, uri=uri, like=like),
            model=model,
            store=Store(own),
            out=out,
            connection=connection,
            console=console,
        )


def score(
    request: Request,
    *,
    model: LoadedModel,
    store: Store,
    out: Storage,
    connection: Connection,
    console: Console,
) -> Done:
    """Answer every row of a table, and write the answers into `out`.

    ConfigurationError for a table, or options, that cannot be; StageError for an encoder that is
    not the one which the model was fitted to, and for an `out` that holds other answers.
    BudgetExceeded if more payloads are bad than is allowed.
    """
    begun = time.perf_counter()
    _refuse_options(request, model=model)
    source = _source(request)
    features = _features(model, columns=source.columns())
    about = _about(request, model=model)
    key = _claim(out, about=about)
    embedded = embed_table(
        partial(
            _plan,
            request=request,
            name=f"score-{fingerprint([out.root, request.table])[:16]}",
            source=source,
            features=features,
            store=store,
        ),
        store=store,
        to_train=False,
        connection=connection,
        console=console,
    )
    snapshot = embedded.snapshot
    shards = list(_shards(snapshot, store=store, key=key))
    files = {shard.path: shard.rows for shard in shards}
    before = _read(out, MANIFEST)
    if before is not None and set(before["files"]) == set(files):
        console.print("         nothing to do: every answer is there")
        return Done(written=0, **{name: before[name] for name in COUNTED}, files=len(files))
    there = out.list("") & set(files)
    console.print(
        f"[bold]score[/bold]    {several(snapshot.rows, 'row')} with {escape(request.uri)}: "
        f"{several(len(files) - len(there), 'file')} to write, {len(there)} there"
    )
    scoring = Scoring(
        store=store.storage,
        out=out,
        record=model.record,
        weights=model.weights(),
        encoders={m: item.encoder_fingerprint for m, item in model.inputs.items()},
        dims={m: item.dim for m, item in model.inputs.items()},
        id_column=request.id_column,
        shapley=request.shapley,
        embeddings=request.embeddings,
    )
    found = _answer(scoring, shards, connection=connection, console=console)
    totals = {name: sum(getattr(one, name) for one in found) for name in COUNTED}
    about |= {"snapshot": snapshot.id, **totals, "files": files}
    out.replace(MANIFEST, json.dumps(about, indent=1).encode())
    stale = set(before["files"]) - set(files) if before is not None else set()
    out.delete(sorted(stale))
    console.print(
        f"         {several(totals['rows'], 'row')} answered in "
        f"{duration(time.perf_counter() - begun)}"
    )
    return Done(written=len(files) - len(there), files=len(files), **totals)


def _refuse_options(request: Request, *, model: LoadedModel) -> None:
    if request.shapley and parse_task(model.record.task).type == "retrieval":
        raise ConfigurationError(
            "--shapley: the values are of what a model answers to a row, and this one, of a "
            "retrieval, gives vectors"
        )


def _source(request: Request) -> Source:
    """The table, with its column of ids."""
    if request.format is not None and request.format not in FORMATS:
        hint = nearest_hint(request.format, FORMATS)
        raise ConfigurationError(
            f"--format: there is no format {request.format!r}; {hint}it is one of "
            f"{', '.join(FORMATS)}"
        )
    try:
        source = open_source(request.table, folder=request.folder, format=request.format)
        columns = source.columns(wanted=[request.id_column])
    except (SourceError, OSError) as error:
        raise ConfigurationError(f"{request.table}: {error}") from error
    if request.id_column not in columns:
        hint = nearest_hint(request.id_column, columns)
        raise ConfigurationError(
            f"--id: the table has no column {request.id_column!r}; {hint}its columns: "
            f"{', '.join(columns)}"
        )
    return source


def _features(model: LoadedModel, *, columns: Sequence[str]) -> dict[str, FeatureSpec]:
    """The model's inputs as features of the table; those without a column there are missing."""
    found = {}
    for name, item in model.inputs.items():
        read = item.columns
        lacking = [column for column in read.names if column not in columns]
        if set(lacking) >= set(read.columns):
            continue
        if lacking:
            raise ConfigurationError(
                f"the table has no column {lacking[0]!r}, and others that the model reads for "
                f"{name!r}; its columns: {', '.join(columns)}"
            )
        one = read.columns[0] if len(read.columns) == 1 and read.kind != "table" else None
        found[name] = FeatureSpec(
            column=one,
            columns=() if one else read.columns,
            uri=read.uri,
            start=read.start,
            end=read.end,
            encoder=model.encoder(name),
        )
    if not found:
        wanted = ", ".join(dict.fromkeys(c for i in model.inputs.values() for c in i.columns.names))
        raise ConfigurationError(
            f"the table has none of the columns that the model reads ({wanted}); its columns: "
            f"{', '.join(columns)}"
        )
    return found


def _plan(
    run: Run | None,
    *,
    request: Request,
    name: str,
    source: Source,
    features: Mapping[str, FeatureSpec],
    store: Store,
) -> Plan:
    try:
        return make_plan(
            name=name,
            source=source,
            # A split is of no account here, and follows from the id.
            dataset=DatasetSpec(
                path=request.table,
                id=request.id_column,
                split=SplitSpec(group=request.id_column),
                payload_key=request.payload_key,
                max_bad_fraction=request.max_bad_fraction,
                shard_rows=SHARD_ROWS,
            ),
            features=features,
            target=None,
            store=store,
            like=request.like,
            run=run,
        )
    except SourceError as error:
        raise ConfigurationError(str(error)) from error


def _about(request: Request, *, model: LoadedModel) -> dict[str, Any]:
    """What decides over the answers to a row, but for the row; and for a reader, the model."""
    inputs = {name: item.encoder_fingerprint for name, item in model.inputs.items()}
    return {
        "model": request.uri,
        "candidate": model.record.fingerprint,
        "encoders": inputs,
        "classes": list(model.record.classes),
        "shapley": request.shapley,
        "embeddings": request.embeddings,
    }


def _claim(out: Storage, *, about: Mapping[str, Any]) -> str:
    """Make the folder that of this scoring; a key of it. StageError if it is another's."""
    same = {name: value for name, value in about.items() if name != "model"}
    kept = _read(out, CLAIM)
    if kept is None:
        others = sorted(name for name in out.list("") if name != CLAIM)
        if others:
            raise StageError(
                f"{out.root} holds {others[0]} and is not of a scoring; name an empty folder"
            )
        out.write_once(CLAIM, json.dumps(about, indent=1).encode())
        kept = _read(out, CLAIM) or dict(about)
    if {name: value for name, value in kept.items() if name != "model"} != same:
        raise StageError(
            f"{out.root} holds the answers of {kept.get('model')}, with other options or another "
            "version of the model; name another folder, or delete this one"
        )
    return fingerprint(same)


def _read(out: Storage, name: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(out.read(name))
    except FileNotFoundError:
        return None
    return value


def _shards(snapshot: Snapshot, *, store: Store, key: str) -> Iterator[ShardToScore]:
    """The shards of a snapshot, each with the name of the file of its answers."""
    listed = {
        name: store.quarantined_shards_of(part.encoder_fingerprint)
        for name, part in snapshot.modalities.items()
    }
    for number, samples in enumerate(snapshot.samples):
        over = {name: part.shards[number] for name, part in snapshot.modalities.items()}
        made = fingerprint({"scoring": key, "samples": samples.fingerprint, "shards": over})
        yield ShardToScore(
            path=f"part-{number:06d}-{made[:12]}.parquet",
            samples=samples.path,
            rows=samples.rows,
            shards=over,
            quarantined={
                name: [shard for shard in shards if shard in listed[name]]
                for name, shards in over.items()
            },
        )


def _answer(
    scoring: Scoring,
    shards: Sequence[ShardToScore],
    *,
    connection: Connection,
    console: Console,
) -> list[Scored]:
    found = []
    with progress(console) as bar:
        task = bar.add_task("score", total=len(shards), note="starting Ray")
        connection.open()
        texts = [WORK.dump_json(shard).decode() for shard in shards]
        for text in in_actors(ShardScorer, scoring, texts):
            found.append(RESULT.validate_json(text))
            bar.update(task, advance=1, note=several(sum(one.rows for one in found), "row"))
    return found
