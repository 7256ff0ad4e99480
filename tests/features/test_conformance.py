"""The conformance test of encoders: it bites for each fault, and our own encoders pass it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.encoders import BUILT_IN, EncoderSpec, parse_encoder
from features.encoders.base import Video
from features.encoders.conformance import Finding, check_encoder
from features.encoders.sample_payloads import common_payloads, odd_payloads
from tests.features.broken_encoders import (
    BareSpec,
    BrokenSpec,
    KindlessSpec,
    LockedSpec,
    PaintedSpec,
    PillowSpec,
    ThawedSpec,
)
from tests.features.test_encoders_video import save_videomae
from tests.features.vision_models import save_vit

SPEC = "the spec is frozen, and its fingerprint stable"
DOCUMENTED = "the spec and its fields are documented"
FIT = "a fit is a function of the payloads"
LOADS = "it loads"
PREPARES = "it prepares payloads, and leaves them as they are"
SHAPES = "embeddings have the right shape and type"
BITS = "the same batch gives the same bits"
ALONE = "a payload alone is as in a batch"
NEIGHBOURS = "neighbours and order change nothing"
THREADS = "threads prepare alike"
AT_ONCE = "all at once is prepared as one by one"
PILLOW = "an image of Pillow's is prepared as its array"
ODD = "odd payloads are embedded, or refused with a reason"
PROCESS = "another process gives the same"


def failures(spec: EncoderSpec, **options: Any) -> dict[str, str]:
    found = check_encoder(spec, **options)
    assert all(isinstance(finding, Finding) for finding in found)
    assert all(finding.remedy for finding in found if not finding.passed)
    return {finding.check: finding.problem for finding in found if not finding.passed}


@pytest.mark.parametrize("output", ["pooled", "sequence"])
def test_an_encoder_that_conforms_passes(output: Any) -> None:
    found = check_encoder(BrokenSpec(output=output))
    assert [finding for finding in found if not finding.passed] == []
    assert len({finding.check for finding in found}) == len(found) == 14


@pytest.mark.parametrize(
    ("fault", "check", "says"),
    [
        ("clock", SPEC, "fingerprint of an equal spec differs"),
        ("unnamed weights", SPEC, "no mapping of file names"),
        ("fit", FIT, "still needs a fit"),
        ("no dim", LOADS, "`dim` is 'three'"),
        ("budget of text", LOADS, "`budget` is 'many'"),
        ("refuses", PREPARES, "sample 0 is refused: not in the mood"),
        ("size", PREPARES, "`size` of sample 0"),
        ("counts", PREPARES, "`counts` of sample 0"),
        ("float64", SHAPES, "is float64, not float32"),
        ("list", SHAPES, "gives a list; it is one array"),
        ("width", SHAPES, r"has shape (2,), not (3,)"),
        ("short", SHAPES, "5 embeddings come out for 6 payloads"),
        ("nan", SHAPES, "is not finite"),
        ("large", SHAPES, "out of range for float16"),
        ("random", BITS, "encoded twice: sample 0 differs"),
        ("state", BITS, "differs by"),
        ("batch", ALONE, "a sample alone, and in a batch"),
        ("order", NEIGHBOURS, "another order"),
        ("threads", THREADS, "4 threads"),
        ("all at once", AT_ONCE, "prepare_all"),
        ("crash", ODD, "`prepare` of an empty text raises IndexError"),
        ("silent", ODD, "an empty text is refused without a reason"),
        ("odd nan", ODD, "one letter: the embedding of sample 0 is not finite"),
        ("hash", PROCESS, "the same batch in another process"),
    ],
)
def test_each_fault_is_found(fault: Any, check: str, says: str) -> None:
    found = failures(BrokenSpec(fault=fault), elsewhere=check == PROCESS)
    assert says in found[check]
    if fault not in ("random", "state", "batch"):  # which show in several ways
        assert list(found) == [check]


def test_sequences_are_lists() -> None:
    texts = ["one two", "one three"]  # which fit into one array
    spec = BrokenSpec(fault="list", output="sequence")
    assert "gives a ndarray" in failures(spec, payloads=texts)[SHAPES]


def test_a_spec_that_can_be_changed_is_found() -> None:
    assert "can be changed" in failures(ThawedSpec())[SPEC]
    assert "'smell'" in failures(KindlessSpec())[SPEC]


def test_a_spec_without_words_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failures(BareSpec(), elsewhere=False)
    assert found[DOCUMENTED] == "BareSpec has no docstring"
    monkeypatch.setattr(BareSpec, "__doc__", "Now it has one.")
    found = failures(BareSpec(), elsewhere=False)
    assert found[DOCUMENTED] == "the fields option have no description"


def test_a_payload_that_is_painted_over_is_found() -> None:
    assert "changes its payload" in failures(PaintedSpec())[PREPARES]


def test_images_of_pillows_are_tried_where_they_are_asked_for() -> None:
    found = failures(PillowSpec(), elsewhere=False)
    assert list(found) == [PILLOW] and "sample 0 differs by" in found[PILLOW]


def test_a_spec_that_does_not_travel_is_found() -> None:
    assert "cannot be pickled" in failures(LockedSpec())[PROCESS]
    problem = failures(BrokenSpec(fault="process", parent=os.getpid()))[PROCESS]
    assert "RuntimeError: not here" in problem


def test_a_spec_under_anothers_name_is_found() -> None:
    class Local(BrokenSpec):
        """One that no other process can import."""

    assert PROCESS in failures(Local())


def test_given_payloads_are_used() -> None:
    assert "sample 1 is refused: no words" in failures(BrokenSpec(), payloads=["a", " "])[PREPARES]
    crash = BrokenSpec(fault="crash")
    found = failures(crash, odd={"a blank": " "}, elsewhere=False)
    assert found[ODD].startswith("`prepare` of a blank raises IndexError")
    assert failures(crash, odd={}, elsewhere=False) == {}


def test_built_in_payloads_are_of_their_kind() -> None:
    for spec in BUILT_IN.values():
        made = spec.model_construct()
        assert len(common_payloads(made)) >= 4
        assert len(odd_payloads(made)) >= 3
    clip = common_payloads(BUILT_IN["video_frames"].model_construct())[0]
    assert isinstance(clip, Video)
    frames = clip.sample(count=4)
    np.testing.assert_array_equal(frames, clip.frames)
    np.testing.assert_array_equal(clip.sample(count=1, size=(18, 24))[0], frames[2][::2, ::2])
    assert clip.sound().rate == 16_000


CONFIGURED: dict[str, list[dict[str, Any]]] = {
    "hashing": [{"dim": 32}],
    "hog": [{}],
    "audio_statistics": [{}],
    "video_frames": [
        {"image": {"type": "hog"}},
        {"image": {"type": "hog"}, "rate": 3, "most_frames": 10, "output": "sequence"},
    ],
    "vector": [{"dim": 16}, {"dim": 16, "normalize": True}],
    "series": [{"channels": 2, "output": output} for output in ("statistics", "sequence")],
    "table": [{"numeric": ["age"], "categorical": ["ward"]}],
}
"""Built-in encoders without weights, and options to try them with."""


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"type": name} | options, id=f"{name}-{place}")
        for name, choices in CONFIGURED.items()
        if name in BUILT_IN
        for place, options in enumerate(choices)
    ],
)
def test_built_in_encoders_without_weights_conform(value: dict[str, Any]) -> None:
    assert failures(parse_encoder(value)) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type", "save"), [("huggingface_image", save_vit), ("videomae", save_videomae)]
)
def test_models_conform(type: str, save: Any, tmp_path: Path) -> None:
    save(tmp_path)
    assert failures(parse_encoder({"type": type, "model": str(tmp_path)})) == {}
