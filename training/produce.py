"""Candidates from their plan to their files in the store: fit, evaluate, write. No Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from features.by_name import code_digest
from features.snapshot import Snapshot
from features.store import Store
from training.assemble import assemble
from training.candidate import CandidateRecord, PlannedCandidate, write_candidate
from training.data.table import EmbeddingTable
from training.data.targets import Untrainable
from training.evaluation.answers import evaluate
from training.evaluation.calibration import calibrated
from training.evaluation.class_names import EmbeddedNames, embed_class_names
from training.evaluation.space import fit_probe, retrieval, space_metrics
from training.evaluation.study import study
from training.faults import own_code
from training.fitting.checkpoint import FitState
from training.fitting.loop import Epoch, Failure, Fit, fit_together
from training.models.alignment_spec import ClassNames
from training.models.ensemble_spec import EnsembleSpec
from training.models.probed import Probed
from training.models.shared_space import SharedSpace
from training.models.translation import Translation
from training.task import TaskSpec
from training.tasks import Classification, Retrieval
from training.training_spec import TrainingSpec
from training.tuning.embedded import embedded_table
from training.tuning.files import write_encoders
from training.tuning.model import LiveModel, TunedEncoder
from training.tuning.spec import head_of
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

    As `produce_together` does several; for whoever fits a candidate into a store without Ray.
    """
    (record,) = produce_together(
        [candidate],
        store=store,
        snapshot=snapshot,
        task=task,
        training=training,
        table=table,
        device=device,
        resume=None if resume is None else [resume],
        on_epoch=None if on_epoch is None else lambda _, epoch: on_epoch(epoch),
        save=None if save is None else lambda states: save(states[0]),
    )
    return record


def produce_together(
    candidates: Sequence[PlannedCandidate],
    *,
    store: Store,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    table: EmbeddingTable,
    device: torch.device | str = "cpu",
    resume: Sequence[FitState] | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    save: Callable[[Sequence[FitState]], None] | None = None,
) -> list[CandidateRecord]:
    """Fit candidates in one pass, evaluate each, and let the first worker write them; the records.

    All workers take part, with equal arguments; the first alone knows the records' files. Several
    are of one `training.fitting.grouping.architecture`. An ensemble is made of what is in the
    store, and is one alone. A candidate whose loss is not finite, or which its data do not allow,
    gets a record that says so, and neither weights nor predictions; one whose own code raises gets
    no record, but a CandidateFault.
    """
    own = table.select(candidates[0].modalities)
    fits: list[Fit | None] = [None] * len(candidates)
    failure: Failure | None = None
    names: tuple[str, EmbeddedNames | None] | None = None
    members: list[dict[str, Any]] = []
    temperature: float | None = None
    try:
        if isinstance(candidates[0].spec, EnsembleSpec):
            made = assemble(
                candidates[0].spec,
                store=store,
                snapshot=snapshot,
                task=task,
                training=training,
                table=own,
                device=device,
            )
            fits, members, temperature = [made.fit], made.members, made.temperature
        else:
            # An encoder that is not here is told of before the work.
            names = _class_names(candidates[0], snapshot=snapshot, table=own, device=device)
            fits = list(
                fit_together(
                    [candidate.spec for candidate in candidates],
                    table=own,
                    training=training,
                    device=device,
                    resume=resume,
                    on_epoch=on_epoch,
                    save=save,
                )
            )
    except Untrainable as error:
        failure = Failure(reason=str(error), epoch=0, step=0, learning_rate=0.0, sample_ids=[])
    records = []
    for candidate, fit in zip(candidates, fits, strict=True):
        record = _record(
            candidate,
            fit=fit,
            failure=failure if fit is None else fit.failure,
            snapshot=snapshot,
            task=task,
            training=training,
            table=table,
            members=members,
        )
        records.append(
            _judge_and_write(
                record,
                candidate=candidate,
                fit=fit,
                store=store,
                snapshot=snapshot,
                own=own,
                training=training,
                temperature=temperature,
                names=names,
                device=device,
            )
        )
    return records


