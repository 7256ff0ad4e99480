"""Spec classes by name: a built-in one, or any that a dotted path names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Mapping
from typing import TypeVar

from features.fingerprint import Spec, nearest_hint

S = TypeVar("S", bound=Spec)


def spec_class(name: str, *, what: str, base: type[S], built_in: Mapping[str, type[S]]) -> type[S]:
    """The subclass of `base` that a name in the YAML stands for.

    ValueError, with the nearest right spelling, if there is none; `what` is what the message
    calls it: an encoder, a candidate.
    """
    if name in built_in:
        return built_in[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ValueError(
            f"unknown {what} {name!r}; {nearest_hint(name, built_in)}"
            f"built in: {', '.join(sorted(built_in))}; "
            f"or give the dotted path of your own, such as my_package.My{what.capitalize()}"
        )
    try:
        spec = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{what} {name!r} cannot be imported: {error}; "
            "PYTHONPATH must name the folder of its file"
        ) from error
    if not (isinstance(spec, type) and issubclass(spec, base)):
        raise ValueError(f"{what} {name!r} is not a subclass of {base.__module__}.{base.__name__}")
    return spec


def code_digest(spec: type[Spec]) -> str | None:
    """A hash of the file in which a user's class stands, but for blank lines and comments of a
    line; None of a class of this project, whose `version` is raised with its code, and of one
    without a file.

    It is no part of what a spec is: an edit need not change a result, and only who made it knows
    whether it does. It is there to remind of `version`.
    """
    if spec.__module__.partition(".")[0] in ("features", "training", "workflows"):
        return None
    try:
        source = inspect.getsource(importlib.import_module(spec.__module__))
    except (OSError, TypeError, ImportError):
        return None
    lines = (line.rstrip() for line in source.splitlines())
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]
