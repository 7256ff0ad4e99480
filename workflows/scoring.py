"""The registered model: raw rows in, predictions out, with any modality missing.

The model carries its candidate (weights and record) and, per modality, the column and the
encoder's spec with its fingerprint. It is loaded from code, not from a pickle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from features.by_name import code_digest
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders import Encoder, EncoderSpec, parse_encoder
from features.encoding import Prepared, Rows, encode_rows
from features.fingerprint import Spec
from features.payloads import open_payload
from features.prepare import bytes_of
from features.store import Store
from training.answering import embed
from training.built_in import parse_candidate
from training.candidate import (
    RECORD_FILE,
    CandidateRecord,
    candidate_path,
    load_model_files,
    parse_record,
)
from workflows.inputs import Input, column_names, input_from
from workflows.serving.cells import InvalidCell, payloads
from workflows.serving.places import Places, places_of
from workflows.serving.said import answered, filled, refuse_to_guess
from workflows.serving.signature import example, requirements, signature

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel
    from torch import nn

INPUTS = "inputs.json"
CODE = "from mlflow.models import set_model\nfrom workflows.scoring import SensoriumModel\n\n"
CODE += "set_model(SensoriumModel())\n"
WINDOW_ROWS = 512
"""Most rows that are decoded and held in memory at once."""
WINDOW_BYTES = 2**28
"""Prepared payloads that are held until they are encoded; one more may go over it. The batches that
an encoder is given differ with it, and so, by the rounding of its type, may embeddings: no more
than by which rows are asked about together."""
SERVED_LIMITS = Limits(
    bytes=2**28,
    characters=1_000_000,
    pixels=50_000_000,
    seconds=600.0,
    values=2**26,
    decoded_pixels=2**34,
)
"""The largest payloads that a served model takes of strangers: 256 MB, a million characters, 50
megapixels, ten minutes, 67 million samples or values (256 MiB; ten minutes of stereo at 48 kHz have
58 million), and, of a video, 17 gigapixels on the way to its frames (of 1920 x 1080 pixels, 4.5
minutes at 30 frames a second). Others are too large, which `problems` say. Who loads a model
himself has the limits of the embedding: `features.decoders.base.DEFAULT_LIMITS`."""
_log = logging.getLogger(__name__)


class _Told(MlflowException):
    """An error that a scoring server passes on in these words, and in no others.

    MLflow's server would write all that it was sent before them.
    """

    def serialize_as_json(self) -> str:
        self.message = str(self.args[0])
        text: str = super().serialize_as_json()
        return text


class InvalidInput(_Told, ValueError):
    """Rows that are none for the model: which column, which row, and what is wanted instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class Unanswered(_Told):
    """A served model that cannot answer, for no fault of those who ask it."""

    def __init__(self) -> None:
        super().__init__(
            "the model could not answer; the log of its server says why", error_code=INTERNAL_ERROR
        )


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
        values = {
            name: {**dataclasses.asdict(item), "code": store.code_of(item.encoder_fingerprint)}
            for name, item in inputs.items()
        }
        (place / INPUTS).write_text(json.dumps(values, indent=1))
        (place / "model.py").write_text(CODE)
        info = mlflow.pyfunc.log_model(
            name=record.name,
            python_model=str(place / "model.py"),
            artifacts={"candidate": str(files), "inputs": str(place / INPUTS)},
            signature=signature(inputs, record=record),
            input_example=example(inputs),
            pip_requirements=requirements(),
            tags={"sensorium.candidate": record.fingerprint},
            metadata={"sensorium": {"candidate": record.fingerprint, "snapshot": record.snapshot}},
        )
    return str(info.model_uri)


