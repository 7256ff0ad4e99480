from __future__ import annotations

import pydantic
import pytest

from features.fingerprint import fingerprint
from training.built_in import parse_candidate
from training.losses.contrastive import modality_pairs
from training.models.alignment_spec import AlignmentSpec
from training.spec import InputSpec


def test_an_anchor_is_checked_where_modalities_are_named() -> None:
    AlignmentSpec(modalities=("photo", "sound"), anchor="photo")
    with pytest.raises(pydantic.ValidationError, match="did you mean 'photo'"):
        AlignmentSpec(modalities=("photo", "sound"), anchor="phto")


def test_an_anchor_is_checked_against_the_pipeline_and_does_not_choose_its_modalities() -> None:
    spec = AlignmentSpec(anchor="photo")
    assert spec.resolved_modalities(["sound", "photo", "text"]) == ("photo", "sound", "text")
    assert list(spec.named_modalities()) == [(("anchor",), "photo")]
    with pytest.raises(ValueError, match="none of the candidate's modalities"):
        spec.resolved_modalities(["sound", "text"])


def test_the_model_has_the_pairs_and_the_loss_that_the_spec_names() -> None:
    inputs = {m: InputSpec(dim=3) for m in ("a", "b", "c")}
    spec = {"type": "alignment", "anchor": "b", "loss": "sigmoid", "learn_temperature": False}
    model = parse_candidate(spec).build(inputs=inputs, outputs=2)
    assert model.pairs == modality_pairs(3, anchor=1)
    assert model.bias.item() == -10
    assert not model.log_scale.requires_grad
    plain = parse_candidate({"type": "alignment"}).build(inputs=inputs, outputs=2)
    assert plain.pairs == modality_pairs(3)
    assert plain.bias is None
    assert plain.log_scale.requires_grad


def test_cached_gradients_change_no_identity() -> None:
    assert fingerprint(AlignmentSpec(cache_rows=512)) == fingerprint(AlignmentSpec())
    assert fingerprint(AlignmentSpec(anchor="a")) != fingerprint(AlignmentSpec())
    assert fingerprint(AlignmentSpec(loss="sigmoid")) != fingerprint(AlignmentSpec())
    assert fingerprint(AlignmentSpec(positives="class")) != fingerprint(AlignmentSpec())
    before = "0c7fbebfa44eab1023f49883f78ec5fd"
    assert fingerprint(AlignmentSpec()) == before, "as before there were positives by class"
    with pytest.raises(pydantic.ValidationError, match="cache_rows"):
        AlignmentSpec(cache_rows=0)


def test_alignment_needs_two_modalities() -> None:
    for kind in ("alignment", "cca"):
        with pytest.raises(ValueError, match="at least 2"):
            parse_candidate({"type": kind, "modalities": ["a"]})
