"""Fitted candidates in the store: what identifies one, and how it is written and read.

    candidates/<candidate>/model-<hash>.safetensors     weights, with the input statistics
    candidates/<candidate>/predictions-<hash>.parquet   answers for the labelled evaluation rows
    candidates/<candidate>/shapley-<hash>.parquet       what each modality adds to answers
    candidates/<candidate>/record.json                  everything else, and which files are its
                                                        own; written last: it is done

Planning and reading records imports no torch, so that a run with nothing to do costs little.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from features.fingerprint import DIGEST_BYTES, fingerprint
from features.snapshot import Snapshot
from features.store import Store, parquet_bytes
from training.built_in import parse_candidate
from training.models.members import with_members
from training.spec import CandidateSpec, InputSpec
from training.task import TaskSpec
from training.training_spec import TrainingSpec

if TYPE_CHECKING:
    from torch import nn


RECORD_FILE = "record.json"
FORMAT = 6
"""Raised by one whenever training's code changes a result, or how a model is stored."""


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """All that is known of a fitted (or failed) candidate, but its weights and predictions."""

    fingerprint: str
    name: str
    spec: Mapping[str, Any]
    """The candidate's spec, as JSON."""
    training: Mapping[str, Any]
    task: Mapping[str, Any]
    snapshot: str
    part: str
    """Identity of the samples and modalities that the candidate has seen."""
    classes: Sequence[Any]
    """What the model's outputs stand for: the classes or labels as they stand in the table, or
    the columns of numbers. A class index is a place in this list."""
    modalities: Mapping[str, Mapping[str, Any]]
    """Per modality: `kind`, `dim`, `encoder_fingerprint`, and whether it is a `sequence`; and
    `tuned`, of one whose encoder was tuned: its `encoder` and `encoder_fingerprint` from then on,
    and its `files`."""
    parameters: int
    status: Literal["fitted", "failed"]
    failure: Mapping[str, Any] | None
    """`reason`, `epoch`, `step`, `learning_rate` and the batch's `sample_ids`."""
    best_epoch: int | None
    epochs: Sequence[Mapping[str, Any]]
    """Per epoch the fields of `training.fitting.member.Epoch`: `epoch`, `train_loss`,
    `gradient_norm`, `validation_loss`, `validation_accuracy` (None for an alignment, and of tasks
    without classes), `validation_metrics` by name, `learning_rate`, `seconds`."""
    seconds: float
    workers: int
    metrics: Mapping[str, Mapping[str, float]] | None
    """Per split: the metrics of the task (`training.evaluation.metrics`), and `rows`; of an
    alignment of classes `neighbour_accuracy` and, where it is asked for,
    `zero_shot_accuracy.<modality>`."""
    retrieval: Sequence[Mapping[str, Any]] | None
    """Of an alignment or a translation, for each modality to each other; see
    `training.evaluation.space.retrieval`."""
    intervals: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """Per split and metric: the ends of its interval at 95 % confidence."""
    target_scale: Mapping[str, Sequence[float]] | None = None
    """Of a regression, what its targets were standardised by: `mean` and `std`, one per column."""
    temperature: float = 1.0
    """What outputs are divided by before they are probabilities; 1 if they are not calibrated."""
    code: str | None = None
    """A hash of the code of a user's own candidate (`features.by_name.code_digest`)."""
    members: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Of an ensemble, the candidates that it is made of: `name`, `fingerprint`, and whether it was
    `taken`; of a soup in the order in which they were tried, with what `training.monitor` was of
    each `alone` and of the soup `with_it`."""
    study: Mapping[str, Any] = field(default_factory=dict)
    """What it is worth when inputs are missing, noisy or wrong: see
    `training.evaluation.study.Study.found`. Empty of a retrieval."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Names of its `model`, `predictions` and `shapley` files, by their content; none if it
    failed, and no `shapley` where there is nothing to tell."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class PlannedCandidate:
    """A candidate over a snapshot, with its record if it has been fitted."""

    spec: CandidateSpec
    fingerprint: str
    modalities: tuple[str, ...]
    record: CandidateRecord | None


def candidate_fingerprint(
    spec: CandidateSpec, *, snapshot: Snapshot, task: TaskSpec, training: TrainingSpec
) -> str:
    """Identity of a fitted candidate: its name and the number of workers do not enter it, nor what
    such a model makes nothing of.
    """
    modalities = spec.resolved_modalities(tuple(snapshot.modalities))
    fields = spec.trained_by
    return fingerprint(
        {
            "format": FORMAT,
            "version": spec.version,
            "candidate": spec.model_copy(update={"modalities": modalities}),
            "task": task,
            "training": training
            if fields is None
            else {name: getattr(training, name) for name in fields},
            "data": snapshot.part(modalities=modalities),
        }
    )


