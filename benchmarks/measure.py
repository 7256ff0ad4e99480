"""Variants in turn, several times over: what each took, and how far apart its runs lie."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import Watched, run_watched

ROOT = Path(__file__).resolve().parents[1]
FACTS = "FACTS "
"""How the line begins on which a variant, run in a process of its own, says what it found."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "DO_NOT_TRACK": "1",
    "PYTHONPATH": str(ROOT),
}
"""For every process of a benchmark: nothing is asked of a network, and no bars are drawn."""


@dataclass(kw_only=True)
class Series:
    """One variant's runs."""

    values: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Least to greatest, as a person reads it."""
        return f"{short(min(self.values))}–{short(max(self.values))}"


def in_turn(
    variants: Mapping[str, Callable[[], tuple[float, float]]], *, repeats: int
) -> dict[str, Series]:
    """Run all variants one after another, `repeats` times, so that a slow hour slows them all.

    A variant gives its value (seconds, or rows a second) and how many CPUs others took meanwhile.
    """
    found = {name: Series() for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            value, foreign = variant()
            print(f"  {name}: {short(value)} (others: {foreign:.1f} CPUs)", flush=True)
            found[name].values.append(value)
            found[name].foreign.append(foreign)
    return found


def run_variant(
    module: str, variant: str, *, folder: Path, python: str = sys.executable
) -> tuple[dict[str, Any], Watched]:
    """Run `python -m MODULE --variant VARIANT --folder FOLDER` and read what it found."""
    command = [python, "-m", module, "--variant", variant, "--folder", str(folder)]
    watched = run_watched(command, env=ENVIRONMENT)
    lines = [line for line in watched.output.splitlines() if line.startswith(FACTS)]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} told nothing:\n{watched.output[-4000:]}")
    return json.loads(lines[-1].removeprefix(FACTS)), watched


def tell(**facts: Any) -> None:
    """Say what a variant found, to the process that started this one, and end at once.

    Libraries that keep threads or actors are not waited for: what they do at the end is no part
    of what is measured.
    """
    print(FACTS + json.dumps(facts), flush=True)
    os._exit(0)


def short(value: float) -> str:
    """A number to three digits."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(f"{abs(value):e}".partition("e")[2]))
    return f"{value:,.{digits}f}"
