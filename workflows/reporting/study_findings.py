"""What the report says of how far a candidate can be trusted, as plain names and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of about the same probability."""

    rows: int
    confidence: float
    """Their mean probability."""
    right: float
    """How many of them are right, or hold, as a share."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Whether a candidate's probabilities say how often it is right, on the test rows."""

    error: float
    """Expected calibration error."""
    low: float
    high: float
    temperature: float
    bins: tuple[Bin, ...]
    """Those that are not empty, ascending."""


@dataclass(frozen=True, kw_only=True)
class SubsetFindings:
    """The metric on the test rows, of each of which these modalities alone are there."""

    modalities: tuple[str, ...]
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class CurveFindings:
    """The metric as one modality is impaired more and more."""

    modality: str
    impairment: Literal["noise", "swapped"]
    levels: tuple[float, ...]
    """The first is 0."""
    values: tuple[float, ...]
    kept: float
    """The share of the metric that is left on the average of all levels; may be NaN."""


@dataclass(frozen=True, kw_only=True)
class StudyFindings:
    """What one candidate is worth when inputs are missing, noisy or another's."""

    candidate: str
    rows: int
    """Test rows of the subsets, of `of`; 0 of a single modality."""
    of: int
    perturbed_rows: int
    subsets: tuple[SubsetFindings, ...]
    """The whole is the last; none of a single modality."""
    curves: tuple[CurveFindings, ...]
    kept_of_subsets: float | None
    """The share of the metric that is left on the average of the subsets but the whole."""
    reliability: Reliability | None = None

    def kept(self, impairment: str) -> float | None:
        """The share that is left on the average of the modalities' curves of a kind; NaN if it is
        not known of one of them.
        """
        found = [curve.kept for curve in self.curves if curve.impairment == impairment]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """What the winner's answers lean on, over some test rows: Shapley values of the modalities."""

    group: str | None
    """The slice column; None for all rows."""
    value: str
    rows: int
    strength: Mapping[str, float] = field(default_factory=dict)
    """By modality the mean size of what it adds to an answer."""
    direction: Mapping[str, float] = field(default_factory=dict)
    """By modality the mean of what it adds, with its sign."""