def _judge_and_write(
    record: CandidateRecord,
    *,
    candidate: PlannedCandidate,
    fit: Fit | None,
    store: Store,
    snapshot: Snapshot,
    own: EmbeddingTable,
    training: TrainingSpec,
    temperature: float | None,
    names: tuple[str, EmbeddedNames | None] | None,
    device: torch.device | str,
) -> CandidateRecord:
    """Evaluate a fit, and let the first worker write it, with the record that it got."""
    if fit is None or fit.failure is not None:
        return write_candidate(store, record) if worker_rank() == 0 else record
    modalities = candidate.modalities
    model, found, further = fit.model, None, dict[str, dict[str, float]]()
    with own_code(), embedded_table(model, table=own, device=device) as own:
        if isinstance(model, LiveModel):
            names = _tuned_names(candidate, model=model, names=names, snapshot=snapshot, table=own)
            model = model.head
        if isinstance(model, Probed) and not isinstance(own.task, Retrieval):
            fit_probe(model, table=own, modalities=modalities, device=device)
        if isinstance(model, SharedSpace | Translation):
            found = retrieval(model, table=own, modalities=modalities, device=device)
        if isinstance(model, SharedSpace):
            further = space_metrics(
                model, table=own, modalities=modalities, names=names, device=device
            )
        if temperature is not None:
            own = own.with_temperature(temperature)
        else:
            own = calibrated(
                model, table=own, modalities=modalities, training=training, device=device
            )
        answers = evaluate(model, table=own, modalities=modalities, device=device)
        studied = study(model, table=own, modalities=modalities, device=device)
    metrics = {
        split: {**values, **further.get(split, {})} for split, values in answers.metrics().items()
    }
    record = dataclasses.replace(
        record, metrics=metrics, retrieval=found, temperature=own.task.temperature
    )
    if worker_rank() != 0:
        return record
    record = dataclasses.replace(
        record, intervals=answers.intervals(), study=studied.found if studied else {}
    )
    record = write_encoders(store, record, model=fit.model)
    return write_candidate(
        store,
        record,
        model=model,
        predictions=answers.table(),
        shapley=studied.shapley if studied else None,
    )


def _class_names(
    candidate: PlannedCandidate,
    *,
    snapshot: Snapshot,
    table: EmbeddingTable,
    device: torch.device | str,
) -> tuple[str, EmbeddedNames | None] | None:
    """The modality of texts and the embedded names of the classes, if a candidate gives any."""
    named: ClassNames | None = getattr(head_of(candidate.spec), "class_names", None)
    if named is None:
        return None
    if not isinstance(table.task, Classification):
        kind = table.task.spec.type
        raise Untrainable(f"class_names: a {kind} task has no classes to tell apart")
    embedded = embed_class_names(named, snapshot=snapshot, classes=table.classes, device=device)
    return named.modality, embedded


def _tuned_names(
    candidate: PlannedCandidate,
    *,
    model: LiveModel,
    names: tuple[str, EmbeddedNames | None] | None,
    snapshot: Snapshot,
    table: EmbeddingTable,
) -> tuple[str, EmbeddedNames | None] | None:
    """`_class_names` once more, by the encoder that was tuned, if their modality's was."""
    if names is None or names[0] not in model.encoders.names:
        return names
    modality, _ = names
    tuned = model.encoders[modality]
    assert isinstance(tuned, TunedEncoder)
    embedded = embed_class_names(
        head_of(candidate.spec).class_names,  # type: ignore[attr-defined]
        snapshot=snapshot,
        classes=table.classes,
        encoder=tuned.encoder,
        device=next(tuned.parameters()).device,
    )
    return modality, embedded


def _record(
    candidate: PlannedCandidate,
    *,
    fit: Fit | None,
    failure: Failure | None,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    table: EmbeddingTable,
    members: Sequence[Mapping[str, Any]],
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
        target_scale=table.task.scale,
        retrieval=None,
        code=code_digest(type(candidate.spec)),
        members=members,
    )
