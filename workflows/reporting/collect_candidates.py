"""What the report says of the candidates: their records and their stored answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.built_in import parse_candidate
from training.candidate import CandidateRecord
from training.evaluation.significance import holm
from workflows.reporting.answers import Answers, estimate
from workflows.reporting.findings import (
    CandidateFindings,
    EnsembleFindings,
    Epoch,
    Failure,
    Lead,
    MemberFindings,
)
from workflows.reporting.plots import Family
from workflows.reporting.search_findings import Value

NOT_VALUES = {"type", "name", "modality", "version"}
"""Fields of a candidate that are no hyperparameters."""


def family_of(record: CandidateRecord) -> Family:
    """What kind of candidate a record is of, as the report tells them apart."""
    model = record.spec.get("head") or record.spec
    if model.get("type") in ("alignment", "cca", "translation"):
        return "alignment"
    return "single" if len(record.modalities) == 1 else "fusion"


def best_single(records: Sequence[CandidateRecord], tested: Mapping[str, Answers]) -> str | None:
    """The single modality that is best on the test rows: the hardest one to compare with."""
    names = [r.name for r in records if r.name in tested and family_of(r) == "single"]
    return max(
        names, key=lambda name: tested[name].metric.gain(tested[name].value, 0), default=None
    )


def find_leads(
    tested: Mapping[str, Answers], *, winner: str | None, confidence: float
) -> dict[str, Lead]:
    """How far the winner is ahead of each other candidate, and whether that is real.

    All p-values together are corrected for their number.
    """
    if winner is None or winner not in tested:
        return {}
    others = [name for name in tested if name != winner]
    found = [tested[winner].difference(over=tested[name], confidence=confidence) for name in others]
    corrected = holm([item.p for item in found])
    return {
        name: Lead(
            gain=estimate(item.gain, rows=len(tested[name].rows)),
            p=p,
            test=item.test,
            sure=p < 1 - confidence,
        )
        for name, item, p in zip(others, found, corrected, strict=True)
    }


def find_candidate(
    record: CandidateRecord,
    *,
    validation: Answers | None,
    test: Answers | None,
    single: Answers | None,
    lead: Lead | None,
    order: Sequence[str],
    titles: Mapping[str, str],
    confidence: float,
) -> CandidateFindings:
    """One candidate, with its answers to the rows of both splits, if it has any.

    `single` are those of the best single modality; `titles` are what metrics are called.
    """
    masked = () if test is None else tuple(test.masked(confidence=confidence))
    return CandidateFindings(
        name=record.name,
        type=str(record.spec.get("type", "")),
        family=family_of(record),
        modalities=tuple(sorted(record.modalities, key=order.index)),
        parameters=record.parameters,
        seconds=record.seconds,
        values=_values(record),
        best_epoch=record.best_epoch,
        epochs=tuple(
            Epoch(
                epoch=int(epoch["epoch"]),
                train_loss=_number(epoch.get("train_loss")),
                validation_loss=_number(epoch.get("validation_loss")),
                validation_accuracy=_number(epoch.get("validation_accuracy")),
            )
            for epoch in record.epochs
        ),
        validation=None
        if validation is None or not len(validation.rows)
        else validation.score(confidence=confidence),
        test=None if test is None else test.score(confidence=confidence),
        gain=None
        if test is None or single is None
        else test.gain(over=single, confidence=confidence),
        lead=lead,
        masked=tuple(sorted(masked, key=lambda item: order.index(item.modality))),
        metrics={
            split: {titles[name]: values[name] for name in titles if name in values}
            for split, values in (record.metrics or {}).items()
        },
        failure=None if record.status == "fitted" else _failure(record.failure or {}),
    )


def _values(record: CandidateRecord) -> dict[str, Value]:
    """Its hyperparameters, but for those that are what its type has by default.

    None of a candidate that cannot be read any more: its class may be gone.
    """
    try:
        spec = parse_candidate(dict(record.spec))
    except (ValueError, ImportError, AttributeError):
        return {}
    fields = type(spec).model_fields
    return {
        name: value
        for name, value in record.spec.items()
        if name in fields
        and name not in NOT_VALUES
        and isinstance(value, Value)
        and value != fields[name].get_default(call_default_factory=True)
    }


def _failure(failure: Mapping[str, Any]) -> Failure:
    places = {
        "epoch": failure.get("epoch"),
        "step": failure.get("step"),
        "learning rate": failure.get("learning_rate"),
    }
    where = [
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in places.items()
        if value is not None
    ]
    return Failure(
        reason=str(failure.get("reason", "no reason was recorded")),
        where=", ".join(where),
        sample_ids=tuple(map(str, failure.get("sample_ids") or ())),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def find_ensembles(
    records: Sequence[CandidateRecord],
    *,
    candidates: Sequence[CandidateFindings],
    titles: Mapping[str, str],
) -> Iterator[EnsembleFindings]:
    """What the ensembles are made of; members that are candidates too with what they reached.

    `candidates` are the findings of the records, in their order.
    """
    known = {record.fingerprint: item for record, item in zip(records, candidates, strict=True)}
    for record in records:
        if not record.members:
            continue
        tasted = any("with_it" in member for member in record.members)
        monitor = str(record.training.get("monitor", ""))
        yield EnsembleFindings(
            candidate=record.name,
            monitor=titles.get(monitor, monitor) if tasted else "",
            members=tuple(_member(item, known.get(item["fingerprint"])) for item in record.members),
        )


def _member(item: Mapping[str, Any], candidate: CandidateFindings | None) -> MemberFindings:
    """A member by its present name, which may be another than when the ensemble was made."""
    return MemberFindings(
        name=item["name"] if candidate is None else candidate.name,
        taken=bool(item["taken"]),
        alone=item.get("alone"),
        with_it=item.get("with_it"),
        validation=None if candidate is None else candidate.validation,
        test=None if candidate is None else candidate.test,
    )
