"""What challenger and champion answer to the frozen test rows of a snapshot.

A champion is asked again each time; numbers of the day it was promoted are of other rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from features.columns import PayloadColumns
from features.shard import Embeddings, vectors
from features.shard_names import shard_fingerprint
from features.snapshot import ModalityShards, Snapshot
from features.store import Store
from features.stored_embeddings import read_embeddings
from training.answering import embed, predict, ranks
from training.candidate import CandidateRecord, load_model, read_predictions
from training.held import in_parts
from training.task import ClassificationSpec, RegressionSpec, parse_task
from workflows.inputs import Input
from workflows.pipeline import StageError
from workflows.promotion.compare import Predictions
from workflows.promotion.frozen import RawRows

if TYPE_CHECKING:
    import pandas as pd

    from workflows.scoring import LoadedModel


def stored_predictions(store: Store, *, record: CandidateRecord) -> Predictions:
    """A candidate's answers to the test rows, written when it was fitted to this snapshot."""
    table = read_predictions(store, record.fingerprint)
    tested = np.array(table["split"].to_pylist(), dtype=object) == "test"
    rows = table["row"].to_numpy().astype(np.int64)[tested]
    answers = vectors(table[parse_task(record.task).answer_column])[tested]
    order = np.argsort(rows)
    return Predictions(rows=rows[order], answers=answers[order])


def challenger_alone(
    store: Store,
    *,
    record: CandidateRecord,
    snapshot: Snapshot,
    rows: np.ndarray,
    present: Collection[str],
) -> Predictions:
    """A candidate's answers to rows of its snapshot from some modalities alone."""
    held = {name: read_embeddings(store, snapshot, modality=name) for name in record.modalities}
    model = load_model(store, record.fingerprint)
    parts = in_parts(held, rows=rows, alone=present)
    answers = [predict(model, record=record, **part) for part in parts]
    return Predictions(rows=rows, answers=np.concatenate(answers))


