"""Encoders by name: the built-in ones, and any class that a dotted path names.

Importing this package imports no model library; an encoder imports what it needs when loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

import pydantic
from pydantic_core import core_schema

from features.by_name import spec_class
from features.encoders.audio import AudioStatisticsSpec
from features.encoders.base import (
    Encoder,
    EncoderSpec,
    Kind,
    Series,
    Sound,
    TrainableEncoder,
    Video,
)
from features.encoders.huggingface_audio import HuggingFaceAudioSpec
from features.encoders.huggingface_image import HuggingFaceImageSpec
from features.encoders.huggingface_text import HuggingFaceTextSpec
from features.encoders.image import HogSpec
from features.encoders.model2vec import Model2VecSpec
from features.encoders.series import SeriesSpec
from features.encoders.table import TableSpec
from features.encoders.text import HashingSpec
from features.encoders.vector import VectorSpec
from features.encoders.video import VideoFramesSpec, VideoMaeSpec
from features.encoders.word_vectors import WordVectorsSpec

BUILT_IN: Mapping[str, type[EncoderSpec]] = {
    spec.model_fields["type"].default: spec
    for spec in (
        HashingSpec,
        HuggingFaceTextSpec,
        WordVectorsSpec,
        Model2VecSpec,
        HogSpec,
        HuggingFaceImageSpec,
        AudioStatisticsSpec,
        HuggingFaceAudioSpec,
        VideoFramesSpec,
        VideoMaeSpec,
        SeriesSpec,
        TableSpec,
        VectorSpec,
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
        names = ", ".join(sorted(BUILT_IN))
        raise ValueError(f"an encoder is a mapping with `type`: one of {names}")
    found = spec_class(value["type"], what="encoder", base=EncoderSpec, built_in=BUILT_IN)
    if not hasattr(found, "kind"):
        raise ValueError(
            f"the encoder {value['type']!r} does not say what it encodes; give the class a "
            f"`kind: ClassVar[Kind]`, one of {', '.join(get_args(Kind))}"
        )
    return found.model_validate(value, context=context)


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

__all__ = [
    "BUILT_IN",
    "Encoder",
    "EncoderField",
    "EncoderSpec",
    "Kind",
    "Series",
    "Sound",
    "TrainableEncoder",
    "Video",
    "parse_encoder",
]
