"""How much memory there is, and how much of it may be taken: as a YAML file says it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pydantic

CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
"""Where Linux says what a container may take, in cgroups of version 2 and 1."""
_SIZE: pydantic.TypeAdapter[pydantic.ByteSize] = pydantic.TypeAdapter(pydantic.ByteSize)


def _parse(value: object) -> object:
    """A share in 0..1, or a number of bytes, of which the text `8 GB` or `512 MiB` is one too."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a share of the machine's memory (0.5) or an amount (8 GB)")
    if isinstance(value, str):
        try:
            value = int(_SIZE.validate_python(value))
        except pydantic.ValidationError:
            raise ValueError("a share of the machine's memory (0.5) or an amount (8 GB)") from None
    if value <= 0:
        raise ValueError("it must be more than nothing")
    return value


Memory = Annotated[
    float,
    pydantic.BeforeValidator(_parse),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^[0-9.]+ *([kKMGTPmgtp]i?)?[bB]?$"},
            ]
        }
    ),
]
"""A field that holds a share of the machine's memory (at most 1), or a number of bytes."""


def memory_bytes(memory: float, *, processes: int = 1) -> int:
    """Bytes that each of some processes of this machine may take of a share or an amount."""
    size = memory * machine_memory() if memory <= 1 else memory
    return int(size / processes)


def machine_memory() -> int:
    """Bytes of memory that this machine has, or its container may take."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found = min(found, int(text))
    return found
