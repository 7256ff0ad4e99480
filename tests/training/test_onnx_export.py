"""Every candidate as an ONNX graph that answers as it does, in onnxruntime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training.answering import predict
from training.built_in import BUILT_IN, parse_candidate
from training.candidate import CandidateRecord
from training.models.members import with_members
from training.onnx_export import NotExportable, check_onnx, export_onnx, presence_patterns
from training.spec import InputSpec
from training.task import parse_task

DIMS = {"caption": 5, "photo": 7, "steps": 4}
KINDS: dict[str, dict[str, Any]] = {
    "single": {"modality": "photo"},
    "early": {},
    "late": {"combine": "learned"},
    "gated": {},
    "low_rank": {},
    "attention": {},
    "co_attention": {},
    "cross_modal": {},
    "bottleneck": {},
    "alignment": {"dim": 6},
    "cca": {"dim": 3},
    "translation": {},
}
MORE = [
    ("late", {"combine": "mean"}),
    ("late", {"combine": "stacked"}),
    ("alignment", {"dim": 6, "loss": "sigmoid"}),
]
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"target": "label"},
    "multilabel": {"type": "multilabel", "target": "tags"},
    "regression": {"type": "regression", "target": ["a", "b"]},
    "retrieval": {"type": "retrieval"},
}


def fitted(
    *specs: dict[str, Any], task: str = "classification", sequence: bool = True
) -> tuple[nn.Module, CandidateRecord]:
    """The last of some candidates with weights and statistics that all matter, and its record."""
    width = {} if specs[-1]["type"] in ("cca",) else {"width": 8}
    given = [
        parse_candidate(s if s["type"] in ("average", "filled", "soup", "cca") else {**width, **s})
        for s in specs
    ]
    spec = with_members(given, task=parse_task(TASKS[task]))[-1]
    names = spec.resolved_modalities(tuple(DIMS))
    inputs = {m: InputSpec(dim=DIMS[m], sequence=sequence and m == "steps") for m in names}
    outputs = {"regression": 2, "retrieval": 0}.get(task, 3)
    torch.manual_seed(7)
    model = spec.build(inputs=inputs, outputs=outputs).eval().requires_grad_(False)
    state = {
        name: value + torch.randn_like(value).abs() * 0.3 if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model, CandidateRecord(
        fingerprint="f", name=spec.name, spec=spec.model_dump(mode="json"), training={},
        task=TASKS[task], snapshot="s", part="p",
        classes=["a", "b"] if task == "regression" else ["x", "y", "z"][:outputs],
        modalities={m: {"kind": "vector", "dim": i.dim, "sequence": i.sequence} for m, i in inputs.items()},
        parameters=1, status="fitted", failure=None, best_epoch=1, epochs=[], seconds=1.0,
        workers=1, metrics=None, retrieval=None, temperature=1.7,
        target_scale={"mean": [3.0, -40.0], "std": [0.5, 20.0]} if task == "regression" else None,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), [*KINDS.items(), *MORE], ids=lambda value: str(value))
def test_it_answers_as_the_model_for_every_subset_of_its_modalities(kind, options) -> None:
    model, record = fitted({"type": kind, **options})
    exported = export_onnx(model, record=record)
    checked = exported.described["checked"]
    assert checked["subsets"] == 2 ** len(record.modalities)
    assert checked["greatest_difference"] < 1e-5
