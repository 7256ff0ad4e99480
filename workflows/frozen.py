"""The frozen test rows of a snapshot, and what challenger and champion answer to them.

A champion is asked again each time; numbers of the day it was promoted are of other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from features.columns import PayloadColumns
from features.shard import Embeddings, vectors
from features.snapshot import Snapshot
from features.sources import RowReader, Source, SourceError
from features.store import Store
from features.stored_embeddings import embedded_rows, read_embeddings
from training.candidate import CandidateRecord, predict, read_predictions
from workflows.gate import FrozenRows, Predictions
from workflows.pipeline import StageError

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
    store: Store, *, snapshot: Snapshot, target: str, modalities: Sequence[str]
) -> FrozenRows:
    """The labelled test rows of a snapshot, with their slices and the modalities they lack."""
    columns = ["split", f"target.{target}", *(f"slice.{name}" for name in snapshot.slices)]
    table = store.read_samples(snapshot, columns=columns)
    targets = _objects(table[f"target.{target}"])
    tested = np.array(table["split"].to_pylist(), dtype=object) == "test"
    rows = np.flatnonzero(tested & np.array([label is not None for label in targets], dtype=bool))
    return FrozenRows(
        rows=rows,
        targets=targets[rows],
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
    probabilities = vectors(table["probabilities"])[tested]
    order = np.argsort(rows)
    return Predictions(rows=rows[order], labels=_labels(record, probabilities[order]))


def champion_predictions(
    model: LoadedModel,
    *,
    store: Store,
    snapshot: Snapshot,
    columns: Mapping[str, PayloadColumns],
    rows: np.ndarray,
    raw_rows: RawRows,
) -> Predictions:
    """A registered model's answers to rows of this snapshot.

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
        probabilities = np.concatenate(
            [
                _answer(model, held=held, rows=rows[start : start + ANSWERED_ROWS])
                for start in range(0, max(1, len(rows)), ANSWERED_ROWS)
            ]
        )
        return Predictions(rows=rows, labels=_labels(model.record, probabilities))
    answers = model.predict(raw_rows(rows))
    return Predictions(rows=rows, labels=np.array(answers["prediction"].tolist(), dtype=object))


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


def _answer(model: LoadedModel, *, held: Mapping[str, Embeddings], rows: np.ndarray) -> np.ndarray:
    """A model's answers to some rows, from embeddings that are in memory."""
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
    return predict(model.fitted(), embeddings=embeddings, presence=presence, masks=masks)


def _labels(record: CandidateRecord, probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each row, as it stands in the table, `[N]`."""
    classes = np.empty(len(record.classes), dtype=object)
    classes[:] = list(record.classes)
    return classes[probabilities.argmax(axis=1)]


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values
