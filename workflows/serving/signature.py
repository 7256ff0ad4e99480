"""What MLflow is told of a registered model: what it takes, what it answers, what it needs."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from features.encoders.base import Kind
from features.payloads import INLINE
from training.candidate import CandidateRecord
from training.task import MultilabelSpec, RegressionSpec, RetrievalSpec, parse_task
from workflows.inputs import PLACES, Input, column_names, example_cells
from workflows.serving.said import fills_in

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

REQUIRED = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "safetensors",
    "scikit-image",
    "scikit-learn",
    "sensorium",
    "soundfile",
    "soxr",
    "torch",
    "transformers",
)
"""Distributions that the model is pinned to, where they are installed."""


def answer_columns(record: CandidateRecord) -> list[Any]:
    """The columns that `said` gives, in MLflow's types."""
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import Array, Map

    task, numbers = parse_task(record.task), Array(DataType.double)
    if isinstance(task, RegressionSpec):
        one = len(record.classes) == 1
        return [
            ColSpec(DataType.double if one else numbers, "prediction"),
            ColSpec(numbers, "values"),
        ]
    if isinstance(task, RetrievalSpec):
        return [ColSpec(Map(numbers), "vectors")]
    if isinstance(task, MultilabelSpec):
        return [ColSpec(Array(DataType.string), "prediction"), ColSpec(numbers, "probabilities")]
    kinds = {bool: DataType.boolean, int: DataType.long, float: DataType.double}
    kind = kinds.get(type(record.classes[0]), DataType.string)
    return [
        ColSpec(kind, "prediction"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(numbers, "probabilities"),
    ]


def signature(inputs: Mapping[str, Input], *, record: CandidateRecord) -> ModelSignature:
    """One optional column per modality.

    Of type `any`: MLflow's `string` and `binary` refuse a column that pandas has made float64
    because all of it is missing, and no type of MLflow's is both bytes and a path.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    columns = column_names(inputs)
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in columns]),
        outputs=Schema(
            [
                *answer_columns(record),
                ColSpec(Array(DataType.string), "missing"),
                *([ColSpec(Array(DataType.string), "filled")] if fills_in(record) else []),
                ColSpec(DataType.string, "problems", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("base", DataType.string, default="")]),
    )


def example(inputs: Mapping[str, Input]) -> pd.DataFrame:
    """Two rows that a model takes: one that has all, and one that has nothing.

    Files are inline where a small one is easily made, so that a server takes the row as it is.
    """
    cells = [
        {name: _inline(cell, kind=item.columns.kind) for name, cell in example_cells(item).items()}
        for item in inputs.values()
    ]
    return pd.DataFrame({name: [cell, None] for some in cells for name, cell in some.items()})


def _inline(cell: Any, *, kind: Kind) -> Any:
    if cell != PLACES.get(kind) or kind not in CONTENT:
        return cell
    content = base64.b64encode(CONTENT[kind]()).decode()
    return f"{INLINE};base64,{content}"


def _image() -> bytes:
    """A grey PNG of 32 x 32 pixels: W3C, Portable Network Graphics, section 5."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(0, 256, 8)) for _ in range(32)))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _sound() -> bytes:
    """A WAV of a second, as long as the example of a cut, at 1,000 Hz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(1000)
        file.writeframes(bytes(128 + (step % 16) * 4 for step in range(1000)))
    return buffer.getvalue()


CONTENT: Mapping[Kind, Callable[[], bytes]] = {
    "text": lambda: b"a sentence",
    "image": _image,
    "audio": _sound,
}


def requirements() -> list[str]:
    """Lines of pip's for the versions that are installed here."""
    found = []
    for name in REQUIRED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(f"{name}=={version.partition('+')[0]}")
    return found
