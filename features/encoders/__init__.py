"""Encoders by name: the built-in ones, and any class that a dotted path names.

Importing this package imports no model library; an encoder imports what it needs when loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic_core import core_schema

from features.encoders.audio import AudioStatisticsSpec
from features.encoders.base import Encoder, EncoderSpec, Kind, Sound
from features.encoders.image import HogSpec, HuggingFaceImageSpec
from features.encoders.text import HashingSpec, HuggingFaceTextSpec
from features.fingerprint import nearest_hint

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


def parse_encoder(value: object, *, context: Mapping[str, Any] | None = None) -> EncoderSpec:
    """The spec that a mapping with `type` describes; ValueError if there is no such encoder.

    `type` is the name of a built-in encoder or the dotted path of a subclass of `EncoderSpec`.
    `context["folder"]`, if given, is where relative paths of local models start.
    """
    if isinstance(value, EncoderSpec):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"an encoder is a mapping with `type`: one of {_names()}")
    return _class_of(value["type"]).model_validate(value, context=context)


def _class_of(name: str) -> type[EncoderSpec]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ValueError(
            f"unknown encoder {name!r}; {nearest_hint(name, BUILT_IN)}built in: {_names()}; "
            "or give the dotted path of your own, such as my_package.MyEncoder"
        )
    try:
        spec = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"encoder {name!r} cannot be imported: {error}; "
            "PYTHONPATH must name the folder of its file"
        ) from error
    if not (isinstance(spec, type) and issubclass(spec, EncoderSpec)):
        raise ValueError(f"encoder {name!r} is not a subclass of features.encoders.EncoderSpec")
    return spec


def _names() -> str:
    return ", ".join(sorted(BUILT_IN))


class _AnyEncoder:
    """How pydantic reads and describes a field that holds any encoder."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_before_validator_function(
            lambda value, info: parse_encoder(value, context=info.context), handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        built_in = [
            handler(spec.__pydantic_core_schema__) | {"required": ["type"]}
            for spec in BUILT_IN.values()
        ]
        own = {
            "title": "An encoder of your own",
            "description": "Dotted path of an EncoderSpec of yours, and its options.",
            "type": "object",
            "properties": {"type": {"type": "string", "pattern": r"\."}},
            "required": ["type"],
            "additionalProperties": True,
        }
        return {"oneOf": [*built_in, own]}


EncoderField = Annotated[pydantic.SerializeAsAny[EncoderSpec], _AnyEncoder()]
"""A field of a spec that holds any encoder."""

__all__ = ["BUILT_IN", "Encoder", "EncoderField", "EncoderSpec", "Kind", "Sound", "parse_encoder"]
