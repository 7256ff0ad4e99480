"""The registered model: raw rows in, predictions out, with any modality missing.

The model carries its candidate (weights and record) and, per modality, the column and the
encoder's spec with its fingerprint. It is loaded from code, not from a pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from features.columns import NUMBER_KINDS, PayloadColumns
from features.decoders.base import BadPayload
from features.encoders import Encoder, EncoderSpec, parse_encoder
from features.encoding import Prepared, Rows, encode_rows
from features.number_lists import as_numbers
from features.payloads import open_payload
from features.store import Store
from training.answering import embed
from training.candidate import (
    RECORD_FILE,
    CandidateRecord,
    candidate_path,
    load_model_files,
    parse_record,
)
from training.task import MultilabelSpec, RegressionSpec, RetrievalSpec, parse_task
from workflows.inputs import Input, column_names, example_cells, input_from
from workflows.serving.said import answered, filled, fills_in, refuse_to_guess

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel
    from torch import nn

INPUTS = "inputs.json"
CODE = "from mlflow.models import set_model\nfrom workflows.scoring import SensoriumModel\n\n"
CODE += "set_model(SensoriumModel())\n"
WINDOW_ROWS = 512
"""Rows that are decoded and held in memory at once."""
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


class EncoderMismatch(RuntimeError):
    """The encoder that the model was fitted to is not here, or is another by that name."""


class ForeignModel(ValueError):
    """A registered model that was not logged by this project."""


def log_model(*, store: Store, record: CandidateRecord, inputs: Mapping[str, Input]) -> str:
    """Log a fitted candidate as a model of MLflow's active run; returns its `models:/…` URI."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = place / "candidate"
        files.mkdir()
        tuned = [
            name for m in record.modalities.values() for name in m.get("tuned", {}).get("files", ())
        ]
        for name in (record.files["model"], *tuned):
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            (files / name).write_bytes(store.storage.read(candidate_path(record.fingerprint, name)))
        (files / RECORD_FILE).write_text(json.dumps(record.to_json(), indent=1))
        values = {name: dataclasses.asdict(item) for name, item in inputs.items()}
        (place / INPUTS).write_text(json.dumps(values, indent=1))
        (place / "model.py").write_text(CODE)
        info = mlflow.pyfunc.log_model(
            name=record.name,
            python_model=str(place / "model.py"),
            artifacts={"candidate": str(files), "inputs": str(place / INPUTS)},
            signature=_signature(inputs, record=record),
            input_example=_example(inputs),
            pip_requirements=_requirements(),
            tags={"sensorium.candidate": record.fingerprint},
            metadata={"sensorium": {"candidate": record.fingerprint, "snapshot": record.snapshot}},
        )
    return str(info.model_uri)


