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

from benchmarks.processes import Share, run_watched

ROOT = Path(__file__).resolve().parents[1]
FACTS = "FACTS "
"""How the line begins on which a variant, run in a process of its own, says what it found."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "passive",
    "TRANSFORMERS_VERBOSITY": "error",
    "DO_NOT_TRACK": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPATH": str(ROOT),
}
"""For every process of a benchmark: nothing is asked of a network, no bars are drawn, and what is
imported has been compiled before, whatever the environment says.

Threads of OpenMP that spin while they wait are of no use where others want the CPUs too: on a busy
machine they slow a loop by four, and what is measured is chance.
"""


@dataclass(kw_only=True)
class Series:
    """One variant's runs."""

    rows: int
    runs: list[Share] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Rows a second, by the clock."""
        return [self.rows / run.seconds for run in self.runs]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu_rate(self) -> float:
        """Rows a second of CPU time, which others take little from."""
        return statistics.median(self.rows / max(run.cpu_seconds, 1e-9) for run in self.runs)

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def foreign(self) -> float:
        return statistics.median(run.foreign for run in self.runs)

    @property
    def rate_spread(self) -> str:
        """Least to greatest, as a person reads it."""
        return f"{short(min(self.rates))}–{short(max(self.rates))}"

    @property
    def seconds_spread(self) -> str:
        seconds = [run.seconds for run in self.runs]
        return f"{short(min(seconds))}–{short(max(seconds))}"


def in_turn(
    variants: Mapping[str, tuple[int, Callable[[], Share]]], *, repeats: int
) -> dict[str, Series]:
    """Run all variants one after another, `repeats` times, so that a slow hour slows them all.

    A variant is how many rows it works on, and what does it.
    """
    found = {name: Series(rows=rows) for name, (rows, _) in variants.items()}
    for _ in range(repeats):
        for name, (_, run) in variants.items():
            found[name].runs.append(run())
            last = found[name].runs[-1]
            print(
                f"  {name}: {short(last.seconds)} s, {short(last.cpu_seconds)} CPU s, "
                f"others {last.foreign:.1f} CPUs",
                flush=True,
            )
    return found


def rate_rows(
    found: Mapping[str, Series], *, best: Series, best_cpu: Series | None = None
) -> list[list[str]]:
    """The rows of a table under `RATE_HEAD`; the best loop by CPU time may be another."""
    best_cpu = best_cpu or best
    return [
        [
            name,
            short(series.rate),
            series.rate_spread,
            f"{series.rate / best.rate:.2f}",
            short(series.cpu_rate),
            f"{series.cpu_rate / best_cpu.cpu_rate:.2f}",
            f"{series.foreign:.1f}",
        ]
        for name, series in found.items()
    ]


RATE_HEAD = (
    "variant", "rows/s", "least–most", "of the best loop", "rows/CPU s", "of the best loop",
    "others' CPUs",
)  # fmt: skip


def run_variant(
    module: str, variant: str, *, folder: Path, python: str = sys.executable, whole: bool = False
) -> tuple[dict[str, Any], Share]:
    """Run `python -m MODULE --variant VARIANT --folder FOLDER`: what it found, and its share.

    A variant that says when it `begun` and `ended` is measured between the two, unless it is to be
    taken as a whole.
    """
    command = [python, "-m", module, "--variant", variant, "--folder", str(folder)]
    watched = run_watched(command, env=ENVIRONMENT)
    lines = [line for line in watched.output.splitlines() if line.startswith(FACTS)]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} told nothing:\n{watched.output[-4000:]}")
    facts = json.loads(lines[-1].removeprefix(FACTS))
    if "begun" in facts and not whole:
        return facts, watched.between(facts["begun"], facts["ended"])
    return facts, watched.share


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
