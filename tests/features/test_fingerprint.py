"""Fingerprints: equal wherever they are made, different for all that matters, or refused."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pydantic
import pytest

from features.encoders import BUILT_IN, EncoderField, EncoderSpec, parse_encoder
from features.fingerprint import Execution, Spec, canonical, fingerprint


class Colour(enum.Enum):
    RED = "red"


class Side(enum.IntEnum):
    LEFT = 1


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float


class Settings(Spec):
    width: int = 3
    threads: Annotated[int, Execution] = 1


ELSEWHERE = """
import json, sys
import numpy as np
from features.encoders import parse_encoder
from features.fingerprint import fingerprint
values = [
    {"b": 1, "a": [1.5, None, True, "é"], "c": {"x", "y", "zz", "w"}},
    np.arange(6, dtype=np.int16).reshape(2, 3),
    frozenset(map(str, range(50))),
]
encoders = [{"type": "hashing"}, {"type": "hog", "size": 64}, {"type": "audio_statistics"}]
found = [fingerprint(value) for value in values]
json.dump(found + [parse_encoder(value).fingerprint() for value in encoders], sys.stdout)
"""


def test_equal_in_every_process() -> None:
    found = []
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 6
    assert all(len(digest) == 32 for digest in found[0])


def test_a_fingerprint_is_a_hash_of_the_canonical_json() -> None:
    # Written out by hand: a change here changes the name of everything in every store.
    value = {"b": (1, 0.5), "a": b"\x01", "c": [None, True, "é"]}
    assert canonical(value) == {
        "map": {
            "a": {"bytes": "01"},
            "b": [{"int": "1"}, {"float": "0x1.0000000000000p-1"}],
            "c": [None, True, "é"],
        }
    }
    text = (
        '{"map":{"a":{"bytes":"01"},'
        '"b":[{"int":"1"},{"float":"0x1.0000000000000p-1"}],'
        '"c":[null,true,"\\u00e9"]}}'
    )
    assert fingerprint(value) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


DIFFERENT: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    0.1 + 0.2,
    0.3,
    "1",
    "",
    b"1",
    [],
    [1],
    [[1]],
    [1, 2],
    [2, 1],
    {},
    {"a": 1},
    {"a": None},
    {"1"},
    ["1", "2"],
    {"1", "2"},
    Colour.RED,
    Side.LEFT,
    "red",
    {"enum": "Colour", "value": "red"},
    {"int": "1"},
    {"float": "0x1.0p+0"},
    Point(1, 2),
    Point(1.0, 2.0),
    {"x": 1, "y": 2},
    Settings(),
    Settings(width=4),
    np.zeros(2),
    np.zeros(2, dtype=np.float32),
    np.zeros((2, 1)),
    np.zeros(2, dtype=bool),
    [0.0, 0.0],
    [-0.0, 0.0],
    float("inf"),
    float("nan"),
    10**30,
]


def test_different_values_have_different_fingerprints() -> None:
    digests = [fingerprint(value) for value in DIFFERENT]
    doubled = [DIFFERENT[i] for i, digest in enumerate(digests) if digests.count(digest) > 1]
    assert doubled == []


def test_form_that_does_not_matter() -> None:
    big = np.arange(4, dtype=">i4")
    pairs: list[tuple[Any, Any]] = [
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"x", "y"}, frozenset(["y", "x"])),
        (np.float64(0.25), 0.25),
        (np.int8(3), 3),
        (big, big.astype("<i4")),
        (np.arange(6).reshape(2, 3).T, np.ascontiguousarray(np.arange(6).reshape(2, 3).T)),
        (Settings(threads=1), Settings(threads=8)),
    ]
    for one, other in pairs:
        assert fingerprint(one) == fingerprint(other), (one, other)


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (lambda x: x, "<lambda>"),
        (Opaque(), "Opaque"),
        (Opaque, "Opaque"),
        (len, "len"),
        (np.array([object()]), "ndarray"),
        (1j, "complex"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_place_and_remedy(
    value: object, shown: str
) -> None:
    with pytest.raises(TypeError) as caught:
        fingerprint({"steps": [1, {"scale": value}]})
    message = str(caught.value)
    assert "value.steps[1].scale" in message
    assert shown in message
    assert "Pass plain data" in message


def test_place_inside_a_dataclass_and_a_spec() -> None:
    class Held(Spec):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        thing: Opaque

    with pytest.raises(TypeError, match=r"value\.x is .*Opaque"):
        fingerprint(Point(Opaque(), 0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"value\.thing is .*Opaque"):
        fingerprint(Held(thing=Opaque()))


def test_keys_that_are_no_text_are_refused() -> None:
    with pytest.raises(TypeError, match=r"value\.a has the key 1"):
        fingerprint({"a": {1: 2}})


# ---------------------------------------------------------------- encoders' identity


@pytest.mark.parametrize("kind", ["hashing", "hog", "audio_statistics"])
def test_an_encoder_is_what_it_computes_and_not_how(kind: str) -> None:
    spec = parse_encoder({"type": kind})
    assert spec.fingerprint() == parse_encoder({"type": kind, "batch_size": 1}).fingerprint()
    assert spec.fingerprint() != parse_encoder({"type": kind, "dtype": "float32"}).fingerprint()


def test_a_raised_version_is_another_encoder() -> None:
    class Before(EncoderSpec):
        kind = "text"
        type: str = "own"

    class After(Before):
        version = 2

    assert Before().fingerprint() != After().fingerprint()


def test_encoders_survive_json() -> None:
    for value in ({"type": "hashing", "ngrams": [2, 4]}, {"type": "hog"}):
        spec = parse_encoder(value)
        again = parse_encoder(json.loads(spec.model_dump_json()))
        assert again == spec
        assert again.fingerprint() == spec.fingerprint()


class Holder(Spec):
    encoder: EncoderField


def test_an_encoder_in_a_field_keeps_its_own_options() -> None:
    held = Holder.model_validate({"encoder": {"type": "hog", "size": 48}})
    assert held.model_dump()["encoder"]["size"] == 48
    assert Holder.model_validate(held.model_dump(mode="json")) == held
    other = Holder.model_validate({"encoder": {"type": "hog", "size": 40}})
    assert fingerprint(held) != fingerprint(other)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"type": "hashin"}, "did you mean 'hashing'"),
        ({"type": "hog", "sise": 4}, "did you mean 'size'"),
        ({"type": "nowhere.Encoder"}, "cannot be imported"),
        ({"type": "collections.OrderedDict"}, "not a subclass"),
        ({"size": 4}, "an encoder is a mapping with `type`"),
        ("hog", "an encoder is a mapping with `type`"),
    ],
)
def test_a_wrong_encoder_is_explained(value: object, told: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Holder.model_validate({"encoder": value})
    assert told in str(caught.value)


def test_the_schema_lists_every_encoder_and_leaves_room_for_ones_own() -> None:
    schema = Holder.model_json_schema()
    choices = schema["properties"]["encoder"]["oneOf"]
    assert len(choices) == len(BUILT_IN) + 1
    names = set()
    for choice in choices:
        assert "type" in choice["required"]
        definition = (
            schema["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        )
        names.add(definition["properties"]["type"].get("const"))
    assert names == {*BUILT_IN, None}
    own = choices[-1]
    assert own["additionalProperties"] is True
    assert own["properties"]["type"]["pattern"] == r"\."
