"""What challenger and champion answer to the frozen test rows of a snapshot.

A champion is asked again each time; numbers of the day it was promoted are of other rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from features.columns import PayloadColumns
from features.shard import Embeddings, vectors
from features.snapshot import Snapshot
from features.store import Store
from features.stored_embeddings import read_embeddings
from training.answering import embed, predict, ranks
from training.candidate import CandidateRecord, read_predictions
from training.task import ClassificationSpec, RegressionSpec, parse_task
from workflows.pipeline import StageError
from workflows.promotion.compare import Predictions
from workflows.promotion.frozen import RawRows

if TYPE_CHECKING:
    from workflows.scoring import LoadedModel

ANSWERED_ROWS = 1024
"""Rows that a model answers at a time."""


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
