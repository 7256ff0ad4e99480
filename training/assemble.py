"""An ensemble out of fitted candidates in the store, in the place of a fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from features.snapshot import Snapshot
from features.store import Store
from training.batch import Batch
from training.candidate import CandidateRecord, candidate_fingerprint, load_model, read_record
from training.data.table import EmbeddingTable
from training.data.targets import Untrainable
from training.evaluation.answers import map_rows
from training.faults import CandidateFault, own_code
from training.fitting.loop import Fit
from training.fitting.monitor import validation_metrics
from training.models.ensemble import Averaged, Filled, greedy_soup
from training.models.ensemble_spec import AverageSpec, EnsembleSpec, FilledSpec
from training.spec import CandidateSpec
from training.task import TaskSpec
from training.training_spec import TrainingSpec
from training.workers import of_first_worker


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A model made of others, and what is recorded of them."""

    fit: Fit
    """Of no epochs."""
    members: list[dict[str, Any]]
    """See `CandidateRecord.members`."""
    temperature: float | None = None
    """That of a model which has it from a member; None if it is to be fitted."""


def assemble(
    spec: EnsembleSpec,
    *,
    store: Store,
    snapshot: Snapshot,
    task: TaskSpec,
    training: TrainingSpec,
    table: EmbeddingTable,
    device: torch.device | str = "cpu",
) -> Assembled:
    """Make an ensemble's model of its members' in the store; all workers take part.

    A soup is chosen by `training.monitor` over the labelled validation rows. CandidateFault if a
    member is not in the store; Untrainable if one is there as failed.
    """
    options: dict[str, Any] = {"snapshot": snapshot, "task": task, "training": training}
    names = [candidate_fingerprint(member, **options) for member in spec.members]
    # The first worker has written them, and comes here afterwards.
    records = of_first_worker([read_record(store, name) for name in names])
    about = [
        _about(member, name, record=record)
        for member, name, record in zip(spec.members, names, records, strict=True)
    ]
    models = [load_model(store, name).to(device) for name in names]
    members = [{**item, "taken": True} for item in about]
    temperatures = [record.temperature for record in records if record is not None]
    temperature: float | None = None
    if isinstance(spec, AverageSpec):
        taken = [member.resolved_modalities(tuple(snapshot.modalities)) for member in spec.members]
        assert spec.link is not None, "it was filled in when it was planned"
        model: nn.Module = Averaged(
            models,
            modalities=taken,
            link=spec.link,
            temperatures=temperatures,
        ).to(device)
    elif isinstance(spec, FilledSpec):
        answering = spec.members[0].resolved_modalities(tuple(snapshot.modalities))
        model = Filled(*models, modalities=answering)
        # Where nothing is filled in, it answers as its first member does.
        temperature = temperatures[0]
    else:
        model, members = _soup(models, about=about, training=training, table=table, device=device)
    return Assembled(
        fit=Fit(model=model.eval(), epochs=[], best_epoch=None, failure=None),
        members=members,
        temperature=temperature,
    )


def _about(
    member: CandidateSpec, fingerprint: str, *, record: CandidateRecord | None
) -> dict[str, Any]:
    if record is None:
        raise CandidateFault(f"it is made of {member.name!r}, which is not fitted")
    if record.status != "fitted":
        reason = (record.failure or {}).get("reason")
        raise Untrainable(f"it is made of {member.name!r}, which failed: {reason}")
    return {"name": member.name, "fingerprint": fingerprint}


def _soup(
    models: Sequence[nn.Module],
    *,
    about: Sequence[dict[str, Any]],
    training: TrainingSpec,
    table: EmbeddingTable,
    device: torch.device | str,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    modalities = tuple(table.embeddings)
    rows = table.labelled("validation")
    targets_R = table.targets[rows].to(device)

    def measure(model: nn.Module) -> float:
        def outputs(batch: Batch) -> Tensor:
            found: Tensor = model(*batch.inputs)
            return found

        outputs_RC = map_rows(
            outputs, model=model, table=table, rows=rows, modalities=modalities, device=device
        )
        found = validation_metrics(
            table.task, outputs_RC, targets_R=targets_R, monitor=training.monitor
        )
        return found.get(training.monitor, math.nan)

    with own_code():
        model, tasted = greedy_soup(
            models, measure=measure, lower_is_better=training.lower_is_better
        )
    members = [
        {
            **about[item.number],
            "taken": item.taken,
            "alone": item.alone if math.isfinite(item.alone) else None,
            "with_it": item.with_it if math.isfinite(item.with_it) else None,
        }
        for item in tasted
    ]
    return model, members
