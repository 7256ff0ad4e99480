"""The frozen test rows of a snapshot: their labels and slices, and how they read in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from features.samples import groups_of
from features.snapshot import Snapshot
from features.sources import RowReader, Source, SourceError
from features.store import Store
from features.stored_embeddings import embedded_rows
from training.task import TaskSpec
from workflows.pipeline import StageError
from workflows.promotion.compare import FrozenRows

if TYPE_CHECKING:
    import pandas as pd


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


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    values = np.empty(len(column), dtype=object)
    values[:] = column.to_pylist()
    return values
