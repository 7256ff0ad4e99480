"""One candidate from its plan to its files in the store: fit, evaluate, write. No Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord, PlannedCandidate, write_candidate
from training.checkpoint import FitState
from training.data import EmbeddingTable
from training.evaluate import evaluate
from training.evaluate_space import fit_probe, retrieval
from training.faults import own_code
from training.loop import Epoch, Failure, Fit, fit_candidate
from training.shared_space import SharedSpace
from training.targets import Untrainable
from training.task import TaskSpec
from training.training_spec import TrainingSpec
from training.workers import worker_count, worker_rank


def produce_candidate(
    candidate: PlannedCandidate,
    *,
    store: Store,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    table: EmbeddingTable,
    device: torch.device | str = "cpu",
    resume: FitState | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    save: Callable[[FitState], None] | None = None,
) -> CandidateRecord:
    """Fit a candidate, evaluate it, and let the first worker write it; the record that it got.

    All workers take part, with equal arguments; the first alone knows the record's files. A
    candidate whose loss is not finite, or which its data do not allow, gets a record that says
    so, and neither weights nor predictions; one whose own code raises gets no record, but a
    CandidateFault.
    """
    modalities = candidate.modalities
    own = table.select(modalities)
    fit: Fit | None = None
    try:
        fit = fit_candidate(
            candidate.spec,
            table=own,
            training=training,
            device=device,
            resume=resume,
            on_epoch=on_epoch,
            save=save,
        )
        failure = fit.failure
    except Untrainable as error:
        failure = Failure(reason=str(error), epoch=0, step=0, learning_rate=0.0, sample_ids=[])
    record = _record(
        candidate,
        fit=fit,
        failure=failure,
        snapshot=snapshot,
        task=task,
        training=training,
        table=table,
    )
    if fit is None or failure is not None:
        return write_candidate(store, record) if worker_rank() == 0 else record
    found = None
    with own_code():
        if isinstance(fit.model, SharedSpace):
            fit_probe(fit.model, table=own, modalities=modalities, device=device)
            found = retrieval(fit.model, table=own, modalities=modalities, device=device)
        answers = evaluate(fit.model, table=own, modalities=modalities, device=device)
    record = dataclasses.replace(record, metrics=answers.metrics(), retrieval=found)
    if worker_rank() != 0:
        return record
    return write_candidate(store, record, model=fit.model, predictions=answers.table())


def _record(
    candidate: PlannedCandidate,
    *,
    fit: Fit | None,
    failure: Failure | None,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    table: EmbeddingTable,
) -> CandidateRecord:
    """The record of a candidate before it is evaluated."""
    parts = {name: snapshot.modalities[name] for name in candidate.modalities}
    modalities: dict[str, dict[str, Any]] = {
        name: {
            "kind": part.kind,
            "dim": part.dim,
            "encoder_fingerprint": part.encoder_fingerprint,
            "sequence": name in table.starts,
        }
        for name, part in parts.items()
    }
    return CandidateRecord(
        fingerprint=candidate.fingerprint,
        name=candidate.spec.name,
        spec=candidate.spec.model_dump(mode="json"),
        training=training.model_dump(mode="json"),
        task=task.model_dump(mode="json"),
        snapshot=snapshot.id,
        part=snapshot.part(modalities=candidate.modalities),
        classes=list(table.classes),
        modalities=modalities,
        parameters=sum(p.numel() for p in fit.model.parameters()) if fit else 0,
        status="fitted" if failure is None else "failed",
        failure=None if failure is None else dataclasses.asdict(failure),
        best_epoch=fit.best_epoch if fit else None,
        epochs=[dataclasses.asdict(epoch) for epoch in fit.epochs] if fit else [],
        seconds=fit.seconds if fit else 0.0,
        workers=worker_count(),
        metrics=None,
        retrieval=None,
    )
