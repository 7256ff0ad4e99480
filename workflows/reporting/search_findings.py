"""What a report says of a search: its fields, its trials with what they came to; and of seeds."""

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
    by_seed: tuple[float | None, ...] = ()
    """Of a finalist, what the last rung came to with each seed."""
    settled: float | None = None
    """What that is on average; of others, what their one fit came to."""
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
    found: str | None = None
    """Name of the finalist that is best over all its seeds, once the search is over."""

    @property
    def best(self) -> TrialFindings | None:
        """The best trial; None while the search goes on, and if none came to its end."""
        return next(
            (t for t in self.trials if t.name == self.found and t.settled is not None), None
        )


@dataclass(frozen=True, kw_only=True)
class SeedFindings:
    """The fits of one setting."""

    names: tuple[str, ...]
    """Of the fits, the setting's first candidate first."""
    validation: tuple[float, ...]
    """What each fit that came to its end reached on the validation rows."""
    test: tuple[float, ...]
    wins: bool = False
    """Whether the winner is one of them."""
    overtaken: str | None = None
    """Of the winner's setting: the best other setting that, by its own mean on validation, is
    better than the worst of these fits. With another seed that one might have won."""

    @property
    def mean(self) -> float:
        """On the validation rows, by which settings are compared."""
        return sum(self.validation) / len(self.validation)
