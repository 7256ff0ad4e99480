"""What a registered model takes: per modality, its column and the encoder it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.spec import FeatureSpec
from training.candidate import CandidateRecord


@dataclass(frozen=True, kw_only=True)
class Input:
    """One modality of a model: the column it is in, and the encoder that embeds it."""

    column: str
    kind: str
    encoder: dict[str, Any]
    """The encoder's spec, as JSON."""
    encoder_fingerprint: str
    dim: int


def inputs_of(
    record: CandidateRecord, *, features: Mapping[str, FeatureSpec], snapshot: Snapshot
) -> dict[str, Input]:
    """The inputs of a candidate, by modality: its part of the pipeline's features."""
    return {
        name: Input(
            column=features[name].column,
            kind=snapshot.modalities[name].kind,
            encoder=dict(snapshot.modalities[name].encoder),
            encoder_fingerprint=snapshot.modalities[name].encoder_fingerprint,
            dim=snapshot.modalities[name].dim,
        )
        for name in record.modalities
    }


def model_key(record: CandidateRecord, *, inputs: Mapping[str, Input]) -> str:
    """Identity of a registered model: its candidate, and how its inputs are read and encoded."""
    return fingerprint({"candidate": record.fingerprint, "inputs": dict(inputs)})
