"""A user's class whose code has changed, with or without its `version`."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from features.by_name import code_digest
from features.encoders import parse_encoder
from features.encoders.text import HashingSpec
from tests.features.world import World
from training.agenda import Due, Standing
from training.built_in import parse_candidate
from training.candidate import CandidateRecord, PlannedCandidate
from workflows.plan import print_changed_code
from workflows.scoring import _changed_code
from workflows.train import print_standing

CODE = """
from typing import ClassVar, Literal

from tests.features.world import Letters
from features.encoders import EncoderSpec
from training.models.fusion_spec import EarlySpec


class OwnSpec(EncoderSpec):
    kind: ClassVar = "text"
    type: Literal["own_classes.OwnSpec"] = "own_classes.OwnSpec"
    scale: int = 1
    version: ClassVar[int] = 1
    # a remark

    def load(self):
        return Letters([])


class OwnFusion(EarlySpec):
    type: Literal["own_classes.OwnFusion"] = "own_classes.OwnFusion"
"""


class Code:
    """A file of the user's that is written and imported again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "own_classes.py"

    def write(self, text: str) -> None:
        self.path.write_text(text)
        sys.modules.pop("own_classes", None)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    made = Code(tmp_path)
    made.write(CODE)
    return made


def said_of(world: World) -> str:
    console = Console(file=io.StringIO(), width=1000)
    print_changed_code(world.plan(), store=world.store, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_encoder_whose_code_has_changed_is_named_until_its_version_is_raised(
    code: Code, tmp_path: Path
) -> None:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world")

    def plan_again() -> str:
        world.specs["note"] = parse_encoder({"type": "own_classes.OwnSpec"})
        return said_of(world)

    assert plan_again() == "", "nothing is computed yet"
    world.run()
    spec = world.specs["note"]
    world.store.write_encoder(spec, fingerprint=spec.fingerprint())
    assert plan_again() == ""
    code.write(CODE.replace("# a remark", "# another\n\n"))
    assert plan_again() == "", "comments and blank lines tell nothing"
    changed = CODE.replace("Letters([])", "Letters([0])")
    code.write(changed)
    said = plan_again()
    assert "features.note: the file of own_classes.OwnSpec has changed since its emb" in said
    assert "raise its `version` (it is 1)" in said
    code.write(changed.replace("version: ClassVar[int] = 1", "version: ClassVar[int] = 2"))
    assert plan_again() == "", "it is another encoder now, of which nothing is computed"


def test_a_candidate_whose_code_has_changed_is_named(code: Code) -> None:
    def said() -> str:
        spec = parse_candidate({"type": "own_classes.OwnFusion"})
        planned = PlannedCandidate(spec=spec, fingerprint="f", modalities=(), record=record)
        console = Console(file=io.StringIO(), width=1000)
        due = Due(candidates=(planned,), training=None)  # type: ignore[arg-type]
        standing = Standing(searches=(), candidates=(planned,), rounds=(due,))
        print_standing(standing, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    spec = parse_candidate({"type": "own_classes.OwnFusion"})
    fields = {field.name: None for field in dataclasses.fields(CandidateRecord)}
    record = CandidateRecord(**{**fields, "code": code_digest(type(spec))})
    assert record.code is not None and "has changed" not in said()
    code.write(CODE + "\n\nOTHER = 1\n")
    assert "candidates.OwnFusion: the file of own_classes.OwnFusion has changed" in said()
    record = dataclasses.replace(record, code=None)
    assert "has changed" not in said(), "a record of before this was kept says nothing"


def test_a_registered_model_says_that_the_code_it_answers_by_is_another(code: Code) -> None:
    encoder = parse_encoder({"type": "own_classes.OwnSpec"})
    fusion = parse_candidate({"type": "own_classes.OwnFusion"})
    fields = {field.name: None for field in dataclasses.fields(CandidateRecord)}
    spec = fusion.model_dump(mode="json")
    record = CandidateRecord(
        **{**fields, "name": "own", "spec": spec, "code": code_digest(type(fusion))}
    )
    inputs = {"note": SimpleNamespace(encoder=encoder.model_dump(mode="json"))}
    before = {"note": code_digest(type(encoder))}

    def said() -> list[str]:
        return list(_changed_code(record, inputs=inputs, code=before))  # type: ignore[arg-type]

    assert said() == []
    code.write(CODE.replace("Letters([])", "Letters([0])"))
    first, second = said()
    assert "modality 'note': encoder own_classes.OwnSpec: its file has changed since own" in first
    assert second.startswith("candidate own_classes.OwnFusion: its file has changed")
    before["note"], record = None, dataclasses.replace(record, code=None)
    assert said() == [], "a model of before this was kept says nothing"


def test_what_is_built_in_has_a_version_and_no_digest() -> None:
    assert code_digest(HashingSpec) is None
