"""Fitted candidates as ONNX graphs, checked against what they were made of.

A graph takes embeddings and answers as `training.answering.predict` does: normalisation,
temperature and the scale of a regression are in it. Inputs are `{modality}` float32 `[B, D]` (of
sequences `[B, T, D]`, and `{modality}_mask` bool `[B, T]`), and `{modality}_present` bool `[B]`.
Outputs are `answers` `[B, C]`, or, of a retrieval, for each modality `{modality}_vector` float32
`[B, S]`. ONNX: https://onnx.ai/onnx/repo-docs/IR.html.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.encoders.base import import_extra
from training.answering import embed, predict, task_of
from training.candidate import CandidateRecord

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 18
TOLERANCE = 1e-4
"""Most that an answer may differ: of probabilities and vectors by itself, of numbers over the
deviation of the targets. The rounding of float32 alone comes to 4e-5 in deep transformers of large
weights, and to some 1e-6 in others."""
MOST_PATTERNS = 64
"""Subsets of modalities that are tried; of more, those of one and of all but one, and none."""
TRIED = ((1, 1), (2, 3), (7, 5), (33, 2))
"""Rows, and steps of sequences, that are tried with each subset."""
SEED = 0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-_])")
"""What moves or colours on a terminal: ECMA-48, section 5.4."""


class NotExportable(ValueError):
    """A model that has no ONNX graph which answers as it does."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A graph, and what it was found to be."""

    graph: bytes
    """The file, weights included."""
    described: Mapping[str, Any]
    """Inputs, outputs and their shapes, classes, and the check, as JSON values."""


def export_onnx(model: nn.Module, *, record: CandidateRecord) -> Exported:
    """A fitted candidate as ONNX, checked with every subset of its modalities present.

    NotExportable if torch finds no such graph, or if onnxruntime answers otherwise.
    """
    import_extra("onnx", extra="onnx")  # what torch exports with
    import_extra("onnxscript", extra="onnx")
    _refuse_collisions(record)
    graph = _traced(model, record=record)
    checked = check_onnx(graph, model=model, record=record)
    return Exported(
        graph=graph,
        described={
            "candidate": record.fingerprint,
            "name": record.name,
            "task": dict(record.task),
            "opset": OPSET,
            "inputs": {name: _described(name, record=record) for name in _inputs(record)},
            "outputs": _outputs(record),
            "classes": list(record.classes),
            "checked": checked,
        },
    )