class SensoriumModel(PythonModel):
    """A candidate behind its encoders, which are loaded when their first payload comes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read what the model consists of; no weights are loaded yet."""
        values = json.loads(Path(context.artifacts["inputs"]).read_text())
        self.inputs = {name: input_from(value) for name, value in values.items()}
        self._folder = Path(context.artifacts["candidate"])
        self.record = parse_record((self._folder / RECORD_FILE).read_bytes())
        self._lock = threading.Lock()
        self._encoders: dict[str, tuple[EncoderSpec, Encoder]] = {}
        # Per modality a row that was encoded once: an encoder that fails for it now is broken.
        self._proven: dict[str, Sequence[Prepared]] = {}
        self._model: nn.Module | None = None

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer raw rows, one column per modality: text; paths, URIs or bytes of files.

        None, NaN or an absent column is a missing modality. A payload that cannot be used is
        treated as missing, and said so. `params["base"]` is the folder that relative paths
        start from; without it, the working directory.

        Returns, in the input's order and with its index, the answers of the task (see
        `said`), `missing` (names of the modalities that are not there), of a `filled` candidate
        `filled` (names of those that were drawn from the others; the answer had to do without the
        rest), and `problems` (why a payload was not used, or None). A row of which nothing is known
        has no answer (None), and its `problems` say so.

        Raises ValueError if none of the model's columns is there, TypeError for a value that is
        no payload, and EncoderMismatch if an encoder is not here, or its weights or options are
        not those that the model was fitted to. What an encoder itself raises is raised if it
        fails for every row and not for the row alone.
        """
        columns = set(column_names(self.inputs))
        if not columns & set(model_input.columns):
            raise ValueError(
                f"the input has none of the model's columns: {', '.join(sorted(columns))}; a "
                "modality may be missing, but at least one column must be there (with null values)"
            )
        base = str((params or {}).get("base") or os.getcwd())
        windows = [
            self._predict_window(model_input.iloc[start : start + WINDOW_ROWS], base=base)
            for start in range(0, max(1, len(model_input)), WINDOW_ROWS)
        ]
        return pd.concat(windows)

    def _predict_window(self, rows: pd.DataFrame, *, base: str) -> pd.DataFrame:
        count = len(rows)
        problems: list[list[str]] = [[] for _ in range(count)]
        embeddings, presence, masks = self._embedded(rows, base=base, problems=problems)
        columns: dict[str, list[Any]] = answered(
            self.fitted(),
            record=self.record,
            embeddings=embeddings,
            presence=presence,
            masks=masks,
        )
        said = [None if not texts else "; ".join(texts) for texts in problems]
        refuse_to_guess(columns, presence=presence, problems=said)
        missing = [
            [name for name in self.inputs if not presence[name][row]] for row in range(count)
        ]
        return pd.DataFrame(
            {
                # As objects: pandas would turn None among integers into NaN, and them into floats.
                **{
                    name: pd.Series(
                        values, index=rows.index, dtype=object if None in values else None
                    )
                    for name, values in columns.items()
                },
                "missing": missing,
                **filled(self.fitted(), record=self.record, presence=presence),
                "problems": pd.Series(said, index=rows.index, dtype=object),
            },
            index=rows.index,
        )

    def vectors(
        self, rows: pd.DataFrame, *, base: str
    ) -> tuple[Mapping[str, np.ndarray], list[str | None]]:
        """Of the model of a shared space, each modality's unit vectors of raw rows, and problems.

        float32 `[B, S]` by modality, NaN where it is missing or could not be used, which is said
        as `predict` says it.
        """
        problems: list[list[str]] = [[] for _ in range(len(rows))]
        embeddings, presence, masks = self._embedded(rows, base=base, problems=problems)
        found = embed(self.fitted(), embeddings=embeddings, presence=presence, masks=masks)
        vectors = {m: np.where(presence[m][:, None], x, np.nan) for m, x in found.items()}
        return vectors, ["; ".join(texts) or None for texts in problems]

    def _embedded(
        self, rows: pd.DataFrame, *, base: str, problems: list[list[str]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the model over embeddings is given of a window of rows."""
        count = len(rows)
        embeddings, presence, masks = {}, {}, {}
        for name, item in self.inputs.items():
            values = _payloads(rows, columns=item.columns)
            found = self._embed(name, values=values, base=base, problems=problems)
            presence[name] = np.array([row in found for row in range(count)], bool)
            if self.record.modalities[name].get("sequence"):
                embeddings[name], masks[name] = _padded(found, rows=count, dim=item.dim)
            else:
                embeddings[name] = _stacked(found, rows=count, dim=item.dim)
        return embeddings, presence, masks

    def _embed(
        self, name: str, *, values: Sequence[Any], base: str, problems: list[list[str]]
    ) -> dict[int, np.ndarray]:
        """One modality's embeddings by row, of a window of rows: `[D]`, of sequences `[T, D]`."""
        item = self.inputs[name]
        wanted = [row for row, value in enumerate(values) if value is not None]
        if not wanted:
            return {}
        spec, encoder = self._encoder(name)
        prepared: list[Prepared] = []
        for row in wanted:
            try:
                payload = open_payload(values[row], columns=item.columns, folder=base)
                payload = encoder.prepare(payload)
                prepared.append(Prepared(row=row, payload=payload, size=encoder.size(payload)))
            except BadPayload as error:
                problems[row].append(f"{name}: {error.reason}")
            except ValueError as error:
                problems[row].append(f"{name}: {error}")
        # In the stored type, so that a row scores as its embedding in a store does.
        done = Rows()
        proven = self._proven.get(name, ())
        encode_rows(prepared, spec=spec, encoder=encoder, into=done, known_good=lambda: proven)
        for bad in done.bad:
            problems[bad.row].append(f"{name}: {bad.reason}")
        self._proven[name] = [item for item in prepared if item.row in done.values][:1] or proven
        return dict(done.values)

    def encoder_spec(self, name: str) -> EncoderSpec:
        """A modality's encoder as it is here; EncoderMismatch if the model was fitted to another.

        Nothing is loaded.
        """
        item = self.inputs[name]
        try:
            # That of an encoder which was tuned with the model starts from its folder.
            spec = parse_encoder(item.encoder, context={"folder": str(self._folder)})
            here = spec.fingerprint()
        except (ValueError, OSError, ImportError) as error:
            raise EncoderMismatch(
                f"modality {name!r}: the encoder {item.encoder.get('type')!r} that the "
                f"model was fitted to is not here: {error}. Put what is lacking back, or "
                "embed and train again."
            ) from error
        if here != item.encoder_fingerprint:
            raise EncoderMismatch(
                f"modality {name!r}: the encoder {spec.type!r} here has the fingerprint "
                f"{here}, but the model was fitted to {item.encoder_fingerprint}: its "
                "weights, its options or its version have changed since. Scoring would "
                "be wrong, not only different. Put the weights of that time back, or "
                "embed and train again."
            )
        return spec

    def _encoder(self, name: str) -> tuple[EncoderSpec, Encoder]:
        """A modality's encoder, loaded once, if it is the one that the model was fitted to."""
        with self._lock:
            if name not in self._encoders:
                spec = self.encoder_spec(name)
                self._encoders[name] = (spec, spec.load())
            return self._encoders[name]

    def weights(self) -> bytes:
        """The weights of the model over embeddings, as safetensors."""
        return (self._folder / self.record.files["model"]).read_bytes()

    def fitted(self) -> nn.Module:
        """The fitted model over embeddings, loaded once."""
        with self._lock:
            if self._model is None:
                self._model = load_model_files(self._folder)
            return self._model


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A logged or registered model, for those who know that it is one of ours."""

    pyfunc: PyFuncModel
    base: str
    """Folder that relative paths start from."""
    files: Path
    """Folder of the model's files, which is gone after the block."""

    @property
    def inputs(self) -> Mapping[str, Input]:
        """The inputs that the model takes, by modality."""
        return self._ours.inputs

    @property
    def record(self) -> CandidateRecord:
        """The record of the candidate that the model is."""
        return self._ours.record

    def fitted(self) -> nn.Module:
        """The fitted model over embeddings."""
        return self._ours.fitted()

    def weights(self) -> bytes:
        """Its weights, as safetensors."""
        return self._ours.weights()

    def encoder(self, name: str) -> EncoderSpec:
        """A modality's encoder; EncoderMismatch if that here is not the one it was fitted to."""
        return self._ours.encoder_spec(name)

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Classify raw rows, as any caller of the registered model does."""
        answers = self.pyfunc.predict(rows, params={"base": self.base})
        assert isinstance(answers, pd.DataFrame)
        return answers

    def vectors(self, rows: pd.DataFrame) -> tuple[Mapping[str, np.ndarray], list[str | None]]:
        """Each modality's unit vectors of raw rows, and problems: see `SensoriumModel.vectors`."""
        return self._ours.vectors(rows, base=self.base)

    @property
    def _ours(self) -> SensoriumModel:
        model = self.pyfunc.unwrap_python_model()
        if not isinstance(model, SensoriumModel):
            raise ForeignModel(
                f"{self.pyfunc.metadata.model_uuid} was not logged by this project, so it cannot "
                "be compared; register it under another name, or take the alias from it"
            )
        return model


