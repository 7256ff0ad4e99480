"""What a registered model costs: how long it takes for one row, and how large its files are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.evaluation.bootstrap import RESAMPLES

LATENCY_ROWS = 100
"""Test rows that are timed, at most; they are spread evenly over the test split."""
WARM_UP = 3
"""Rows that are asked before, untimed: the first loads encoders and weights."""

Ask = Callable[[int], object]
"""Asks a model for its answer to one of the rows, by number."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What challenger and champion cost; of the difference, more is cheaper."""

    rows: int
    challenger: float
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def latency(
    challenger: Ask,
    champion: Ask | None,
    *,
    rows: int,
    confidence: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """The 95th percentile of milliseconds for one row, of both models on the same rows.

    Both are asked in turn, and each goes first as often: what slows the machine meanwhile slows
    both. The interval is the paired bootstrap's, over the rows.
    """
    models = [challenger] if champion is None else [challenger, champion]
    for row in range(min(WARM_UP, rows)):
        for ask in models:
            ask(row)
    taken = np.empty((len(models), rows))
    for row in range(rows):
        order = range(len(models)) if row % 2 == 0 else reversed(range(len(models)))
        for number in order:
            begun = clock()
            models[number](row)
            taken[number, row] = 1000 * (clock() - begun)
    p95 = [float(value) for value in np.quantile(taken, 0.95, axis=1)]
    if champion is None:
        return Cost(rows=rows, challenger=p95[0])
    drawn = np.random.default_rng(0).integers(rows, size=(RESAMPLES, rows))
    mine, theirs = (np.quantile(times[drawn], 0.95, axis=1) for times in taken)
    tail = (1 - confidence) / 2
    low, high = np.quantile(theirs - mine, [tail, 1 - tail])
    return Cost(
        rows=rows,
        challenger=p95[0],
        champion=p95[1],
        difference=p95[1] - p95[0],
        low=float(low),
        high=float(high),
    )


def size(folders: Sequence[Path]) -> Cost:
    """Megabytes of the files of the challenger, and of the champion if there is one.

    Weights of an encoder that a model names and does not hold are not counted.
    """
    mb = [sum(f.stat().st_size for f in at.rglob("*") if f.is_file()) / 1e6 for at in folders]
    if len(mb) == 1:
        return Cost(rows=0, challenger=mb[0])
    gain = mb[1] - mb[0]
    return Cost(rows=0, challenger=mb[0], champion=mb[1], difference=gain, low=gain, high=gain)
