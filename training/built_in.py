"""All candidates that a pipeline can name, and those of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from features.by_name import spec_class
from training.models.alignment_spec import AlignmentSpec, CorrelationSpec
from training.models.ensemble_spec import AverageSpec, FilledSpec, SoupSpec
from training.models.fusion_spec import (
    AttentionSpec,
    BottleneckSpec,
    CoAttentionSpec,
    CrossModalSpec,
    EarlySpec,
    GatedSpec,
    LateSpec,
    LowRankSpec,
    SingleSpec,
)
from training.models.translation_spec import TranslationSpec
from training.spec import CandidateSpec
from training.tuning.spec import FinetuneSpec

BUILT_IN: Mapping[str, type[CandidateSpec]] = {
    spec.model_fields["type"].default: spec
    for spec in (
        SingleSpec,
        EarlySpec,
        LateSpec,
        GatedSpec,
        LowRankSpec,
        AttentionSpec,
        CoAttentionSpec,
        CrossModalSpec,
        BottleneckSpec,
        AlignmentSpec,
        CorrelationSpec,
        TranslationSpec,
        FinetuneSpec,
        SoupSpec,
        AverageSpec,
        FilledSpec,
    )
}


def parse_candidate(value: object) -> CandidateSpec:
    """The spec that a mapping with `type` describes; ValueError if there is no such candidate.

    `type` is the name of a built-in candidate or the dotted path of a subclass of
    `CandidateSpec`.
    """
    if isinstance(value, CandidateSpec):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise ValueError(f"a candidate is a mapping with `type`: one of {', '.join(BUILT_IN)}")
    found = spec_class(value["type"], what="candidate", base=CandidateSpec, built_in=BUILT_IN)
    return found.model_validate(value)


def _schema(spec: type[CandidateSpec]) -> dict[str, Any]:
    """JSON Schema of a candidate with `type` required, and what it refers to in its place."""
    schema = spec.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(item) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref", "")
        named = parts[reference.removeprefix("#/$defs/")] if reference else {}
        rest = {key: item for key, item in value.items() if key != "$ref"}
        return {key: whole(item) for key, item in {**named, **rest}.items()}

    required = sorted({"type", *schema.get("required", ())})
    return {**whole(schema), "required": required}


CandidateField = Annotated[
    pydantic.SerializeAsAny[CandidateSpec],
    pydantic.BeforeValidator(parse_candidate),
    pydantic.WithJsonSchema(
        {
            "oneOf": [
                *(_schema(spec) for spec in BUILT_IN.values()),
                {
                    "type": "object",
                    "description": "A candidate of your own, by the dotted path of its class.",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "pattern": r"\."}},
                },
            ]
        }
    ),
]
"""A field of a spec that holds any candidate."""