@contextlib.contextmanager
def loaded(uri: str, *, base: str) -> Iterator[LoadedModel]:
    """The model at a URI such as `models:/digits@champion`, for the time of a block.

    From a copy: MLflow writes a file beside a model that it loads from a local folder.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        pyfunc = mlflow.pyfunc.load_model(uri, dst_path=folder)
        yield LoadedModel(pyfunc=pyfunc, base=base, files=Path(folder))


def _stacked(found: Mapping[int, np.ndarray], *, rows: int, dim: int) -> np.ndarray:
    """Embeddings by row as float32 `[rows, D]`, zero where there is none."""
    values = np.zeros((rows, dim), np.float32)
    for row, value in found.items():
        values[row] = value
    return values


def _padded(
    found: Mapping[int, np.ndarray], *, rows: int, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences by row as float32 `[rows, T, D]`, and a mask `[rows, T]` of where a step is."""
    longest = max([1, *map(len, found.values())])
    values = np.zeros((rows, longest, dim), np.float32)
    mask = np.zeros((rows, longest), bool)
    for row, value in found.items():
        values[row, : len(value)] = value
        mask[row, : len(value)] = True
    return values, mask


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


def _payloads(rows: pd.DataFrame, *, columns: PayloadColumns) -> list[Any]:
    """The payload of each row; None where it is missing, or its column is not there."""

    def cells(name: str | None) -> list[Any]:
        if name is None or name not in rows.columns:
            return [None] * len(rows)
        return [_cell(value, column=name, columns=columns) for value in rows[name].tolist()]

    return columns.combine(
        [cells(name) for name in columns.columns],
        starts=cells(columns.start),
        ends=cells(columns.end),
    )


def _cell(value: Any, *, column: str, columns: PayloadColumns) -> Any:
    """A cell as a payload or a part of one; None for what stands for a missing one."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating) and np.isnan(value):
        return None
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if columns.kind == "table" or column in (columns.start, columns.end):
        return value.item() if isinstance(value, np.generic) else value
    if columns.kind in NUMBER_KINDS and isinstance(value, list | tuple | np.ndarray):
        return as_numbers(value)
    if isinstance(value, str | bytes):
        return value
    wanted = "a list of numbers" if columns.kind in NUMBER_KINDS else "text, a path or URI, bytes"
    raise TypeError(
        f"column {column!r} holds a {type(value).__name__}; a payload is {wanted}, or None if it "
        "is missing"
    )


def _signature(inputs: Mapping[str, Input], *, record: CandidateRecord) -> Any:
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


def _example(inputs: Mapping[str, Input]) -> pd.DataFrame:
    cells = [example_cells(item) for item in inputs.values()]
    return pd.DataFrame({name: [cell, None] for some in cells for name, cell in some.items()})


def _requirements() -> list[str]:
    found = []
    for name in REQUIRED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(f"{name}=={version.partition('+')[0]}")
    return found