def check_onnx(graph: bytes, *, model: nn.Module, record: CandidateRecord) -> dict[str, Any]:
    """How far a graph's answers are from the model's, by onnxruntime on random embeddings.

    What is missing is NaN, which must make no difference. NotExportable if it is too far.
    """
    runtime = import_extra("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # an operator that it does not have, a graph that is wrong
        raise NotExportable(f"{record.name!r}: onnxruntime refuses the graph: {error}") from error
    scale = _scale(record)
    worst, patterns, rows = 0.0, 0, 0
    for present in presence_patterns(tuple(record.modalities)):
        patterns += 1
        for count, steps in TRIED:
            given = random_inputs(record, present=present, rows=count, steps=steps, seed=patterns)
            expected = _expected(model, record=record, given=given)
            try:
                outputs = session.run(None, given)
            except Exception as error:
                raise NotExportable(
                    f"{record.name!r}: onnxruntime fails for {count} rows: {error}"
                ) from error
            found = dict(zip([o.name for o in session.get_outputs()], outputs))
            for name, wanted in expected.items():
                if found[name].shape != wanted.shape or not np.isfinite(found[name]).all():
                    raise NotExportable(
                        f"{record.name!r}: for {count} rows the graph's {name} is "
                        f"{found[name].shape}, not all finite numbers of {wanted.shape}"
                    )
                away = float(np.abs((found[name] - wanted) / scale).max(initial=0))
                if not np.isfinite(away):  # a maximum would pass over it
                    raise NotExportable(
                        f"{record.name!r}: for {count} rows the model's own {name} is not all "
                        "finite numbers, so that nothing can be compared with it"
                    )
                worst = max(worst, away)
            rows += count
    if not worst <= TOLERANCE:
        raise NotExportable(
            f"{record.name!r}: by onnxruntime its answers differ by up to {worst:.2g}, more than "
            f"{TOLERANCE:g}"
        )
    return {
        "greatest_difference": worst,
        "tolerance": TOLERANCE,
        "subsets": patterns,
        "of_subsets": 2 ** len(record.modalities),
        "rows": rows,
        "onnxruntime": runtime.__version__,
    }


def presence_patterns(modalities: tuple[str, ...]) -> Iterator[frozenset[str]]:
    """Which modalities are present, none and all of them included."""
    count = len(modalities)
    sizes = range(count + 1) if 2**count <= MOST_PATTERNS else (0, 1, count - 1, count)
    for size in sizes:
        yield from map(frozenset, itertools.combinations(modalities, size))


def random_inputs(
    record: CandidateRecord, *, present: frozenset[str], rows: int, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """What a graph takes: random embeddings of so many rows, NaN where a modality is missing.

    The first row has the modalities that are `present`, and others have some of them, too.
    """
    rng = np.random.default_rng((SEED, seed, rows))
    found: dict[str, np.ndarray] = {}
    for name, part in record.modalities.items():
        there = (rng.random(rows) < 0.75) & (name in present)
        there[:1] = name in present
        shape = (rows, steps) if part.get("sequence") else (rows,)
        values = rng.normal(size=(*shape, int(part["dim"]))).astype(np.float32)
        values[~there] = np.nan
        found[name] = values
        if part.get("sequence"):
            lengths = rng.integers(1, steps + 1, size=rows)
            mask = np.arange(steps)[None, :] < lengths[:, None]
            values[~mask] = np.nan
            found[_mask(name)] = mask & there[:, None]
        found[_present(name)] = there
    return {name: found[name] for name in _inputs(record)}


def _traced(model: nn.Module, *, record: CandidateRecord) -> bytes:
    import torch

    given = random_inputs(record, present=frozenset(record.modalities), rows=3, steps=4, seed=0)
    tensors = tuple(torch.from_numpy(np.nan_to_num(value)) for value in given.values())
    batch = torch.export.Dim("batch")
    shapes = [
        {0: batch, 1: torch.export.Dim(f"steps_{place}")}
        if (name.endswith("_mask") or _is_sequence(name, record=record))
        else {0: batch}
        for place, name in enumerate(given)
    ]
    # A mask is as long as its sequence.
    names = list(given)
    for place, name in enumerate(names):
        if _is_sequence(name, record=record):
            shapes[names.index(_mask(name))] = shapes[place]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _answering(model, record=record),
                tensors,
                input_names=names,
                output_names=list(_outputs(record)),
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes={"tensors": tuple(shapes)},
                verbose=False,
            )
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # whatever torch meets in a model's code
        raise NotExportable(
            f"{record.name!r}, a {record.spec.get('type')!r}, has no ONNX graph: {_reason(error)}"
        ) from error
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What an error comes from, in one line of plain text: torch puts banners before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _ESCAPES.sub("", str(error)).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


def _refuse_collisions(record: CandidateRecord) -> None:
    """NotExportable if two inputs or outputs of the graph would have one name."""
    seen: set[str] = set()
    for name in (*_inputs(record), *_outputs(record)):
        if name in seen:
            raise NotExportable(
                f"{record.name!r}: the graph would have two inputs or outputs {name!r}, by the "
                f"names of the modalities {', '.join(record.modalities)}; a modality that is named "
                "otherwise has one"
            )
        seen.add(name)


def _answering(model: nn.Module, *, record: CandidateRecord) -> nn.Module:
    """The model as it answers: a module of tensors, in the order of `_inputs`."""
    from torch import nn

    names, modalities = _inputs(record), tuple(record.modalities)
    sequences = {m for m in modalities if _is_sequence(m, record=record)}
    task = task_of(record)
    retrieval = record.task.get("type") == "retrieval"

    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()

        def forward(self, *tensors: torch.Tensor) -> Any:
            given = dict(zip(names, tensors, strict=True))
            inputs = (
                {m: given[m] for m in modalities},
                {m: given[_present(m)] for m in modalities},
                {m: given[_mask(m)] for m in modalities if m in sequences},
            )
            if not retrieval:
                return task.answers(self.model(*inputs))
            vectors, _ = self.model.embed_all(*inputs)  # type: ignore[operator]
            order = list(self.model.modalities)  # type: ignore[arg-type]
            return tuple(vectors[:, order.index(m)] for m in modalities)

    return Answering()


def _expected(
    model: nn.Module, *, record: CandidateRecord, given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    modalities = tuple(record.modalities)
    inputs: dict[str, Any] = {
        "embeddings": {m: given[m] for m in modalities},
        "presence": {m: given[_present(m)] for m in modalities},
        "masks": {m: given[_mask(m)] for m in modalities if _is_sequence(m, record=record)},
    }
    if record.task.get("type") == "retrieval":
        vectors = embed(model, **inputs)
        return {f"{m}_vector": vectors[m] for m in modalities}
    return {"answers": predict(model, record=record, **inputs)}


def _inputs(record: CandidateRecord) -> list[str]:
    names = []
    for name in record.modalities:
        names += [name, *([_mask(name)] if _is_sequence(name, record=record) else [])]
        names.append(_present(name))
    return names


MEANING = {
    "classification": "probabilities, calibrated, in the order of `classes`; a row sums to 1",
    "multilabel": "the probability of each of `classes` by itself, calibrated",
    "regression": "the numbers of `classes`, in the units of the table",
}


def _outputs(record: CandidateRecord) -> dict[str, dict[str, Any]]:
    if record.task.get("type") == "retrieval":
        means = "a unit vector in the common space; of no account where the modality is missing"
        return {
            f"{m}_vector": {"dtype": "float32", "shape": ["batch", "width"], "means": means}
            for m in record.modalities
        }
    shape = ["batch", len(record.classes)]
    task = str(record.task.get("type"))
    dtype = "float64" if task == "regression" else "float32"
    return {"answers": {"dtype": dtype, "shape": shape, "means": MEANING.get(task, "")}}


def _described(name: str, *, record: CandidateRecord) -> dict[str, Any]:
    """An input's type and shape, and what it is to hold."""
    if name in record.modalities:
        dtype = "float32"
        means = "embeddings by its encoder; any numbers, NaN too, where it is missing"
    else:
        dtype = "bool"
        missing = name in map(_present, record.modalities)
        means = "whether the row has it" if missing else "which of its steps are there"
    return {"dtype": dtype, "shape": _shape(name, record=record), "means": means}


def _shape(name: str, *, record: CandidateRecord) -> list[Any]:
    part = record.modalities.get(name)
    if part is None:
        return ["batch"] if name in map(_present, record.modalities) else ["batch", "steps"]
    return ["batch", *(["steps"] if part.get("sequence") else []), int(part["dim"])]


def _scale(record: CandidateRecord) -> np.ndarray | float:
    scale = record.target_scale
    return 1.0 if scale is None else np.array(scale["std"], np.float64)


def _is_sequence(name: str, *, record: CandidateRecord) -> bool:
    return bool(record.modalities.get(name, {}).get("sequence"))


def _present(name: str) -> str:
    return f"{name}_present"


def _mask(name: str) -> str:
    return f"{name}_mask"


def described_text(described: Mapping[str, Any]) -> str:
    """What is said of a graph, as a JSON file."""
    return json.dumps(described, indent=1, ensure_ascii=False, default=str) + "\n"