def plan_candidates(
    store: Store,
    *,
    snapshot: Snapshot,
    task: TaskSpec,
    candidates: Sequence[CandidateSpec],
    training: TrainingSpec,
) -> list[PlannedCandidate]:
    """What is fitted and what is not, in the order given; a record bears its present name.

    ValueError for an ensemble of candidates that do not stand above it.
    """
    planned = []
    for spec in with_members(candidates, task=task):
        name = candidate_fingerprint(spec, snapshot=snapshot, task=task, training=training)
        record = read_record(store, name)
        planned.append(
            PlannedCandidate(
                spec=spec,
                fingerprint=name,
                modalities=spec.resolved_modalities(tuple(snapshot.modalities)),
                record=record and dataclasses.replace(record, name=spec.name),
            )
        )
    return planned


def candidate_path(fingerprint: str, file: str) -> str:
    """Where a file of a candidate lies in the store."""
    return f"candidates/{fingerprint}/{file}"


def read_record(store: Store, fingerprint: str) -> CandidateRecord | None:
    """The record of a candidate that is done; None if there is none."""
    try:
        text = store.storage.read(candidate_path(fingerprint, RECORD_FILE))
    except FileNotFoundError:
        return None
    return parse_record(text)


def parse_record(text: str | bytes) -> CandidateRecord:
    """The record that JSON text holds."""
    return CandidateRecord(**json.loads(text))


def read_predictions(store: Store, fingerprint: str) -> pa.Table:
    """The answers of a fitted candidate for all labelled validation and test rows.

    Columns: `row` (int64, within the snapshot), `split`, `target` (int32 class index; of a
    multilabel task a list of 0 and 1, of a regression of float64), `probabilities` (fixed-size
    list of float32 `[C]`; of a regression `values`, of float64), and for each modality, if there
    are several, `without.<modality>`: the answers with that modality taken away.
    """
    record = _fitted_record(store, fingerprint)
    return store.read_table(candidate_path(fingerprint, record.files["predictions"]))


def read_shapley(store: Store, fingerprint: str) -> pa.Table | None:
    """What each modality added to a fitted candidate's answers to test rows, or a sample of them.

    See `training.evaluation.study.Study.shapley`; None if it was not found.
    """
    name = _fitted_record(store, fingerprint).files.get("shapley")
    return None if name is None else store.read_table(candidate_path(fingerprint, name))


def write_candidate(
    store: Store,
    record: CandidateRecord,
    *,
    model: nn.Module | None = None,
    predictions: pa.Table | None = None,
    shapley: pa.Table | None = None,
) -> CandidateRecord:
    """Write a candidate's files, the record last, unless it is done; the record in the store.

    Of several writers the first with its record wins. The files of the others bear other names,
    unless they hold the same, and are of no account.
    """
    done = read_record(store, record.fingerprint)
    if done is not None:
        return done
    bodies = {}
    if model is not None:
        bodies["model"] = (model_bytes(model), "safetensors")
    for kind, table in (("predictions", predictions), ("shapley", shapley)):
        if table is not None:
            bodies[kind] = (parquet_bytes(table).to_pybytes(), "parquet")
    files = {}
    for kind, (body, suffix) in bodies.items():
        digest = hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest()
        files[kind] = f"{kind}-{digest}.{suffix}"
        store.storage.write_once(candidate_path(record.fingerprint, files[kind]), body)
    record = dataclasses.replace(record, files=files)
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    path = candidate_path(record.fingerprint, RECORD_FILE)
    if store.storage.write_once(path, (text + "\n").encode()):
        return record
    return parse_record(store.storage.read(path))


def model_bytes(model: nn.Module) -> bytes:
    """A model's weights and buffers as a safetensors file."""
    import safetensors.torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return safetensors.torch.save(state)


def load_model(store: Store, fingerprint: str) -> nn.Module:
    """A fitted candidate's model from the store, ready to answer."""
    record = _fitted_record(store, fingerprint)
    weights = store.storage.read(candidate_path(fingerprint, record.files["model"]))
    return restore_model(record, weights=weights)


def load_model_files(folder: str | os.PathLike[str]) -> nn.Module:
    """A fitted candidate's model from a folder that holds its record and weights."""
    record = parse_record((Path(folder) / RECORD_FILE).read_bytes())
    return restore_model(record, weights=(Path(folder) / record.files["model"]).read_bytes())


def _fitted_record(store: Store, fingerprint: str) -> CandidateRecord:
    record = read_record(store, fingerprint)
    if record is None:
        raise FileNotFoundError(f"candidate {fingerprint} is not in the store {store.storage.root}")
    if record.status != "fitted":
        raise ValueError(f"candidate {record.name!r} failed and has no model: {record.failure}")
    return record


def restore_model(record: CandidateRecord, *, weights: bytes) -> nn.Module:
    """The model that a record describes, with its weights, in evaluation mode."""
    import safetensors.torch
    import torch

    spec = parse_candidate(record.spec)
    inputs = {
        name: InputSpec(dim=int(part["dim"]), sequence=bool(part.get("sequence")))
        for name, part in record.modalities.items()
    }
    with torch.random.fork_rng(devices=[]):
        model = spec.build(inputs=inputs, outputs=len(record.classes))
    model.load_state_dict(safetensors.torch.load(weights))
    return model.eval().requires_grad_(False)
