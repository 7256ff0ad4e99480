"""The frozen test rows of a snapshot, and what challenger and champion answer to them.

A champion is asked again each time; numbers of the day it was promoted are of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from features.columns import PayloadColumns
from features.samples import groups_of
from features.shard import Embeddings, vectors
from features.snapshot import Snapshot
from features.sources import RowReader, Source, SourceError
from features.store import Store
from features.stored_embeddings import embedded_rows, read_embeddings
from training.answering import embed, predict, ranks
from training.candidate import CandidateRecord, read_predictions
from training.task import ClassificationSpec, RegressionSpec, TaskSpec, parse_task
from workflows.pipeline import StageError
from workflows.promotion.gate import FrozenRows, Predictions

if TYPE_CHECKING:
    import pandas as pd

    from workflows.scoring import LoadedModel

ANSWERED_ROWS = 1024
"""Rows that a model answers at a time."""
RawRows = Callable[[np.ndarray], "pd.DataFrame"]
"""Row numbers of the snapshot, ascending → those rows of the user's table."""


class TableChanged(StageError):
    """The table is no longer the one that the snapshot was made of."""


def frozen_rows(
    store: Store,
    *,
    snapshot: Snapshot,
    task: TaskSpec,
    names: tuple[Any, ...],
    modalities: Sequence[str],
) -> FrozenRows:
    """The labelled test rows of a snapshot, with their slices and the modalities they lack.

    `names` are the classes or labels, in the order in which answers to the rows hold them.
    """
    from training.tasks import known_targets

    columns = ["split", "group", *(f"slice.{name}" for name in snapshot.slices)]
    table = store.read_samples(
        snapshot, columns=[*columns, *(f"target.{name}" for name in task.targets)]
    )
    labels = {name: table[f"target.{name}"] for name in task.targets}
    found = known_targets(task, labels, names=names, rows=len(table))
    tested = np.array(table["split"].to_pylist(), dtype=object) == "test"
    rows, groups = np.flatnonzero(tested & found.known), groups_of(table)
    return FrozenRows(
        rows=rows,
        drawn=None if groups is None else groups[rows],
        targets=found.values[rows],
        slices={name: _objects(table[f"slice.{name}"])[rows] for name in snapshot.slices},
        missing={
            name: ~np.isin(rows, embedded_rows(store, snapshot, modality=name))
            for name in modalities
        },
    )


def stored_predictions(store: Store, *, record: CandidateRecord) -> Predictions:
    """A candidate's answers to the test rows, written when it was fitted to this snapshot."""
    table = read_predictions(store, record.fingerprint)
    tested = np.array(table["split"].to_pylist(), dtype=object) == "test"
    rows = table["row"].to_numpy().astype(np.int64)[tested]
    answers = vectors(table[parse_task(record.task).answer_column])[tested]
    order = np.argsort(rows)
    return Predictions(rows=rows[order], answers=answers[order])


def champion_predictions(
    model: LoadedModel,
    *,
    store: Store,
    snapshot: Snapshot,
    columns: Mapping[str, PayloadColumns],
    rows: np.ndarray,
    raw_rows: RawRows,
    names: tuple[Any, ...],
) -> Predictions:
    """A registered model's answers to rows of this snapshot, in the order of `names`.

    `columns` are those that the snapshot's modalities were read from. If the model reads the
    same ones, through the same encoders, it answers from the snapshot's embeddings, else from
    the raw rows, through encoders of its own; EncoderMismatch if those are no longer there.
    """
    if all(
        name in snapshot.modalities
        and snapshot.modalities[name].encoder_fingerprint == item.encoder_fingerprint
        and columns[name] == item.columns
        for name, item in model.inputs.items()
    ):
        held = {name: read_embeddings(store, snapshot, modality=name) for name in model.inputs}
        if model.record.task.get("type") == "retrieval":
            from training.data.payload_numbers import read_payload_numbers

            numbers = read_payload_numbers(store, snapshot, modalities=tuple(model.inputs))
            none = np.full(len(rows), -1)
            payloads = {
                name: numbers[name].numpy()[rows] if name in numbers else none
                for name in model.inputs
            }
            answers = _ranks(model, held=held, rows=rows, payloads=payloads)
        else:
            answers = np.concatenate(
                [
                    predict(model.fitted(), record=model.record, **part)
                    for part in _parts(held, rows=rows)
                ]
            )
    elif model.record.task.get("type") == "retrieval":
        raise StageError(
            "the champion finds samples through other encoders or columns than this snapshot's, "
            "and cannot be asked for its ranks; name another `tracking.model`, or embed with its "
            "encoders"
        )
    else:
        said = model.predict(raw_rows(rows))
        answers = np.array(said[parse_task(model.record.task).answer_column].tolist())
    return Predictions(rows=rows, answers=aligned(answers, record=model.record, names=names))