class Champion:
    """A registered model that is asked for its answers to rows of a snapshot.

    `columns` are those that the snapshot's modalities were read from. A model of the same columns
    and encoders answers from the snapshot's embeddings. One of other encoders answers from what the
    store has of theirs, over the same payloads, and where that is not enough from the raw rows,
    through encoders of its own; EncoderMismatch if those are no longer there.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        store: Store,
        snapshot: Snapshot,
        columns: Mapping[str, PayloadColumns],
        rows: np.ndarray,
        raw_rows: RawRows,
        names: tuple[Any, ...],
    ) -> None:
        self._model, self._store, self._snapshot = model, store, snapshot
        self._rows, self._names = rows, names
        self._held: dict[str, Embeddings] = {}
        self._stored = np.ones(len(rows), dtype=bool)
        """Rows of which the store has all that the model takes."""
        for name, item in model.inputs.items():
            found = stored_embeddings(
                item, name=name, store=store, snapshot=snapshot, columns=columns, rows=rows
            )
            self._held[name], complete = found
            self._stored &= complete
        self._frame = None if self._stored.all() else raw_rows(rows[~self._stored])

    def answers(self, *, alone: Collection[str] | None = None) -> Predictions:
        """Its answers, in the order of the challenger's names; from some modalities alone, if they
        are given.
        """
        record = self._model.record
        if record.task.get("type") == "retrieval":
            if self._frame is not None:
                raise StageError(
                    "the champion finds samples through other encoders or columns than this "
                    "snapshot's, and cannot be asked for its ranks; name another "
                    "`tracking.model`, or embed with its encoders"
                )
            found = self._found_ranks()
        else:
            parts = []
            if self._stored.any():
                fitted = self._model.fitted()
                asked = in_parts(self._held, rows=self._rows[self._stored], alone=alone)
                parts = [predict(fitted, record=record, **part) for part in asked]
            if self._frame is not None:
                said = self._model.predict(self._raw(self._frame, alone=alone))
                column = parse_task(record.task).answer_column
                lists = said[column].tolist()
                unknown = self._of_nothing() if None in lists else None
                parts.append(np.array([unknown if values is None else values for values in lists]))
            order = [*np.flatnonzero(self._stored), *np.flatnonzero(~self._stored)]
            together = np.concatenate(parts)
            found = np.empty_like(together)
            found[order] = together
        return Predictions(
            rows=self._rows, answers=aligned(found, record=record, names=self._names)
        )

    def _of_nothing(self) -> list[float]:
        """What it answers to a row of which nothing is known: such a row counts, too."""
        record, inputs = self._model.record, self._model.inputs
        sequences = {m for m in inputs if record.modalities[m].get("sequence")}
        answers = predict(
            self._model.fitted(),
            record=record,
            embeddings={
                m: np.zeros((1, 1, item.dim) if m in sequences else (1, item.dim), np.float32)
                for m, item in inputs.items()
            },
            presence={m: np.zeros(1, bool) for m in inputs},
            masks={m: np.zeros((1, 1), bool) for m in sequences},
        )
        values: list[float] = answers[0].tolist()
        return values

    def _raw(self, frame: pd.DataFrame, *, alone: Collection[str] | None) -> pd.DataFrame:
        """The raw rows, without the cells of modalities that are taken away."""
        if alone is None:
            return frame
        inputs = self._model.inputs
        kept = {c for name, item in inputs.items() if name in alone for c in item.columns.names}
        gone = {c for name, item in inputs.items() if name not in alone for c in item.columns.names}
        if kept & gone:
            raise StageError(
                f"the champion reads {', '.join(sorted(kept & gone))} for several modalities, so "
                f"it cannot be asked from {' and '.join(alone)} alone; take that limit out"
            )
        return frame.assign(**dict.fromkeys(gone & set(frame.columns)))

    def _found_ranks(self) -> np.ndarray:
        from training.data.payload_numbers import read_payload_numbers

        numbers = read_payload_numbers(
            self._store, self._snapshot, modalities=tuple(self._model.inputs)
        )
        none = np.full(len(self._rows), -1)
        payloads = {
            name: numbers[name].numpy()[self._rows] if name in numbers else none
            for name in self._model.inputs
        }
        return _ranks(self._model, held=self._held, rows=self._rows, payloads=payloads)


def stored_embeddings(
    item: Input,
    *,
    name: str,
    store: Store,
    snapshot: Snapshot,
    columns: Mapping[str, PayloadColumns],
    rows: np.ndarray,
) -> tuple[Embeddings, np.ndarray]:
    """What the store has of an input's encoder over a snapshot's payloads, and of which of some
    rows it has all that there is, bool `[N]`.

    All, if the snapshot has that encoder's embeddings; else those of shards that some earlier
    snapshot left, of the same payloads. A row whose payload has no embedding there may be in
    quarantine, or in a patch: it does not count as complete.
    """
    part = snapshot.modalities.get(name)
    if (
        part is not None
        and part.encoder_fingerprint == item.encoder_fingerprint
        and columns[name] == item.columns
    ):
        return read_embeddings(store, snapshot, modality=name), np.ones(len(rows), dtype=bool)
    same = next((m for m, read in columns.items() if read == item.columns), None)
    encoder = item.encoder_fingerprint
    there = store.shards_of(encoder) if same is not None else set()
    shards: list[tuple[str, ...]] = []
    complete = np.zeros(len(rows), dtype=bool)
    for first, samples in zip(snapshot.first_rows, snapshot.samples, strict=True):
        here = (rows >= first) & (rows < first + samples.rows)
        keys = samples.keys.get(same) if same is not None else None
        made = None if keys is None else shard_fingerprint(encoder=encoder, keys=keys)
        wanted = made is not None and made in there and bool(here.any())
        shards.append((made,) if made is not None and wanted else ())
        if wanted or (same is not None and keys is None):
            complete |= here
    found = ModalityShards(
        kind=item.columns.kind,
        encoder=item.encoder,
        encoder_fingerprint=encoder,
        dim=item.dim,
        shards=tuple(shards),
        present=0,
        missing=0,
        bad=0,
    )
    held = read_embeddings(store, replace(snapshot, modalities={name: found}), modality=name)
    if same is not None and complete.any():
        column = f"key.{same}"
        payloads = store.read_samples(snapshot, columns=[column])[column].is_valid().to_numpy()
        complete &= np.isin(rows, held.rows) | ~payloads[rows]
    return held, complete


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
    for part in in_parts(held, rows=rows):
        vectors.append(embed(model.fitted(), **part))
        presence.append(part["presence"])
    return ranks(
        {name: np.concatenate([part[name] for part in vectors]) for name in vectors[0]},
        presence={name: np.concatenate([part[name] for part in presence]) for name in held},
        payloads=payloads,
    )
