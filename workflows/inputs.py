"""What a registered model takes: per modality, its columns and the encoder it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from features.columns import PayloadColumns
from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.spec import FeatureSpec
from training.candidate import CandidateRecord


@dataclass(frozen=True, kw_only=True)
class Input:
    """One modality of a model: the columns it is in, and the encoder that embeds it."""

    columns: PayloadColumns
    encoder: dict[str, Any]
    """The encoder's spec, as JSON."""
    encoder_fingerprint: str
    dim: int


def column_names(inputs: Mapping[str, Input]) -> list[str]:
    """All columns that some inputs are read from, each once."""
    return list(dict.fromkeys(name for item in inputs.values() for name in item.columns.names))


def input_from(value: Mapping[str, Any]) -> Input:
    """The input that `dataclasses.asdict` described."""
    columns = value["columns"]
    columns = PayloadColumns(**{**columns, "columns": tuple(columns["columns"])})
    return Input(**{**value, "columns": columns})


def inputs_of(
    record: CandidateRecord, *, features: Mapping[str, FeatureSpec], snapshot: Snapshot
) -> dict[str, Input]:
    """The inputs of a candidate, by modality: its part of the pipeline's features.

    The encoder of one that was tuned with it is the tuned one, in a folder beside its weights.
    """

    def input_of(name: str) -> Input:
        part = snapshot.modalities[name]
        tuned = record.modalities[name].get("tuned", {})
        return Input(
            columns=features[name].payload_columns,
            encoder=dict(tuned.get("encoder", part.encoder)),
            encoder_fingerprint=tuned.get("encoder_fingerprint", part.encoder_fingerprint),
            dim=part.dim,
        )

    return {name: input_of(name) for name in record.modalities}


def model_key(record: CandidateRecord, *, inputs: Mapping[str, Input]) -> str:
    """Identity of a registered model: its candidate, and how its inputs are read and encoded."""
    return fingerprint({"candidate": record.fingerprint, "inputs": dict(inputs)})
