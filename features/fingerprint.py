"""Canonical form and hash: what makes two computations the same one.

A fingerprint covers everything that can change a result and nothing else. Fields of a
`Spec` that only say *how* to compute (batch size, device) are marked `Execution` and left
out. What has no canonical form (a lambda, an object with a default repr) is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pydantic
from pydantic_core import PydanticCustomError

DIGEST_BYTES = 16


class Execution:
    """Marker for a spec's field that cannot change a result: `Annotated[int, Execution]`."""


class Spec(pydantic.BaseModel):
    """Base of every specification: frozen, keyword-only, unknown fields refused."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for name in value:
                if name not in cls.model_fields:
                    allowed = sorted(cls.model_fields)
                    raise PydanticCustomError(
                        "unknown_field",
                        "unknown field; {hint}allowed: {allowed}",
                        {
                            "field": name,
                            "hint": nearest_hint(str(name), allowed),
                            "allowed": ", ".join(allowed),
                        },
                    )
        return value

    def identity(self) -> dict[str, Any]:
        """The fields that can change a result, by name."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if Execution not in field.metadata
        }


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the known name nearest to a wrong one; empty if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


def fingerprint(value: object) -> str:
    """The 128-bit BLAKE2b hash of a value's canonical form, as 32 hexadecimal digits.

    Equal in every process and on every machine. Raises TypeError, naming the place inside
    the value and the remedy, for anything without a canonical form.
    """
    text = json.dumps(canonical(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def canonical(value: object, *, where: str = "value") -> Any:
    """JSON with types made explicit, such that equal JSON means equal value.

    Floats are written as C99 hexadecimal, so they are exact; a tuple equals a list; a
    mapping's order does not matter, and its keys must be strings.
    """
    match value:
        case None | bool() | str():
            return value
        case enum.Enum():
            return {"enum": type(value).__name__, "value": canonical(value.value, where=where)}
        case int():
            return {"int": str(value)}
        case float():
            return {"float": value.hex()}
        case bytes():
            return {"bytes": value.hex()}
        case np.generic():
            return canonical(value.item(), where=where)
        case np.ndarray() if value.dtype.kind in "biuf":
            digest = hashlib.blake2b(
                np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<")).tobytes(),
                digest_size=DIGEST_BYTES,
            )
            return {"array": digest.hexdigest(), "dtype": value.dtype.name, "shape": value.shape}
        case list() | tuple():
            return [canonical(item, where=f"{where}[{i}]") for i, item in enumerate(value)]
        case set() | frozenset():
            items = (canonical(item, where=where) for item in value)
            return {"set": sorted(items, key=lambda item: json.dumps(item, sort_keys=True))}
        case Spec():
            return {
                "spec": type(value).__name__,
                "fields": canonical(value.identity(), where=where),
            }
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(
                        f"{where} has the key {key!r}; a fingerprint takes text keys only. "
                        "Pass a list of pairs, or turn the keys into text."
                    )
            return {
                "map": {key: canonical(item, where=f"{where}.{key}") for key, item in value.items()}
            }
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {
                field.name: canonical(getattr(value, field.name), where=f"{where}.{field.name}")
                for field in dataclasses.fields(value)
            }
            return {"dataclass": type(value).__name__, "fields": fields}
    raise TypeError(
        f"{where} is {_describe(value)}, which has no canonical form to hash. Pass plain data "
        "that decides the result instead: its name as text, its numbers, or a dataclass of them."
    )


def _describe(value: object) -> str:
    if callable(value):
        return f"the function or class {getattr(value, '__qualname__', value)!r}"
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"
