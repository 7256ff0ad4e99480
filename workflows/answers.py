"""A candidate's stored answers, and how right they are: overall, by slice, by what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.shard import vectors
from features.snapshot import Snapshot
from features.store import Store
from features.stored_embeddings import embedded_rows
from training.bootstrap import bootstrap_interval, paired_bootstrap
from workflows.findings import Estimate, Masked, SliceFindings

NO_VALUE = "(none)"
"""What stands for null in a slice column."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One candidate's answers to the labelled rows of one split."""

    rows: np.ndarray
    """int64 `[N]`, ascending: row numbers within the snapshot."""
    targets: np.ndarray
    """Class indices `[N]`."""
    answers: np.ndarray
    """Class indices `[N]`."""
    without: Mapping[str, np.ndarray]
    """Per modality: class indices `[N]` answered with it taken away."""

    @classmethod
    def from_table(cls, table: pa.Table, *, split: str) -> Self:
        """The answers of a split out of a candidate's stored predictions, whatever their order."""
        table = table.filter(pc.equal(table["split"], split)).sort_by("row")

        def answered(column: str) -> np.ndarray:
            return vectors(table[column]).argmax(axis=1)

        prefix = "without."
        return cls(
            rows=table["row"].to_numpy().astype(np.int64),
            targets=table["target"].to_numpy(),
            answers=answered("probabilities"),
            without={
                name.removeprefix(prefix): answered(name)
                for name in table.column_names
                if name.startswith(prefix)
            },
        )

    @property
    def right(self) -> np.ndarray:
        """Whether each row was answered rightly, float64 `[N]` of 0 and 1."""
        return (self.answers == self.targets).astype(np.float64)

    def confusion(self, *, classes: int) -> np.ndarray:
        """Counts, int64 `[C, C]`: true class × answer."""
        counts = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(counts, (self.targets, self.answers), 1)
        return counts

    def accuracy(self, *, confidence: float) -> Estimate:
        """The share of right answers; there must be a row."""
        return estimate(self.right, confidence=confidence)

    def gain(self, *, over: Answers, confidence: float) -> Estimate:
        """This accuracy − another's; ValueError if the two did not answer the same rows."""
        if not np.array_equal(self.rows, over.rows):
            raise ValueError(
                "two candidates of one snapshot answered different test rows "
                f"({len(self.rows)} and {len(over.rows)}); their predictions in the store are "
                "not of one evaluation: fit them again"
            )
        return difference(self.right, over.right, confidence=confidence)

    def masked(self, *, confidence: float) -> Iterator[Masked]:
        """Accuracy with each modality taken away from all rows."""
        for modality, answers in self.without.items():
            right = (answers == self.targets).astype(np.float64)
            yield Masked(
                modality=modality,
                accuracy=estimate(right, confidence=confidence),
                difference=difference(right, self.right, confidence=confidence),
            )

    def slices(
        self, *, samples: pa.Table, store: Store, snapshot: Snapshot, confidence: float
    ) -> Iterator[SliceFindings]:
        """Accuracy by every value of every slice column, then by what is missing in the data.

        `samples` are the snapshot's, with its slice columns. A bad payload counts as missing:
        the model sees neither.
        """

        def findings(group: str | None, value: str, chosen: np.ndarray) -> SliceFindings:
            accuracy = estimate(self.right[chosen], confidence=confidence)
            return SliceFindings(group=group, value=value, accuracy=accuracy)

        for column in snapshot.slices:
            values = samples[f"slice.{column}"].take(pa.array(self.rows)).to_pylist()
            texts = np.array([NO_VALUE if value is None else str(value) for value in values])
            for value in np.unique(texts):
                yield findings(column, str(value), texts == value)
        lacking = {
            f"{name} missing": ~np.isin(self.rows, embedded_rows(store, snapshot, modality=name))
            for name in snapshot.modalities
        }
        whole = ~np.any(list(lacking.values()), axis=0)
        if not whole.all():
            for value, chosen in {"nothing missing": whole, **lacking}.items():
                if chosen.any():
                    yield findings(None, value, chosen)


def estimate(values: np.ndarray, *, confidence: float) -> Estimate:
    """The mean of `[N]` values with its bootstrap interval."""
    found = bootstrap_interval(values, confidence=confidence)
    return Estimate(value=found.mean, low=found.low, high=found.high, n=len(values))


def difference(a: np.ndarray, b: np.ndarray, *, confidence: float) -> Estimate:
    """mean(a − b) of paired values `[N]` with its bootstrap interval."""
    found = paired_bootstrap(a, b, confidence=confidence)
    return Estimate(value=found.mean, low=found.low, high=found.high, n=len(a))
