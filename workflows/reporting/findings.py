"""What a report says, as plain names, numbers and arrays: no store, no model, no HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from workflows.reporting.data_findings import (
    BadPayload,
    BadReason,
    Leak,
    ModalityFindings,
    Repeated,
    SplitFindings,
)
from workflows.reporting.plots import Family
from workflows.reporting.search_findings import SearchFindings, SeedFindings, Value
from workflows.reporting.study_findings import Leaning, StudyFindings

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
    """The metric on all test rows as if one modality were missing in each."""

    modality: str
    score: Estimate
    difference: Estimate
    """By how much this is better than with all that is there; paired by row."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far the winner is ahead of a candidate on the test rows."""

    gain: Estimate
    """By how much the winner is better; paired by row."""
    p: float
    """That chance would set them so far apart, corrected for the number of candidates."""
    test: str
    """Whose p it is: `McNemar` or `paired bootstrap`."""
    sure: bool
    """Whether p is below what the confidence leaves: the difference is real."""


@dataclass(frozen=True, kw_only=True)
class CandidateFindings:
    """One candidate: what it is, how it was fitted, how well it answers."""

    name: str
    type: str
    family: Family
    modalities: tuple[str, ...]
    parameters: int
    seconds: float
    values: Mapping[str, Value] = field(default_factory=dict)
    """Hyperparameters that are not what its type has by default."""
    best_epoch: int | None = None
    epochs: tuple[Epoch, ...] = ()
    validation: Estimate | None = None
    test: Estimate | None = None
    gain: Estimate | None = None
    """By how much it is better on the test rows than the best single modality; paired by row."""
    lead: Lead | None = None
    """How far the winner is ahead; None for the winner."""
    masked: tuple[Masked, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per split, and by title, all that was measured of the task."""
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class MemberFindings:
    """A fit that an ensemble is made of, or that was tried for it."""

    name: str
    taken: bool
    alone: float | None = None
    """Of a soup: the monitor on validation of this fit alone."""
    with_it: float | None = None
    """Of a soup: the monitor on validation of the soup so far with this fit."""
    validation: Estimate | None = None
    test: Estimate | None = None
    """What it reached as a candidate of its own."""


@dataclass(frozen=True, kw_only=True)
class EnsembleFindings:
    """What a soup or an average is made of."""

    candidate: str
    monitor: str
    """What decided which fits a soup takes; empty if all are taken."""
    members: tuple[MemberFindings, ...]
    """Those of a soup in the order in which they were tried."""

    @property
    def taken(self) -> int:
        """How many of the members are in it."""
        return sum(member.taken for member in self.members)


@dataclass(frozen=True, kw_only=True)
class SliceFindings:
    """The metric on the test rows that share something."""

    group: str | None
    """The slice column; None for the rows that lack a modality."""
    value: str
    score: Estimate


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
    median_rank: float | None = None
    """Of the query's own sample, from 1."""
    precision_sample: float | None = None
    """Mean average precision, where the query's own sample is right."""
    precision_class: float | None = None
    """Mean average precision, where any sample of its class is."""


@dataclass(frozen=True, kw_only=True)
class RetrievalFindings:
    """All pairs of modalities of one alignment or translation."""

    candidate: str
    split: str
    pairs: tuple[Recall, ...]

    @property
    def first_right(self) -> float:
        """How often the first answer is right, on the average of the pairs: of the class where
        there are any, else the very sample.
        """
        recalls = [pair.same_class or pair.same_sample for pair in self.pairs]
        first = [recall[min(recall)] for recall in recalls if recall]
        return sum(first) / len(first) if first else 0.0


@dataclass(frozen=True, kw_only=True)
class SpaceFindings:
    """How well the common space of an alignment tells classes apart."""

    candidate: str
    probe: Mapping[str, float] = field(default_factory=dict)
    """Per split, the accuracy of a linear classifier over the space."""
    neighbours: Mapping[str, float] = field(default_factory=dict)
    """Per split, how often the nearest training rows vote for a row's class."""
    zero_shot: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Per modality and split, how often the nearest name of a class is the row's own."""


@dataclass(frozen=True, kw_only=True)
class ConditionFindings:
    """One comparison of challenger and champion; `passed` is None where it decides nothing."""

    name: str
    rows: int
    challenger: float | None
    """None if it is not known."""
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
    waiting: bool = False
    """Whether the challenger passed, and waits for a person to approve it."""
    taken_back: bool = False
    """Whether the challenger was champion, and was taken back by a person."""
    notes: tuple[str, ...] = ()
    """What the conditions do not say: McNemar's p, what could be found, what the test set is."""


@dataclass(frozen=True, kw_only=True)
class MetricFindings:
    """What the numbers of the report are."""

    title: str = "accuracy"
    higher_is_better: bool = True
    share: bool = True
    """Whether it lies between 0 and 1."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which values it lies."""
        if self.share:
            return 0.0, 1.0
        return (-math.inf, math.inf) if self.higher_is_better else (0.0, math.inf)

    @property
    def heading(self) -> str:
        """The title as a sentence begins with it."""
        return self.title[:1].upper() + self.title[1:]


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
    task: str = "classification"
    metric: MetricFindings = MetricFindings()
    confidence: float = 0.95
    confusion: np.ndarray | None = None
    """The winner's test rows, int `[C, C]`: true class × answer."""
    slices: tuple[SliceFindings, ...] = ()
    studies: tuple[StudyFindings, ...] = ()
    """How far candidates can be trusted."""
    leanings: tuple[Leaning, ...] = ()
    """What the winner leans on: over all rows, then by slice."""
    ensembles: tuple[EnsembleFindings, ...] = ()
    searches: tuple[SearchFindings, ...] = ()
    seeds: tuple[SeedFindings, ...] = ()
    """Settings that were fitted with several seeds, the best on validation first."""
    retrieval: tuple[RetrievalFindings, ...] = ()
    """The best candidate first."""
    spaces: tuple[SpaceFindings, ...] = ()
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
