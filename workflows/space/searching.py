"""A query, from what a person gives to what is found: the model, the index, the samples.

Scoring's rules hold here too: embeddings of an encoder that is not the one which the model was
fitted to are refused, whether the query's or the snapshot's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape

from features.columns import PayloadColumns
from features.snapshot import Snapshot
from features.sources import Source, SourceError
from features.storage import Storage
from features.store import Store
from workflows.cluster import Connection, in_actors
from workflows.console import duration, progress, several
from workflows.pipeline import ConfigurationError, Pipeline, StageError
from workflows.promotion.lineage import resolve
from workflows.promotion.operate import storage_of
from workflows.space import cells
from workflows.space.found import Found, located, read_payloads, source_of, tell
from workflows.space.index import (
    Each,
    Index,
    Way,
    here,
    make_cells,
    make_index,
    nearest,
    planned,
    with_cells,
)
from workflows.space.model import Chosen, model_with_space
from workflows.space.parts import MEAN_ROWS
from workflows.space.projecting import Projection
from workflows.space.query import Query, understand
from workflows.space.recall import EXACT, Recall, recall_of
from workflows.space.scope import (
    chosen_modalities,
    chosen_snapshot,
    refuse_other_encoders,
)

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel
    from workflows.tracking import MlflowClient

HERE_ROWS = 500_000
"""Samples whose vectors are made by this process; more are worth starting Ray for, which takes
seconds, as a projection of so many rows does."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is searched for, where, and how."""

    uri: str
    """Of the model, as `score` takes it."""
    query: str
    candidate: str | None = None
    """Of the pipeline, in whose space is searched instead of the model's."""
    modality: str | None = None
    """Of the query; found out if it is not given."""
    among: Sequence[str] = ()
    """Modalities that are searched; all by default."""
    top: int = 10
    each: bool = False
    """Whether so many of every modality are wanted: those of the query's own are mostly nearer."""
    snapshot: str | None = None
    """The beginning of an id, or `latest`; by default that of the model."""
    way: Way = "auto"
    opened: bool = False
    """Whether what is found is to be opened, for a page; else it is named alone."""
    folder: str = "."
    """From where the query's relative path starts."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found, and by what."""

    model: str
    """Name, and version."""
    query: Query
    snapshot: str
    dataset: str
    found: Sequence[Found]
    wanted: int
    """How many were asked for."""
    searched: dict[str, int]
    """By modality, how many vectors."""
    recall: dict[str, Recall]
    """By modality that was searched."""
    seconds: float
    """Of the search alone."""
    made: int
    """Parts of the index that were not there before."""
    columns: dict[str, PayloadColumns]
    folder: str
    """From where relative paths in the table start."""


def search_registered(
    request: Request,
    *,
    client: MlflowClient,
    store: Storage | None,
    pipeline: Pipeline | None,
    connection: Connection,
    console: Console,
) -> Answer:
    """Search with a registered model, through the store of the pipeline that registered it.

    With a pipeline also in the space of one of its candidates; see `model_with_space`.
    ConfigurationError for a query, or options, that cannot be, and for a model without a space;
    StageError for encoders that are others, and for a snapshot that is not there.
    """
    if request.candidate is not None and pipeline is None:
        raise ConfigurationError(
            "--candidate: name the pipeline's YAML file, which says whose candidates are meant"
        )
    version = None if request.candidate else resolve(client, name=request.uri)
    own = store
    if own is None and pipeline is not None:  # wherever that was which registered the version
        own = pipeline.open_store().storage
    elif own is None and version is not None:
        own = storage_of(version)
    if own is None:
        raise ConfigurationError(
            f"the store of the pipeline that registered {request.uri} is not to be reached from "
            "here; name it by --store"
        )
    with model_with_space(
        version,
        pipeline=pipeline,
        candidate=request.candidate,
        client=client,
        store=Store(own),
        base=request.folder,
        console=console,
    ) as (chosen, model):
        return _search(
            request,
            model=model,
            chosen=chosen,
            store=Store(own),
            pipeline=pipeline,
            connection=connection,
            console=console,
        )


