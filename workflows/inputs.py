"""What a registered model takes: per modality, its columns and the encoder it was fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from features.columns import PayloadColumns
from features.encoders.base import Kind
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


PLACES: Mapping[Kind, str] = {
    "text": "path/to/text.txt",
    "image": "path/to/image.png",
    "audio": "path/to/sound.wav",
    "video": "path/to/video.mp4",
}
STEPS = 3
"""Steps of a series that is an example."""


def example_cells(item: Input) -> dict[str, Any]:
    """By column, a cell of the form that the model takes there: what the input was embedded from.

    Files are named where payloads stand in files; numbers are as many as the encoder was told.
    """
    read = item.columns
    cells = {name: _example_cell(item, column=name) for name in read.columns}
    cells |= {name: second for name, second in ((read.start, 0.0), (read.end, 1.0)) if name}
    return cells


def _example_cell(item: Input, *, column: str) -> Any:
    kind, encoder = item.columns.kind, item.encoder
    match kind:
        case "text" if not item.columns.uri:
            return "a sentence"
        case "vector":
            return [1.0] * int(encoder.get("dim") or item.dim)
        case "table":
            return _example_field(encoder, column=column)
        case "series":
            steps = [float(step) for step in range(STEPS)]
            width = int(encoder.get("channels") or 1) + (encoder.get("time") is not None)
            if len(item.columns.columns) > 1 or width == 1:
                return steps
            return [[step] * width for step in steps]
    return PLACES[kind]


def _example_field(encoder: Mapping[str, Any], *, column: str) -> float | str:
    """A number, or for a column of categories one that was seen in training."""
    for known in (encoder.get("statistics") or {}).get("categorical", ()):
        if known["column"] == column:
            return str(next(iter(known.get("categories", ())), "a"))
    return "a" if column in encoder.get("categorical", ()) else 1.0


def input_from(value: Mapping[str, Any]) -> Input:
    """The input that `dataclasses.asdict` described."""
    columns = value["columns"]
    columns = PayloadColumns(**{**columns, "columns": tuple(columns["columns"])})
    return Input(**{**value, "columns": columns})


def inputs_of(
    record: CandidateRecord, *, features: Mapping[str, FeatureSpec], snapshot: Snapshot
) -> dict[str, Input]:
    """The inputs of a candidate, by modality: its part of the pipeline's features."""
    return {
        name: input_of(name, features=features, snapshot=snapshot) for name in record.modalities
    }


def input_of(name: str, *, features: Mapping[str, FeatureSpec], snapshot: Snapshot) -> Input:
    """What a model takes of one modality of a snapshot."""
    part = snapshot.modalities[name]
    return Input(
        columns=features[name].payload_columns,
        encoder=dict(part.encoder),
        encoder_fingerprint=part.encoder_fingerprint,
        dim=part.dim,
    )


def model_key(record: CandidateRecord, *, inputs: Mapping[str, Input]) -> str:
    """Identity of a registered model: its candidate, and how its inputs are read and encoded."""
    return fingerprint({"candidate": record.fingerprint, "inputs": dict(inputs)})
