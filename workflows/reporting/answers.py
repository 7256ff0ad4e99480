"""A candidate's stored answers, and how good they are: overall, by slice, by what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.shard import vectors
from features.snapshot import Snapshot
from features.store import Store
from features.stored_embeddings import embedded_rows
from training.evaluation.bootstrap import Interval, metric_interval, paired_metric
from training.evaluation.metrics import Metric
from training.evaluation.significance import Difference, difference
from training.task import TaskSpec
from workflows.reporting.findings import Estimate, Masked, SliceFindings

NO_VALUE = "(none)"
"""What stands for null in a slice column."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One candidate's answers to the labelled rows of one split, and what they are judged by."""

    metric: Metric
    rows: np.ndarray
    """int64 `[N]`, ascending: row numbers within the snapshot."""
    targets: np.ndarray
    """Class indices `[N]`, labels or numbers `[N, K]`."""
    answers: np.ndarray
    """Probabilities or numbers `[N, C]`."""
    without: Mapping[str, np.ndarray]
    """Per modality: answers `[N, C]` with it taken away."""
    groups: np.ndarray | None = None
    """int64 `[N]`: equal for rows of one group of the split, if there are such."""

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        *,
        split: str,
        task: TaskSpec,
        metric: Metric,
        groups: np.ndarray | None = None,
    ) -> Self:
        """The answers of a split out of a candidate's stored predictions, whatever their order.

        `groups` are those of all rows of the snapshot.
        """
        table = table.filter(pc.equal(table["split"], split)).sort_by("row")
        target = table["target"]
        prefix, rows = "without.", table["row"].to_numpy().astype(np.int64)
        return cls(
            metric=metric,
            rows=rows,
            groups=None if groups is None else groups[rows],
            targets=vectors(target)
            if pa.types.is_fixed_size_list(target.type)
            else target.to_numpy(),
            answers=vectors(table[task.answer_column]),
            without={
                name.removeprefix(prefix): vectors(table[name])
                for name in table.column_names
                if name.startswith(prefix)
            },
        )

    @property
    def value(self) -> float:
        """The metric of all rows; there must be one."""
        return self.metric.value(self.targets, self.answers)

    def confusion(self, *, classes: int) -> np.ndarray:
        """Counts, int64 `[C, C]`: true class × answer."""
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (self.targets, self.answers.argmax(axis=1)), 1)
        return counts

    def score(self, *, confidence: float) -> Estimate:
        """The metric of all rows with its interval; there must be a row."""
        return self._estimate(np.ones(len(self.rows), bool), confidence=confidence)

    def gain(self, *, over: Answers, confidence: float) -> Estimate:
        """By how much these answers are better; ValueError if the two did not answer the same
        rows.
        """
        self._check_same_rows(over)
        return self._gain(self.answers, over.answers, confidence=confidence)

    def _check_same_rows(self, over: Answers) -> None:
        if not np.array_equal(self.rows, over.rows):
            raise ValueError(
                "two candidates of one snapshot answered different test rows "
                f"({len(self.rows)} and {len(over.rows)}); their predictions in the store are "
                "not of one evaluation: fit them again"
            )

    def difference(self, *, over: Answers, confidence: float) -> Difference:
        """By how much these answers are better, and whether that is real."""
        self._check_same_rows(over)
        return difference(
            self.metric,
            targets=self.targets,
            a=self.answers,
            b=over.answers,
            confidence=confidence,
            groups=self.groups,
        )

    def masked(self, *, confidence: float) -> Iterator[Masked]:
        """The metric with each modality taken away from all rows."""
        for modality, answers in self.without.items():
            alone = replace(self, answers=answers)
            yield Masked(
                modality=modality,
                score=alone.score(confidence=confidence),
                difference=self._gain(answers, self.answers, confidence=confidence),
            )

    def _gain(self, a: np.ndarray, b: np.ndarray, *, confidence: float) -> Estimate:
        found = paired_metric(
            self.metric,
            targets=self.targets,
            a=a,
            b=b,
            confidence=confidence,
            groups=self.groups,
        )
        return estimate(found, rows=len(a))

    def _estimate(self, chosen: np.ndarray, *, confidence: float) -> Estimate:
        found = metric_interval(
            self.metric,
            targets=self.targets[chosen],
            answers=self.answers[chosen],
            confidence=confidence,
            groups=None if self.groups is None else self.groups[chosen],
        )
        return estimate(found, rows=int(chosen.sum()))

    def slices(
        self, *, samples: pa.Table, store: Store, snapshot: Snapshot, confidence: float
    ) -> Iterator[SliceFindings]:
        """The metric by every value of every slice column, then by what is missing in the data.

        `samples` are the snapshot's, with its slice columns. A bad payload counts as missing:
        the model sees neither.
        """

        def findings(group: str | None, value: str, chosen: np.ndarray) -> SliceFindings:
            score = self._estimate(chosen, confidence=confidence)
            return SliceFindings(group=group, value=value, score=score)

        for column in snapshot.slices:
            values = samples[f"slice.{column}"].take(pa.array(self.rows)).to_pylist()
            texts = np.array([NO_VALUE if value is None else str(value) for value in values])
            for value in np.unique(texts):
                found = findings(column, str(value), texts == value)
                if math.isfinite(found.score.value):
                    yield found
        lacking = {
            f"{name} missing": ~np.isin(self.rows, embedded_rows(store, snapshot, modality=name))
            for name in snapshot.modalities
        }
        whole = ~np.any(list(lacking.values()), axis=0)
        if not whole.all():
            for value, chosen in {"nothing missing": whole, **lacking}.items():
                if not chosen.any():
                    continue
                found = findings(None, value, chosen)
                if math.isfinite(found.score.value):
                    yield found


def estimate(found: Interval, *, rows: int) -> Estimate:
    """An interval as the report takes it."""
    return Estimate(value=found.mean, low=found.low, high=found.high, n=rows)
