"""RESULTS.md: each benchmark rewrites its own part of it, between two marks, and nothing else."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
LIBRARIES = ("ray", "torch", "transformers", "pyarrow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio or amount that is promised, and what was measured."""

    what: str
    limit: float
    found: float
    at_least: bool = False
    """Whether the limit is the least that is allowed, or the most."""
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @property
    def cells(self) -> list[str]:
        sign, unit = ("≥" if self.at_least else "≤"), self.unit and f" {self.unit}"
        found = f"{self.found:.5f}" if 0.99 <= self.limit < 1 else f"{self.found:.3g}"
        if self.found >= 1000:
            found = f"{self.found:,.0f}"
        met = "yes" if self.met else "**no**"
        return [self.what, f"{sign} {self.limit:,g}{unit}", f"{found}{unit}", met]


def report(
    name: str,
    *,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    targets: Sequence[Target],
    libraries: Sequence[str] = (),
    remarks: Sequence[str] = (),
    write: bool,
) -> None:
    """Print a benchmark's tables and, if `write`, put them in the place of its last ones."""
    text = "\n\n".join(
        [
            f"`{_command()}`, {datetime.date.today():%Y-%m-%d}, {_machine()}, "
            f"{_versions((*LIBRARIES, *libraries))}.",
            _table(head, rows),
            *([_table(("target", "limit", "measured", "met"), [t.cells for t in targets])]
              if targets else []),
            *remarks,
        ]
    )  # fmt: skip
    print(f"\n{text}\n")
    if write:
        _rewrite(name, text)


def _rewrite(name: str, text: str) -> None:
    before = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    part = f"{begin}\n{text}\n{end}"
    if begin in before:
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        after = re.sub(pattern, lambda _: part, before, flags=re.DOTALL)
    else:
        after = f"{before.rstrip()}\n\n## {name.replace('_', ' ').capitalize()}\n\n{part}\n"
    RESULTS.write_text(after, encoding="utf-8")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _command() -> str:
    module = getattr(sys.modules["__main__"].__spec__, "name", "benchmarks")
    skipped = {"--folder", "--peers", "--sounds"}
    words = [w for i, w in enumerate(sys.argv[1:], 1) if not {w, sys.argv[i - 1]} & skipped]
    return " ".join(["python -m", module, *words])


def _machine() -> str:
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        flags = ""
    extras = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_bf16", "AMX"))
              if flag in flags]  # fmt: skip
    return f"{os.cpu_count()} × {model} ({', '.join(extras) or 'no vector extensions known'})"


def _versions(names: Sequence[str]) -> str:
    found = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (of the peers' environment)")
    return ", ".join(found)
