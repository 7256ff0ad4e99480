"""What the YAML may say of tuned encoders, and what it is told if it says something else."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest

from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.encoders.text import HashingSpec
from features.fingerprint import fingerprint
from training.built_in import parse_candidate
from training.task import ClassificationSpec, RegressionSpec
from training.tuning.spec import FinetuneSpec, TuningSpec


def finetune(**options: Any) -> FinetuneSpec:
    made = {"type": "finetune", "head": {"type": "early"}, "encoders": {"caption": "full"}}
    spec = parse_candidate(made | options)
    assert isinstance(spec, FinetuneSpec)
    return spec


def test_the_head_says_what_the_two_have_in_common() -> None:
    head = {"type": "attention", "modalities": ["caption", "photo"], "seed": 3, "width": 8}
    spec = finetune(head={**head, "learning_rate": 0.01, "modality_dropout": 0.4})
    assert (spec.seed, spec.learning_rate, spec.modality_dropout) == (3, 0.01, 0.4)
    assert spec.name == "finetune-attention"
    assert spec.resolved_modalities(("caption", "photo", "speech")) == ("caption", "photo")
    assert finetune(head={"type": "single", "modality": "caption"}).resolved_modalities(
        ("caption", "photo")
    ) == ("caption",)


def test_a_word_stands_for_what_is_tuned() -> None:
    assert finetune(encoders={"caption": "lora"}).encoders == {"caption": TuningSpec(tune="lora")}


def test_a_record_of_it_is_read_again_as_it_was() -> None:
    spec = finetune(
        head={"type": "early", "modalities": ["caption", "photo"]},
        encoders={"caption": {"tune": "lora", "rank": 4, "alpha": 8.0}, "photo": "full"},
    )
    again = parse_candidate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec
    assert fingerprint(again) == fingerprint(spec)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"name": "other"}, True),
        ({"gradient_checkpointing": True}, True),
        ({"encoder_learning_rate": 1e-4}, False),
        ({"head": {"type": "early", "width": 9}}, False),
        ({"encoders": {"caption": "lora"}}, False),
        ({"head": {"type": "alignment"}}, False),
    ],
)
def test_identity_is_what_changes_a_result(options: dict[str, Any], same: bool) -> None:
    assert (fingerprint(finetune(**options)) == fingerprint(finetune())) is same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "`seed` belongs into `head`, which says 0"),
        ({"learning_rate": 4e-3}, "`learning_rate` belongs into `head`, which says 0.001"),
        ({"head": {"type": "translation"}}, "which would be learned; .*`single` or `alignment`"),
        ({"head": {"type": "cca"}}, "closed form, without a gradient; .*`single` or `alignment`"),
        ({"head": {"type": "soup", "of": ["a", "b"]}}, "of candidates that are fitted already"),
        ({"encoders": {}}, "at least 1 item"),
        ({"encoders": {"caption": {"tune": "last"}}}, "needs `layers`"),
        ({"encoders": {"caption": {"tune": "full", "rank": 2}}}, "`rank` is not an option of"),
        ({"encoders": {"caption": {"tune": "lora", "layers": 2}}}, "`layers` is not an option of"),
        ({"encoders": {"caption": "frozen"}}, "'full', 'last' or 'lora'"),
        (
            {"head": {"type": "finetune", "head": {"type": "early"}, "encoders": {"a": "full"}}},
            "is itself a `finetune`",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, pydantic.ValidationError), match=message):
        finetune(**options)


def test_a_head_that_aligns_says_what_is_learned_from_and_what_it_may_be_asked() -> None:
    aligned = {"type": "alignment", "class_names": {"modality": "caption"}}
    spec = finetune(head=aligned)
    assert (spec.objective, finetune().objective) == ("own", "task")
    encoders = {
        "caption": HuggingFaceTextSpec.model_construct(model="/nowhere"),
        "photo": HuggingFaceTextSpec.model_construct(model="/nowhere"),
    }
    both = finetune(head=aligned, encoders={"caption": "full", "photo": "full"})
    assert both.resolved_modalities(tuple(encoders)) == ("caption", "photo")
    assert not list(both.check_encoders(encoders)), "names of classes do not restrict the others"
    ((where, text),) = spec.check_encoders({"caption": encoders["caption"]})
    assert where == ("head",) and "takes at least 2 modalities" in text
    of_classes = finetune(head={"type": "alignment", "positives": "class"})
    ((where, text),) = of_classes.check_task(RegressionSpec(target="price"))
    assert where == ("head", "positives") and "no classes" in text
    assert not list(of_classes.check_task(ClassificationSpec(target="label")))
    chunked = finetune(head={"type": "alignment", "cache_rows": 4})
    assert fingerprint(chunked) == fingerprint(finetune(head={"type": "alignment"}))


def test_encoders_that_cannot_be_tuned_are_told_with_their_place() -> None:
    encoders = {
        "caption": HashingSpec(),
        "title": HuggingFaceTextSpec.model_construct(model="/nowhere"),
    }
    head = {"type": "early", "modalities": ["caption", "title"]}
    spec = finetune(head=head)
    ((where, text),) = spec.check_encoders(encoders)
    assert where == ("encoders", "caption")
    assert "'hashing'" in text and "those that have: title" in text
    assert not list(finetune(head=head, encoders={"title": "full"}).check_encoders(encoders))
    ((where, text),) = finetune(head=head, encoders={"photo": "full"}).check_encoders(encoders)
    assert where == ("encoders", "photo")
    assert "does not take 'photo'" in text
