"""What a report says, as plain names, numbers and arrays: no store, no model, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from workflows.plots import Family

if TYPE_CHECKING:
    from features.drift import Drift


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` rows with its confidence interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch of one fit; NaN where there is no number."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a candidate was given up."""

    reason: str
    where: str = ""
    """Epoch, step and learning rate, as text."""
    sample_ids: tuple[str, ...] = ()
    """The samples of the batch in which it happened."""


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Accuracy on all test rows as if one modality were missing in each."""

    modality: str
    accuracy: Estimate
    difference: Estimate
    """This accuracy − the accuracy with all that is there; paired by row."""


@dataclass(frozen=True, kw_only=True)
class CandidateFindings:
    """One candidate: what it is, how it was fitted, how well it answers."""

    name: str
    type: str
    family: Family
    modalities: tuple[str, ...]
    parameters: int
    seconds: float
    best_epoch: int | None = None
    epochs: tuple[Epoch, ...] = ()
    validation: Estimate | None = None
    test: Estimate | None = None
    gain: Estimate | None = None
    """Test accuracy − that of the best single modality; paired by row."""
    masked: tuple[Masked, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class SliceFindings:
    """Accuracy on the test rows that share something."""

    group: str | None
    """The slice column; None for the rows that lack a modality."""
    value: str
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Retrieval from one modality to another: the share of queries answered within the first k."""

    query: str
    target: str
    rows: int
    gallery: int
    same_sample: Mapping[int, float]
    """k → recall, where the one right answer is the query's own sample."""
    same_class: Mapping[int, float]
    """k → recall, where any sample of the query's class is right."""
    chance_sample: Mapping[int, float] = field(default_factory=dict)
    chance_class: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RetrievalFindings:
    """All pairs of modalities in the common space of one alignment candidate."""

    candidate: str
    split: str
    pairs: tuple[Recall, ...]


@dataclass(frozen=True, kw_only=True)
class ModalityFindings:
    """One modality's payloads and the encoder that embeds them."""

    name: str
    cells: Mapping[str, Any]
    """By column of the table that it is read from: a value of the form that a model takes."""
    kind: str
    encoder: str
    options: str
    """What the encoder was told, as text; empty if nothing."""
    fingerprint: str
    dim: int
    present: int
    missing: int
    bad: int


@dataclass(frozen=True, kw_only=True)
class SplitFindings:
    """How many samples a split has, and how many of them have a label."""

    name: str
    rows: int
    labelled: int


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Payloads of a modality, or groups, that stand on two sides of a split."""

    modality: str
    """Empty for groups."""
    group: str = ""
    """The column of the groups."""
    sides: tuple[str, str]
    """The two splits."""
    count: int
    """How many distinct ones there are."""
    examples: tuple[tuple[str, str], ...] = ()
    """Ids of two samples that share one, in the order of the sides; a few of all such pairs."""

    @property
    def noun(self) -> str:
        return "payload" if self.modality else "group"

    @property
    def of(self) -> str:
        """Of what the payloads or groups are, to follow the noun."""
        return f"of {self.modality}" if self.modality else f"({self.group})"


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Payloads of a modality that stand in more than one row."""

    modality: str
    rows: int
    """All rows whose payload another one has too."""
    payloads: int
    """Rows that have a payload."""


@dataclass(frozen=True, kw_only=True)
class BadPayload:
    """One payload in the quarantine."""

    sample_id: str
    modality: str
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BadReason:
    """How many payloads of a modality are in the quarantine for the same reason."""

    modality: str
    stage: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ConditionFindings:
    """One comparison of challenger and champion; `passed` is None where it decides nothing."""

    name: str
    rows: int
    challenger: float
    champion: float | None = None
    difference: Estimate | None = None
    threshold: float | None = None
    passed: bool | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class GateFindings:
    """What the gate decided, and what became of the alias."""

    passed: bool | None
    """None if the champion was chosen by other hands than the gate's."""
    conditions: tuple[ConditionFindings, ...]
    breakdown: tuple[ConditionFindings, ...] = ()
    model: str
    version: str | None
    """The challenger's version in the registry."""
    champion_before: str | None
    champion_after: str | None
    already: bool = False
    """Whether this was decided in an earlier run, and this run only tells of it."""
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report says."""

    pipeline: str
    created: datetime
    target: str
    samples: int
    classes: tuple[str, ...]
    splits: tuple[SplitFindings, ...]
    modalities: tuple[ModalityFindings, ...]
    candidates: tuple[CandidateFindings, ...]
    winner: str | None
    """Name of the candidate that is best on the validation split."""
    best_single: str | None
    """Name of the best single modality on the test split; what fusions are compared with."""
    confidence: float = 0.95
    confusion: np.ndarray | None = None
    """The winner's test rows, int `[C, C]`: true class × answer."""
    slices: tuple[SliceFindings, ...] = ()
    retrieval: tuple[RetrievalFindings, ...] = ()
    untrained: tuple[str, ...] = ()
    """Classes that some row is labelled with, and no row of the training split."""
    leaks: tuple[Leak, ...] = ()
    repeated: tuple[Repeated, ...] = ()
    quarantined: tuple[BadPayload, ...] = ()
    """The first of them; `bad_reasons` counts all."""
    bad_reasons: tuple[BadReason, ...] = ()
    gate: GateFindings | None = None
    drift: Drift | None = None
    """How the snapshot differs from the one before it; None if there was none."""
    snapshot: str = ""
    digest: str = ""
    git_commit: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str = ""
    load_uri: str = ""

    def candidate(self, name: str | None) -> CandidateFindings | None:
        """The candidate of that name."""
        return next((item for item in self.candidates if item.name == name), None)
