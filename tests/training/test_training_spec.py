from __future__ import annotations

import json
import subprocess
import sys

import pydantic
import pytest

from features.fingerprint import Spec
from training.built_in import BUILT_IN, CandidateField, parse_candidate
from training.models.fusion_spec import AttentionSpec, EarlySpec, FusionSpec, LateSpec, SingleSpec
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec


class OwnSpec(CandidateSpec):
    """A candidate of a user's own."""

    extra: int = 1


class Holder(Spec):
    candidates: tuple[CandidateField, ...]


def test_every_built_in_is_parsed_by_its_type() -> None:
    for name, kind in BUILT_IN.items():
        options = {
            "single": {"modality": "speech"},
            "finetune": {"head": {"type": "early"}, "encoders": {"caption": "full"}},
            "soup": {"of": ["a", "b"]},
            "average": {"of": ["a", "b"]},
            "filled": {"of": ["a", "b"]},
        }.get(name, {})
        assert type(parse_candidate({"type": name, **options})) is kind


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"'atention'; did you mean 'attention'\? built in: alignment"
    ):
        parse_candidate({"type": "atention"})


def test_dotted_path_finds_a_class_of_ones_own() -> None:
    sys.modules["own_candidates"] = sys.modules[__name__]
    spec = parse_candidate({"type": "own_candidates.OwnSpec", "extra": 3})
    assert isinstance(spec, OwnSpec)
    assert (spec.extra, spec.name) == (3, "OwnSpec")
    with pytest.raises(ValueError, match=r"'json\.JSONDecoder' is not a subclass of training"):
        parse_candidate({"type": "json.JSONDecoder"})
    with pytest.raises(ValueError, match="cannot be imported"):
        parse_candidate({"type": "no_such_package.Spec"})


def test_name_follows_from_the_type_if_it_is_not_given() -> None:
    assert parse_candidate({"type": "late"}).name == "late"
    assert parse_candidate({"type": "single", "modality": "speech"}).name == "single-speech"
    assert parse_candidate({"type": "late", "name": "mine"}).name == "mine"
    assert parse_candidate({"type": "late", "combine": "stacked"}).name == "late-stacked"
    assert parse_candidate({"type": "late", "combine": "learned"}).name == "late"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"type": "early", "modalities": ["a"]}, "at least 2 modalities, not 1"),
        ({"type": "late", "modalities": ["a", "b", "a"]}, "names one of them twice"),
        ({"type": "single", "modality": "a", "modalities": ["a"]}, "not `modalities`"),
        ({"type": "attention", "width": 30, "heads": 4}, "not a multiple of `heads` 4"),
        ({"type": "co_attention", "width": 30}, "not a multiple of `heads` 4"),
        ({"type": "bottleneck", "layers": 3}, "of 3 `layers` it is 0 to 1"),
        ({"type": "bottleneck", "layers": 1, "fusion_layer": 0}, "greater than or equal to 2"),
        ({"type": "low_rank", "rank": 0}, "greater than or equal to 1"),
        ({"type": "late", "combine": "median"}, "'mean', 'learned' or 'stacked'"),
        ({"type": "late", "widht": 3}, "did you mean 'width'"),
        ({"type": "late", "dropout": 1.0}, "less than 1"),
        ({"type": "late", "learning_rate": 0}, "greater than 0"),
        ({"type": "late", "learning_rate": float("nan")}, "finite"),
        ({}, "a candidate is a mapping with `type`"),
    ],
)
def test_bad_candidate_is_refused_with_the_reason(value: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.model_validate({"candidates": [value]})


def test_candidates_survive_json() -> None:
    holder = Holder.model_validate(
        {"candidates": [{"type": "attention", "layers": 3}, {"type": "single", "modality": "x"}]}
    )
    again = Holder.model_validate_json(holder.model_dump_json())
    assert again == holder
    assert isinstance(again.candidates[0], AttentionSpec)


def test_resolved_modalities_are_sorted_and_checked() -> None:
    assert LateSpec().resolved_modalities(("speech", "caption")) == ("caption", "speech")
    named = EarlySpec(modalities=("speech", "photo"))
    assert named.resolved_modalities(("speech", "caption", "photo")) == ("photo", "speech")
    with pytest.raises(ValueError, match=r"no modality 'speach'; did you mean 'speech'\?"):
        SingleSpec(modality="speach").resolved_modalities(("speech", "caption"))
    with pytest.raises(ValueError, match="at least 2 modalities, not 1"):
        LateSpec().resolved_modalities(("caption",))


def test_fusions_take_modalities_away_while_training() -> None:
    for name, kind in BUILT_IN.items():
        fuses = issubclass(kind, FusionSpec)
        assert kind.model_fields["modality_dropout"].default == (0.2 if fuses else 0.0), name
        # Of a head, or of candidates, that take one.
        alone = name in ("single", "finetune", "soup", "average", "filled")
        assert kind.least_modalities == (1 if alone else 2), name


def test_named_modalities_say_where_they_stand() -> None:
    assert list(SingleSpec(modality="a").named_modalities()) == [(("modality",), "a")]
    assert list(LateSpec(modalities=("a", "b")).named_modalities()) == [
        (("modalities", 0), "a"),
        (("modalities", 1), "b"),
    ]
    assert list(LateSpec().named_modalities()) == []


def test_identity_leaves_out_names_workers_and_checkpoints() -> None:
    assert "name" not in LateSpec(name="x").identity()
    assert "seed" in LateSpec().identity()
    identity = TrainingSpec(workers=4).identity()
    assert "workers" not in identity
    assert "checkpoint_every" not in identity
    assert "batch_size" in identity


def test_schema_describes_every_built_in_and_ones_own() -> None:
    schema = Holder.model_json_schema()["properties"]["candidates"]["items"]["oneOf"]
    types = [part["properties"]["type"].get("const") for part in schema]
    assert types == [*BUILT_IN, None]
    assert all("type" in part["required"] for part in schema)
    # An editor finds no reference to what stands elsewhere.
    assert "$ref" not in json.dumps(schema)
    # A field's docstring is its description.
    assert "hidden layers" in schema[0]["properties"]["width"]["description"]


def test_specs_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        LateSpec().seed = 3  # type: ignore[misc]


def test_import_and_planning_load_no_torch() -> None:
    code = (
        "import sys, json, training.built_in, training.candidate, training.evaluation.bootstrap;"
        "training.built_in.parse_candidate({'type': 'late'});"
        "print(json.dumps([m for m in ('torch', 'ray', 'sklearn') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