class SensoriumModel(PythonModel):
    """A candidate behind its encoders, which are loaded when their first payload comes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read what the model consists of; no weights are loaded yet."""
        values = json.loads(Path(context.artifacts["inputs"]).read_text())
        code = {name: value.pop("code", None) for name, value in values.items()}
        self.inputs = {name: input_from(value) for name, value in values.items()}
        self._folder = Path(context.artifacts["candidate"])
        self.record = parse_record((self._folder / RECORD_FILE).read_bytes())
        for text in _changed_code(self.record, inputs=self.inputs, code=code):
            _log.warning("%s", text)
        self._lock = threading.Lock()
        self._encoders: dict[str, tuple[EncoderSpec, Encoder]] = {}
        # Per modality a row that was encoded once: an encoder that fails for it now is broken.
        self._proven: dict[str, Sequence[Prepared]] = {}
        self._model: nn.Module | None = None

    def predict(
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer raw rows, one column per modality: text; paths, URIs or bytes of files.

        None, NaN or an absent column is a missing modality. A payload that cannot be used is
        treated as missing, and said so. `params["base"]` is the folder that relative paths
        start from; without it, the working directory.

        Behind a scoring server no file is read but those below `SENSORIUM_SERVE_ROOTS` (see
        `workflows.serving.places`), the first of which is the base of relative paths, and no
        payload is taken that is larger than `SERVED_LIMITS`.

        Returns, in the input's order and with its index, the answers of the task (see
        `said`), `missing` (names of the modalities that are not there), of a `filled` candidate
        `filled` (names of those that were drawn from the others; the answer had to do without the
        rest), and `problems` (why a payload was not used, or None). A row of which nothing is known
        has no answer (None), and its `problems` say so.

        Raises InvalidInput, a ValueError, if none of the model's columns is there, or for a value
        that is no payload; EncoderMismatch if an encoder is not here, or its weights or options are
        not those that the model was fitted to. What an encoder itself raises is raised if it
        fails for every row and not for the row alone. Of all that, a server's callers are told
        InvalidInput alone; the rest is for its log.
        """
        return self._answer(lambda: _side_by_side(model_input), params=params or {})

    def answer(self, rows: pd.DataFrame, *, params: Mapping[str, Any]) -> pd.DataFrame:
        """As `predict` answers, where each row is one, and a list in it is a payload."""
        return self._answer(lambda: rows, params=params)

    def _answer(
        self, rows: Callable[[], pd.DataFrame], *, params: Mapping[str, Any]
    ) -> pd.DataFrame:
        places = places_of(os.environ)
        try:
            return self._predict(rows(), params=params, places=places)
        except InvalidInput:
            raise
        except InvalidCell as error:
            raise InvalidInput(str(error)) from error
        except Exception:
            if places is None:
                raise
            _log.exception("a request could not be answered")
            raise Unanswered from None

    def _predict(
        self, rows: pd.DataFrame, *, params: Mapping[str, Any], places: Places | None
    ) -> pd.DataFrame:
        columns = column_names(self.inputs)
        repeated = sorted({str(name) for name in rows.columns[rows.columns.duplicated()]})
        if repeated:
            raise InvalidInput(f"the input has several columns {repeated[0]!r}")
        if not {*columns} & {*rows.columns}:
            raise InvalidInput(
                f"the input has none of the model's columns: {', '.join(sorted(columns))}; a "
                "modality may be missing, but at least one column must be there (with null values)"
            )
        base = str(params.get("base") or (places and places.base) or os.getcwd())
        windows = [
            self._predict_window(
                rows.iloc[start : start + WINDOW_ROWS], base=base, places=places, first=start
            )
            for start in range(0, max(1, len(rows)), WINDOW_ROWS)
        ]
        return windows[0] if len(windows) == 1 else pd.concat(windows)

    def _predict_window(
        self, rows: pd.DataFrame, *, base: str, places: Places | None, first: int
    ) -> pd.DataFrame:
        count = len(rows)
        problems: list[list[str]] = [[] for _ in range(count)]
        embeddings, presence, masks = self._embedded(
            rows, base=base, problems=problems, places=places, first=first
        )
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
        self,
        rows: pd.DataFrame,
        *,
        base: str,
        problems: list[list[str]],
        places: Places | None = None,
        first: int = 0,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the model over embeddings is given of a window of rows."""
        count = len(rows)
        embeddings, presence, masks = {}, {}, {}
        for name, item in self.inputs.items():
            values = payloads(rows, columns=item.columns, places=places, base=base, first=first)
            found = self._embed(
                name,
                values=values,
                base=base,
                problems=problems,
                limits=DEFAULT_LIMITS if places is None else SERVED_LIMITS,
            )
            presence[name] = np.array([row in found for row in range(count)], bool)
            if self.record.modalities[name].get("sequence"):
                embeddings[name], masks[name] = _padded(found, rows=count, dim=item.dim)
            else:
                embeddings[name] = _stacked(found, rows=count, dim=item.dim)
        return embeddings, presence, masks

    def _embed(
        self,
        name: str,
        *,
        values: Sequence[Any],
        base: str,
        problems: list[list[str]],
        limits: Limits = DEFAULT_LIMITS,
    ) -> dict[int, np.ndarray]:
        """One modality's embeddings by row, of a window of rows: `[D]`, of sequences `[T, D]`."""
        item = self.inputs[name]
        wanted = [row for row, value in enumerate(values) if value is not None]
        if not wanted:
            return {}
        spec, encoder = self._encoder(name)
        # In the stored type, so that a row scores as its embedding in a store does.
        done = Rows()
        prepared: list[Prepared] = []
        held = 0

        def encode() -> None:
            proven = self._proven.get(name, ())
            encode_rows(prepared, spec=spec, encoder=encoder, into=done, known_good=lambda: proven)
            self._proven[name] = [p for p in prepared if p.row in done.values][:1] or proven

        for row in wanted:
            try:
                payload = open_payload(
                    values[row], columns=item.columns, folder=base, limits=limits
                )
                payload = encoder.prepare(payload)
                prepared.append(Prepared(row=row, payload=payload, size=encoder.size(payload)))
            except BadPayload as error:
                problems[row].append(f"{name}: {error.reason}")
            except ValueError as error:
                problems[row].append(f"{name}: {error}")
            except (OSError, MemoryError):
                raise  # of the machine, and no fault of the row
            except Exception as error:
                problems[row].append(f"{name}: {type(error).__name__}: {error}")
            else:
                held += bytes_of(payload)
                if held >= WINDOW_BYTES:
                    encode()
                    prepared, held = [], 0
        encode()
        for bad in done.bad:
            problems[bad.row].append(f"{name}: {bad.reason}")
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

    def load(self) -> None:
        """Load all encoders and the model, which else their first payloads would wait for.

        Each encodes the example of its modality, if that is no video, so that it is known to work:
        it is then not thought broken by payloads that it fails for, whatever comes first.
        """
        rows = example(self.inputs).iloc[:1]
        for name, item in self.inputs.items():
            self._encoder(name)
            values = payloads(rows, columns=item.columns)
            problems: list[list[str]] = [[]]
            if item.columns.kind != "video":
                self._embed(name, values=values, base="", problems=problems)
            for problem in problems[0]:
                _log.warning("the encoder does not take its example: %s", problem)
        self.fitted()

    def weights(self) -> bytes:
        """The weights of the model over embeddings, as safetensors."""
        return (self._folder / self.record.files["model"]).read_bytes()

    def fitted(self) -> nn.Module:
        """The fitted model over embeddings, loaded once."""
        with self._lock:
            if self._model is None:
                self._model = load_model_files(self._folder)
            return self._model


