"""What a report says of a search: its fields, and its trials with what they came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A field that is searched: numbers from one to another, or some values."""

    field: str
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    choices: tuple[Value, ...] = ()

    def place(self, value: Value) -> float:
        """Where a value stands on the axis: itself, or the number of the choice."""
        return float(self.choices.index(value)) if self.choices else float(value)


@dataclass(frozen=True, kw_only=True)
class TrialFindings:
    """Values that a search tried."""

    name: str
    number: int
    values: Mapping[str, Value]
    reached: tuple[float | None, ...]
    """Per rung that it came to, the best monitor of its fit; None if that failed."""
    like: int | None = None
    """The number of the earlier trial of the same values, of one that was not fitted for itself."""


@dataclass(frozen=True, kw_only=True)
class SearchFindings:
    """Hyperparameters that were searched: what was tried, and what each came to."""

    name: str
    of: str
    """The candidate whose fields were searched."""
    dimensions: tuple[Dimension, ...]
    monitor: str
    lower_is_better: bool
    epochs: tuple[int, ...]
    """Per rung, for how many epochs its trials are fitted at most."""
    trials: tuple[TrialFindings, ...]
    """The best first: by how far it came, and then by what it reached there."""
    over: bool = True
    finalists: int = 1
    """Trials of the last rung that are fitted with other seeds too."""
    seeds: int = 1
    """Fits of each finalist."""

    @property
    def best(self) -> TrialFindings | None:
        """The best trial of the last rung; None if none came to its end."""
        first = next(iter(self.trials), None)
        if first is None or len(first.reached) < len(self.epochs) or first.reached[-1] is None:
            return None
        return first
