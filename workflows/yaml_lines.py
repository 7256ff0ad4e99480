"""Where the fields of a YAML file stand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Location = tuple[str | int, ...]


class Lines:
    """The lines of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def message(self, where: Location, text: str) -> str:
        """`file:line: field: text`."""
        field = ".".join(str(part) for part in where)
        return f"{self._name}:{self._line(where)}: {field}: {text}".replace(": : ", ": ")

    def syntax_error(self, error: yaml.YAMLError) -> str:
        """`file:line:column: not YAML: what is wrong`, with the line, and where that began."""
        mark = getattr(error, "problem_mark", None)
        if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
            return f"{self._name}: not YAML: {error}"
        text = error.problem or "it cannot be read"
        begun = error.context_mark
        if error.context and begun is not None and begun.line != mark.line:
            text += f" ({error.context}, from line {begun.line + 1})"
        line = self._path.read_text(encoding="utf-8").splitlines()[mark.line : mark.line + 1]
        shown = "".join(f"\n    {part.rstrip()}" for part in line)
        if "\t" in "".join(line):
            text += "; indent by spaces, YAML takes no tabs"
        return f"{self._name}:{mark.line + 1}:{mark.column + 1}: not YAML: {text}{shown}"

    def _line(self, where: Location) -> int:
        """Line of a field, or of the deepest part of its path that is there, counted from 1."""
        node: Any = yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        line = 1
        for part in where:
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == part]
                if not pairs:
                    break
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def repeated_keys(self) -> Iterator[str]:
        """What to say of each second key that is equal to one before it.

        YAML readers keep the last of two silently; that is never what is meant.
        """

        def visit(node: Any, where: Location) -> Iterator[str]:
            if isinstance(node, yaml.MappingNode):
                seen: dict[str, int] = {}
                for key, value in node.value:
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        field = ".".join(str(part) for part in (*where, key.value))
                        first = seen[key.value]
                        yield f"{self._name}:{line}: {field}: given before, in line {first}"
                    seen[key.value] = line
                    yield from visit(value, (*where, key.value))
            elif isinstance(node, yaml.SequenceNode):
                for i, value in enumerate(node.value):
                    yield from visit(value, (*where, i))

        yield from visit(
            yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ()
        )