def aligned(answers: np.ndarray, *, record: CandidateRecord, names: tuple[Any, ...]) -> np.ndarray:
    """A champion's answers `[N, C]` in the order of the names that a challenger answers.

    A class that it does not know is of probability 0; those that only it knows are together in a
    last column that is never right. StageError if the two answer unlike questions.
    """
    own, task = list(record.classes), parse_task(record.task)
    if task.type == "retrieval":
        return answers
    if isinstance(task, RegressionSpec) and set(own) != set(names):
        raise StageError(
            f"the champion answers the numbers {', '.join(own)}, and the challenger "
            f"{', '.join(names)}; a model that answers something else needs a `tracking.model` of "
            "its own"
        )
    found = np.zeros((len(answers), len(names)), answers.dtype)
    for place, name in enumerate(names):
        if name in own:
            found[:, place] = answers[:, own.index(name)]
    foreign = [place for place, name in enumerate(own) if name not in names]
    if isinstance(task, ClassificationSpec) and foreign:
        found = np.column_stack([found, answers[:, foreign].max(axis=1)])
    return found


def table_rows(
    source: Source, *, store: Store, snapshot: Snapshot, id_column: str, columns: Sequence[str]
) -> RawRows:
    """A reader of some columns of the table that a snapshot was made of.

    It leaves out columns that the table does not have, and raises TableChanged if the rows are
    no longer those of the snapshot.
    """

    def read(rows: np.ndarray) -> pd.DataFrame:
        there = set(source.columns())
        wanted = [name for name in columns if name in there]
        reader = RowReader(source, columns=list(dict.fromkeys([id_column, *wanted])))
        found = []
        for shard, first in zip(snapshot.samples, snapshot.first_rows, strict=True):
            chosen = rows[(rows >= first) & (rows < first + shard.rows)] - first
            if len(chosen) == 0:
                continue
            ids = store.read_table(shard.path, columns=["sample_id"])["sample_id"].take(chosen)
            try:
                table = reader.read(shard.ranges).take(pa.array(chosen))
            except (SourceError, IndexError) as error:  # fewer rows, or fewer files
                raise TableChanged(f"{changed}: {error}") from error
            if table[id_column].cast(pa.string()).to_pylist() != ids.to_pylist():
                raise TableChanged(f"{changed}: other samples stand in its rows")
            found.append(table)
        frame = pa.concat_tables(found, promote_options="permissive").to_pandas()
        return frame.drop(columns=set(frame.columns) - set(wanted))

    changed = (
        f"the table {', '.join(source.files[:3])} is no longer that of snapshot {snapshot.id}; "
        "embed first, so that champion and challenger answer the same rows"
    )
    return read


def _ranks(
    model: LoadedModel,
    *,
    held: Mapping[str, Embeddings],
    rows: np.ndarray,
    payloads: Mapping[str, np.ndarray],
) -> np.ndarray:
    """A retrieval's answers: each is a rank among all the rows."""
    vectors, presence = [], []
    for part in _parts(held, rows=rows):
        vectors.append(embed(model.fitted(), **part))
        presence.append(part["presence"])
    return ranks(
        {name: np.concatenate([part[name] for part in vectors]) for name in vectors[0]},
        presence={name: np.concatenate([part[name] for part in presence]) for name in held},
        payloads=payloads,
    )


def _parts(held: Mapping[str, Embeddings], *, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """What a model is asked, some rows at a time."""
    for start in range(0, max(1, len(rows)), ANSWERED_ROWS):
        yield _taken(held, rows=rows[start : start + ANSWERED_ROWS])


def _taken(held: Mapping[str, Embeddings], *, rows: np.ndarray) -> dict[str, Any]:
    """The embeddings of some rows, whether each is present, and the masks of sequences."""
    embeddings, presence, masks = {}, {}, {}
    for name, found in held.items():
        present = np.isin(rows, found.rows)
        presence[name] = present
        places = np.searchsorted(found.rows, rows[present])
        if found.lengths is None:
            embeddings[name] = np.zeros((len(rows), found.values.shape[1]), np.float32)
            embeddings[name][present] = found.values[places]
            continue
        values, steps = found.padded(places)
        shape = (len(rows), max(1, steps.shape[1]))
        embeddings[name] = np.zeros((*shape, found.values.shape[1]), np.float32)
        masks[name] = np.zeros(shape, bool)
        if len(places):
            embeddings[name][present], masks[name][present] = values, steps
    return {"embeddings": embeddings, "presence": presence, "masks": masks}


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values
