"""A model's answers as columns: what they are called, and of which type they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from training.answering import embed, fills, predict
from training.candidate import CandidateRecord
from training.task import MultilabelSpec, RegressionSpec, RetrievalSpec, parse_task

if TYPE_CHECKING:
    from torch import nn

NOTHING = "no payload is there"
"""Why a row has no answer, if none of its payloads was tried and found bad."""


def said(answers: np.ndarray, *, record: CandidateRecord) -> dict[str, list[Any]]:
    """A model's answers `[B, C]` as columns of what is returned.

    Classification: `prediction` (a class as it stood in the table), `confidence` (its
    probability), `probabilities` (of all classes, in order). Multilabel: `prediction` (a list of
    the labels whose probability is at least the task's threshold) and `probabilities`. Regression:
    `prediction` (a number, or a list of them if there are several) and `values` (always a list).
    (A retrieval's model gives `vectors` instead: per present modality a unit vector of the space.)
    """
    task, names = parse_task(record.task), list(record.classes)
    lists = [row.tolist() for row in answers]
    if isinstance(task, RegressionSpec):
        numbers = [row[0] for row in lists] if len(names) == 1 else lists
        return {"prediction": numbers, "values": lists}
    if isinstance(task, MultilabelSpec):
        held = [
            [n for n, p in zip(names, row, strict=True) if p >= task.threshold] for row in lists
        ]
        return {"prediction": held, "probabilities": lists}
    best = answers.argmax(axis=1) if len(answers) else np.empty(0, dtype=np.int64)
    return {
        "prediction": [names[i] for i in best],
        "confidence": [float(p[i]) for p, i in zip(answers, best, strict=True)],
        "probabilities": lists,
    }


def answered(
    model: nn.Module,
    *,
    record: CandidateRecord,
    embeddings: Mapping[str, np.ndarray],
    presence: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
) -> dict[str, list[Any]]:
    """A model's answers to embeddings, as to `training.answering.predict`, as columns: those of
    `said`, or, of a retrieval, `vectors`: by present modality a unit vector of the space.
    """
    given: dict[str, Any] = {"embeddings": embeddings, "presence": presence, "masks": masks}
    if record.task.get("type") != "retrieval":
        answers = predict(model, record=record, **given)
        return said(answers.reshape(-1, len(record.classes)), record=record)
    vectors = embed(model, **given)
    rows = len(next(iter(presence.values())))
    return {
        "vectors": [
            {m: x[row].tolist() for m, x in vectors.items() if presence[m][row]}
            for row in range(rows)
        ]
    }


def refuse_to_guess(
    columns: Mapping[str, list[Any]],
    *,
    presence: Mapping[str, np.ndarray],
    problems: list[str | None],
) -> None:
    """Take the answers away from rows of which nothing is known, in place, and say why."""
    some = np.logical_or.reduce(list(presence.values()))
    for row in np.flatnonzero(~some).tolist():
        for values in columns.values():
            values[row] = None
        problems[row] = problems[row] or NOTHING


def filled(
    model: nn.Module, *, record: CandidateRecord, presence: Mapping[str, np.ndarray]
) -> dict[str, list[list[str]]]:
    """Of a candidate that fills in what is missing, `filled`: the names of what was, by row."""
    if not fills_in(record):
        return {}
    made = fills(model, presence=presence)
    rows = range(len(next(iter(presence.values()))))
    return {"filled": [[name for name, found in made.items() if found[row]] for row in rows]}


def fills_in(record: CandidateRecord) -> bool:
    """Whether a candidate draws what is missing from what is there."""
    return record.spec.get("type") == "filled"


def types(record: CandidateRecord) -> dict[str, pa.DataType]:
    """The types of the columns of `answered` in Arrow, whatever a part of the rows holds."""
    task, numbers = parse_task(record.task), pa.list_(pa.float64())
    if isinstance(task, RegressionSpec):
        return {
            "prediction": pa.float64() if len(record.classes) == 1 else numbers,
            "values": numbers,
        }
    if isinstance(task, RetrievalSpec):
        return {"vectors": pa.struct([(m, numbers) for m in record.modalities])}
    if isinstance(task, MultilabelSpec):
        return {"prediction": pa.list_(pa.string()), "probabilities": numbers}
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return {
        "prediction": kinds.get(type(record.classes[0]), pa.string()),
        "confidence": pa.float64(),
        "probabilities": numbers,
    }