def _search(
    request: Request,
    *,
    model: LoadedModel,
    chosen: Chosen,
    store: Store,
    pipeline: Pipeline | None,
    connection: Connection,
    console: Console,
) -> Answer:
    query = understand(
        request.query, inputs=model.inputs, modality=request.modality, folder=request.folder
    )
    among = chosen_modalities(request.among, model=model)
    snapshot = chosen_snapshot(store, wanted=request.snapshot, of=chosen)
    refuse_other_encoders(model, snapshot=snapshot, among=among)
    vector = _vector(query, model=model)
    projections = {m: _projection(model, store=store, modality=m) for m in model.inputs}
    indexes = _indexes(
        store,
        snapshot,
        projections=[projections[m] for m in among],
        connection=connection,
        console=console,
    )
    by_cells = [with_cells(request.way, vectors=index.vectors) for index in indexes]
    recall = {}
    for index, cell in zip(indexes, by_cells, strict=True):
        recall[index.modality] = EXACT
        if cell and index.vectors:
            _make_cells(store, index, connection=connection, console=console)
            asking = projections[_asked_by(query, snapshot=snapshot, model=model) or index.modality]
            recall[index.modality] = recall_of(
                store,
                index,
                snapshot,
                asking=asking,
                each=_each(sum(part.rows for part in index.parts), connection=connection),
            )
    begun = time.perf_counter()
    together = [[pair] for pair in zip(indexes, by_cells, strict=True)]
    if not request.each:
        together = [[pair for some in together for pair in some]]
    found = [
        one
        for some in together
        for one in located(
            store,
            snapshot,
            nearest=nearest(
                store,
                [index for index, _ in some],
                query=vector,
                k=request.top,
                by_cells=[cell for _, cell in some],
            ),
        )
    ]
    seconds = time.perf_counter() - begun
    tell(store, snapshot, found=found)
    source = _source(snapshot, pipeline=pipeline)
    columns = {m: model.inputs[m].columns for m in among}
    read_payloads(found, snapshot=snapshot, columns=columns, source=source, opened=request.opened)
    return Answer(
        model=chosen.title,
        query=query,
        snapshot=snapshot.id,
        dataset=snapshot.name,
        found=found,
        wanted=request.top * len(together),
        searched={index.modality: index.vectors for index in indexes},
        recall=recall,
        seconds=seconds,
        made=sum(index.made for index in indexes),
        columns=columns,
        folder="" if source is None else source.folder,
    )


def _vector(query: Query, *, model: LoadedModel) -> np.ndarray:
    """The query in the space, float32 `[S]`."""
    import pandas as pd

    rows = pd.DataFrame(
        {name: pd.Series([cell], dtype=object) for name, cell in query.cells.items()}
    )
    vectors, (problem,) = model.vectors(rows)
    vector = vectors[query.modality][0].astype(np.float32)
    if not np.isfinite(vector).all():
        said = problem or f"{query.modality}: there is no payload"
        raise ConfigurationError(f"QUERY {query.given!r} cannot be used: {said}")
    return vector


def _projection(model: LoadedModel, *, store: Store, modality: str) -> Projection:
    return Projection(
        store=store.storage,
        record=model.record,
        weights=model.weights(),
        modality=modality,
        encoder=model.inputs[modality].encoder_fingerprint,
    )


def _asked_by(query: Query, *, snapshot: Snapshot, model: LoadedModel) -> str | None:
    """The query's modality, if the snapshot has vectors of it that queries can be drawn from."""
    part = snapshot.modalities.get(query.modality)
    expected = model.inputs[query.modality].encoder_fingerprint
    usable = part is not None and part.encoder_fingerprint == expected and part.present
    return query.modality if usable else None


def _indexes(
    store: Store,
    snapshot: Snapshot,
    *,
    projections: Sequence[Projection],
    connection: Connection,
    console: Console,
) -> list[Index]:
    """The indexes of the modalities, made where they are not there, with a bar for each."""
    found = []
    for projection in projections:
        plan = planned(store, snapshot, projection=projection)
        missing, rows = plan.missing, sum(part.rows for part in plan.missing)
        each = _each(rows, connection=connection)
        begun = time.perf_counter()
        with progress(console) as bar:
            task = bar.add_task("index", total=len(missing), note=projection.modality)
            index = make_index(
                store,
                snapshot,
                plan=plan,
                each=each,
                on_part=lambda _, bar=bar, task=task: bar.update(task, advance=1),  # type: ignore[misc]
            )
        if missing:
            console.print(
                f"[bold]index[/bold]    {escape(projection.modality)}: "
                f"{several(len(missing), 'part')} of {len(index.parts)} made of "
                f"{several(rows, 'sample')} in {duration(time.perf_counter() - begun)}"
            )
        found.append(index)
    return found


def _each(rows: int, *, connection: Connection) -> Each:
    """Where parts of so many samples are made."""
    if rows <= HERE_ROWS:
        return here
    connection.open()
    return in_actors


def _make_cells(store: Store, index: Index, *, connection: Connection, console: Console) -> None:
    begun = time.perf_counter()
    try:
        cells.require()
        missing = sum(not store.storage.exists(part.cells_path) for part in index.parts)
        each = _each(MEAN_ROWS * missing, connection=connection)
        made = make_cells(store, index, each=each)
    except ImportError as error:
        raise StageError(f"{error}; or compare with all vectors, by --index exact") from error
    if made:
        console.print(
            f"[bold]index[/bold]    {escape(index.modality)}: cells of {several(made, 'part')} "
            f"in {duration(time.perf_counter() - begun)}"
        )


def _source(snapshot: Snapshot, *, pipeline: Pipeline | None) -> Source | None:
    """The table that a snapshot was made of, by the pipeline if it is still its table."""
    if pipeline is not None:
        try:
            source = pipeline.open_source()
        except (ConfigurationError, SourceError, OSError):
            return source_of(snapshot)
        if source.files == snapshot.files:
            return source
    return source_of(snapshot)