def _changed_code(
    record: CandidateRecord, *, inputs: Mapping[str, Input], code: Mapping[str, str | None]
) -> Iterator[str]:
    """What to say of classes of the user's own whose files are not those of when it was fitted.

    `code` is by modality. Classes that cannot be imported are told of when they are needed.
    """
    known: dict[str, tuple[str | None, dict[str, Any], Callable[[Any], Spec]]] = {
        f"modality {name!r}: encoder": (code[name], item.encoder, parse_encoder)
        for name, item in inputs.items()
    }
    known["candidate"] = (record.code, dict(record.spec), parse_candidate)
    for what, (before, value, parse) in known.items():
        if before is None:
            continue
        try:
            now = code_digest(type(parse(value)))
        except (ValueError, OSError, ImportError):
            continue
        if now != before:
            yield (
                f"{what} {value.get('type')}: its file has changed since {record.name} was fitted, "
                "and its `version` has not, so this answers by other code than was judged. Put "
                "the file back, or raise `version` and run again"
            )


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

    def answer(self, rows: pd.DataFrame, *, params: Mapping[str, Any]) -> pd.DataFrame:
        """As the registered model answers, of rows that its signature need not look at."""
        return self._ours.answer(rows, params=params)

    def load(self) -> None:
        """Load the encoders and the model now; EncoderMismatch as `encoder` raises it."""
        self._ours.load()

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


def _side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, if MLflow has made one of them all.

    It takes `{"a": ["x", "y"], "b": ["z", "w"]}` for one row of lists, where none holds anything
    but text.
    """
    if len(rows) != 1 or not len(rows.columns):
        return rows
    first: Any = rows.iat[0, 0]
    if not isinstance(first, list) or not first:  # an empty vector is one row's
        return rows
    cells = rows.iloc[0].tolist()
    if not all(isinstance(cell, list) and all(isinstance(x, str) for x in cell) for cell in cells):
        return rows
    if len({len(cell) for cell in cells}) > 1:
        lengths = ", ".join(f"{name!r} {len(c)}" for name, c in zip(rows.columns, cells))
        raise InvalidInput(f"the columns are of different lengths: {lengths}")
    return pd.DataFrame(dict(zip(rows.columns, cells)), dtype=object)
