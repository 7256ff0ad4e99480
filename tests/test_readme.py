"""What README shows works as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from features.encoders import BUILT_IN, parse_encoder
from features.encoders.conformance import check_encoder
from training.built_in import BUILT_IN as CANDIDATES
from training.built_in import parse_candidate
from training.evaluation.metrics import metrics_of
from training.spec import InputSpec
from training.task import TASKS, parse_task
from workflows.pipeline import PipelineSpec

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The examples that name their file, on the Python path."""
    for block in blocks("python"):
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in ("my_encoders", "my_fusions"):
        sys.modules.pop(name, None)


def test_the_pipeline_is_valid():
    text, search = map(yaml.safe_load, blocks("yaml"))
    spec = PipelineSpec.model_validate(text)
    assert PipelineSpec.model_validate({**text, **search}).search[0].trials == 24
    assert [candidate.type for candidate in spec.candidates][-1] == "attention"
    assert spec.candidates[-1].learning_rate == 5e-4


def test_every_line_of_the_tables_is_valid(tmp_path):
    (tmp_path / "FOLDER").mkdir()
    lines = re.findall(r"`(\{type: [^`]+\})`", README)
    encoders = [line for line in lines if "my_" not in line and is_encoder(line)]
    candidates = [line for line in lines if "my_" not in line and not is_encoder(line)]
    named = {yaml.safe_load(line)["type"] for line in candidates}
    assert named == set(CANDIDATES), "each built-in candidate has a line"
    shown = set()
    for line in encoders:
        spec = parse_encoder(yaml.safe_load(line), context={"folder": str(tmp_path)})
        assert f"| {spec.kind} | `{line}`" in README
        shown.add(spec.type)
    assert shown == set(BUILT_IN), "the table has a line for every encoder"
    for line in candidates:
        assert parse_candidate(yaml.safe_load(line)).type in line


def test_every_task_has_a_line_and_all_its_metrics_are_told():
    lines = re.findall(r"`task: (\{[^`]+\})`", README)
    tasks = [parse_task(yaml.safe_load(line)) for line in lines]
    assert [task.type for task in tasks] == list(TASKS)
    for task in tasks:
        names = ", ".join(f"`{name}`" for name in metrics_of(task))
        assert f"| {task.type} | {names} |" in README


def is_encoder(line: str) -> bool:
    return yaml.safe_load(line)["type"] in BUILT_IN


def test_the_example_encoder_encodes(modules):
    spec = parse_encoder({"type": "my_encoders.LengthSpec", "scale": 10})
    encoder = spec.load()
    found = encoder.encode([encoder.prepare("two words"), encoder.prepare("one")])
    np.testing.assert_allclose(found, np.log1p([[0.9, 0.2], [0.3, 0.1]]), rtol=1e-6)
    assert spec.fingerprint() != parse_encoder({"type": "my_encoders.LengthSpec"}).fingerprint()


def test_the_example_encoder_conforms(modules):
    """To what `sensorium check-encoder` asks of any."""
    findings = check_encoder(parse_encoder({"type": "my_encoders.LengthSpec"}), elsewhere=False)
    assert [found for found in findings if not found.passed] == []


def test_the_example_fusion_answers_and_ignores_what_is_missing(modules):
    spec = parse_candidate({"type": "my_fusions.SumSpec", "width": 8})
    model = spec.build(inputs={"a": InputSpec(dim=3), "b": InputSpec(dim=2)}, outputs=4).eval()
    embeddings = {"a": torch.randn(5, 3), "b": torch.randn(5, 2)}
    presence = {"a": torch.ones(5, dtype=torch.bool), "b": torch.zeros(5, dtype=torch.bool)}
    logits = model(embeddings, presence, {})
    assert logits.shape == (5, 4)
    torch.testing.assert_close(logits, model({**embeddings, "b": torch.randn(5, 2)}, presence, {}))
