"""Encoders by name: the built-in ones, and any class that a dotted path names.

Importing this package imports no model library; an encoder imports what it needs when loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from features.encoders.audio import AudioStatisticsSpec
from features.encoders.base import Encoder, EncoderSpec, Kind
from features.encoders.image import HogSpec, HuggingFaceImageSpec
from features.encoders.text import HashingSpec, HuggingFaceTextSpec

BUILT_IN: Mapping[str, type[EncoderSpec]] = {
    spec.model_fields["type"].default: spec
    for spec in (
        HashingSpec,
        HuggingFaceTextSpec,
        HogSpec,
        HuggingFaceImageSpec,
        AudioStatisticsSpec,
    )
}


def parse_encoder(value: object) -> EncoderSpec:
    """The spec that a mapping with `type` describes; ValueError if there is no such encoder.

    `type` is the name of a built-in encoder or the dotted path of a subclass of `EncoderSpec`.
    """
    if isinstance(value, EncoderSpec):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"an encoder is a mapping with `type`: one of {_names()}")
    return _class_of(value["type"]).model_validate(value)


def _class_of(name: str) -> type[EncoderSpec]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(
            f"unknown encoder {name!r}; {hint}built in: {_names()}; "
            "or give the dotted path of your own, such as my_package.MyEncoder"
        )
    try:
        spec = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder {name!r} cannot be imported: {error}") from error
    if not (isinstance(spec, type) and issubclass(spec, EncoderSpec)):
        raise ValueError(f"encoder {name!r} is not a subclass of features.encoders.EncoderSpec")
    return spec


def _names() -> str:
    return ", ".join(sorted(BUILT_IN))


def _schema(schema: Any, handler: pydantic.GetJsonSchemaHandler) -> dict[str, Any]:
    return {"oneOf": [spec.model_json_schema() for spec in BUILT_IN.values()]}


EncoderField = Annotated[
    pydantic.SerializeAsAny[EncoderSpec],
    pydantic.BeforeValidator(parse_encoder),
    pydantic.WithJsonSchema({"type": "object", "required": ["type"]}),
]
"""A field of a spec that holds any encoder."""

__all__ = ["BUILT_IN", "Encoder", "EncoderField", "EncoderSpec", "Kind", "parse_encoder"]
