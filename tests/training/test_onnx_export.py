"""Every candidate as an ONNX graph that answers as it does, in onnxruntime."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from training.built_in import parse_candidate
from training.candidate import CandidateRecord
from training.models.members import with_members
from training.onnx_export import (
    Exported,
    NotExportable,
    _answering,
    _expected,
    check_onnx,
    export_onnx,
    presence_patterns,
    random_inputs,
)
from training.spec import InputSpec
from training.task import parse_task

DIMS = {"caption": 5, "photo": 7, "steps": 4}
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
        modalities={
            m: {"kind": "vector", "dim": i.dim, "sequence": i.sequence} for m, i in inputs.items()
        },
        parameters=1, status="fitted", failure=None, best_epoch=1, epochs=[], seconds=1.0,
        workers=1, metrics=None, retrieval=None, temperature=1.7,
        target_scale={"mean": [3.0, -40.0], "std": [0.5, 20.0]} if task == "regression" else None,
    )  # fmt: skip


def assert_dtypes(made: Exported) -> None:
    """The description names the types that onnxruntime wants and gives."""
    session = onnxruntime.InferenceSession(made.graph)
    names = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}
    for part, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert {item.name: names[item.type] for item in found} == {
            name: item["dtype"] for name, item in made.described[part].items()
        }


def test_it_answers_as_the_model_for_every_subset_of_its_modalities() -> None:
    model, record = fitted({"type": "attention", "layers": 1, "modalities": ["caption", "steps"]})
    made = export_onnx(model, record=record)
    described = made.described
    assert described["checked"]["subsets"] == 2 ** len(record.modalities)
    assert described["checked"]["greatest_difference"] < 1e-5
    assert described["inputs"]["caption"]["shape"] == ["batch", 5]
    assert described["inputs"]["steps_mask"]["shape"] == ["batch", "steps"]
    assert described["inputs"]["steps_mask"]["dtype"] == "bool"
    assert described["classes"] == ["x", "y", "z"]
    assert_dtypes(made)


def test_numbers_come_in_their_unit_and_another_answer_is_refused() -> None:
    model, record = fitted({"type": "single", "modality": "photo"}, task="regression")
    made = export_onnx(model, record=record)
    session = onnxruntime.InferenceSession(made.graph)
    given = random_inputs(record, present=frozenset({"photo"}), rows=9, steps=1, seed=5)
    (numbers,) = session.run(None, given)
    assert_dtypes(made)
    assert numbers.dtype == np.float64 and abs(numbers[:, 1].mean() + 40) < 40
    # Of targets of a slightly other scale: the check is not passed by what is merely near.
    scale = {"mean": [3.0, -40.0], "std": [0.5, 20.02]}
    other = dataclasses.replace(record, target_scale=scale)
    with pytest.raises(NotExportable, match=r"answers differ by up to \d"):
        check_onnx(made.graph, model=model, record=other)
    # What is no number is not taken for equal.
    next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NotExportable, match=r"the model's own answers is not all finite numbers"):
        check_onnx(made.graph, model=model, record=record)


def test_a_retrieval_gives_vectors_by_modality() -> None:
    model, record = fitted(
        {"type": "cca", "dim": 3, "modalities": ["caption", "photo"]}, task="retrieval"
    )
    made = export_onnx(model, record=record)
    session = onnxruntime.InferenceSession(made.graph)
    given = random_inputs(record, present=frozenset(DIMS), rows=9, steps=1, seed=5)
    given["caption"][:] = 1.0
    given["caption_present"][:] = [True] * 8 + [False]
    vectors = dict(zip([o.name for o in session.get_outputs()], session.run(None, given)))
    assert set(vectors) == {"caption_vector", "photo_vector"}
    lengths = np.linalg.norm(vectors["caption_vector"], axis=1)
    np.testing.assert_allclose(lengths, [*[1] * 8, 0], atol=1e-5)


def test_what_has_no_graph_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, embeddings: Any, presence: Any, masks: Any) -> torch.Tensor:
            if embeddings["photo"].sum() > 0:  # depends on the numbers
                return embeddings["photo"][:, :3] * self.weight
            return embeddings["photo"][:, 3:6] * self.weight

    _, record = fitted({"type": "single", "modality": "photo"})
    with pytest.raises(
        NotExportable, match=r"'single-photo', a 'single', has no ONNX graph: "
    ) as refused:
        export_onnx(Odd(), record=record)
    # What the person who wrote the module can act on, and no banner of torch's.
    told = str(refused.value)
    assert "data-dependent" in told and "\x1b" not in told and "\n" not in told, told


def named(record: CandidateRecord, **modalities: str) -> CandidateRecord:
    """The same of modalities that are named otherwise."""
    parts = {modalities.get(m, m): part for m, part in record.modalities.items()}
    return dataclasses.replace(record, modalities=parts)


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        ({"caption": "photo_present"}, "photo_present"),
        ({"caption": "steps_mask"}, "steps_mask"),
        ({"caption": "answers"}, "answers"),
    ],
)
def test_two_inputs_or_outputs_of_one_name_are_refused(names: dict[str, str], twice: str) -> None:
    model, record = fitted({"type": "early"})
    with pytest.raises(NotExportable, match=f"two inputs or outputs '{twice}'"):
        export_onnx(model, record=named(record, **names))


def test_a_modality_whose_name_is_like_that_of_a_mask_is_none() -> None:
    _, record = fitted({"type": "early"}, sequence=False)
    record = named(record, caption="photo_mask")
    given = random_inputs(record, present=frozenset(record.modalities), rows=3, steps=2, seed=1)
    seen: list[Any] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, embeddings: Any, presence: Any, masks: Any) -> torch.Tensor:
            seen.append(set(masks))
            return embeddings["photo_mask"][:, :3]

    _expected(Watched(), record=record, given=given)
    assert seen == [set()]
    with torch.no_grad():
        _answering(Watched(), record=record)(*map(torch.from_numpy, given.values()))
    assert seen == [set(), set()]


@pytest.mark.parametrize(("count", "patterns"), [(1, 2), (3, 8), (6, 64), (9, 20)])
def test_none_one_all_but_one_and_all_are_tried_of_many(count: int, patterns: int) -> None:
    names = tuple(f"m{i}" for i in range(count))
    found = list(presence_patterns(names))
    assert len(set(found)) == len(found) == patterns
    assert {frozenset(), frozenset(names), frozenset(names[:1])} <= {*found}
