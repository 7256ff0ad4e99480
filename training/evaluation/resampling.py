"""Metrics over many bootstrap resamples at once, from how often each holds each row.

A metric that is a function of means over rows is that function of the resampled means; one of ranks
sorts the rows once, and a resample's ranks are running sums of its counts. NaN stands for a metric
that a resample does not define.

Suffixes of arrays: N rows, C classes, K labels or numbers, R resamples, M means, G groups of rows
with equal scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

CALIBRATION_BINS = 15
"""As in Guo et al. 2017."""
Columns: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray | Ones]"
"""Of targets and answers `[N, …]`, columns `[N, M]` whose means a metric is made of."""


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Answers to rows, and resamples of the rows; what several metrics need of them is kept."""

    targets: np.ndarray
    answers: np.ndarray
    counts_RN: np.ndarray
    """float64: how often each row is in each resample."""

    _means: dict[Columns, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def means(self, columns: Columns) -> np.ndarray:
        """float64 `[R, M]`: the means over each resample of columns of the rows `[N, M]`."""
        if columns not in self._means:
            found = columns(self.targets, self.answers)
            counts_RN = self.counts_RN
            sums_RM = found.sums(counts_RN) if isinstance(found, Ones) else counts_RN @ found
            self._means[columns] = sums_RM / self.counts_RN.sum(axis=1, keepdims=True)
        return self._means[columns]

    @cached_property
    def areas(self) -> Areas:
        """Under the curves of each class or label; of two classes of the second alone.

        Both areas of one after another: what they are made of is as large as the resamples.
        """
        positive_NK, scores_NK = one_against_rest(self.targets, self.answers)
        # Rows first, so that sorting them moves whole lines of memory.
        kind = np.float32 if len(self.targets) < 2**24 else np.float64
        counts_NR = np.ascontiguousarray(self.counts_RN.T, dtype=kind)
        roc, precision = [], []
        for positive_N, scores_N in zip(positive_NK.T, scores_NK.T, strict=True):
            rows = _positive_rows(positive_N, scores_N, counts_NR)
            roc.append(roc_area(rows))
            precision.append(average_precision(rows))
            del rows  # before those of the next are made
        return Areas(roc=np.stack(roc, axis=1), precision=np.stack(precision, axis=1))


@dataclass(frozen=True, kw_only=True)
class Areas:
    """Areas under two curves, float64 `[R, K]` each."""

    roc: np.ndarray
    precision: np.ndarray


def of_means(
    resamples: Resamples, *, columns: Columns, metric: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """float64 `[R]`: `metric([R, M])` of the means over each resample of some columns."""
    return metric(resamples.means(columns))


@dataclass(frozen=True, kw_only=True)
class Ones:
    """Columns of zeros and ones `[N, M]`, by the places of the ones: of M classes few a row."""

    rows: np.ndarray
    columns: np.ndarray
    width: int

    def sums(self, counts_RN: np.ndarray) -> np.ndarray:
        """Of each column over the rows of each resample, float64 `[R, M]`."""
        return np.stack(
            [
                np.bincount(self.columns, weights=counts_N[self.rows], minlength=self.width)
                for counts_N in counts_RN
            ]
        )


def class_counts(targets_N: np.ndarray, answers_NC: np.ndarray) -> Ones:
    """Per class: hits, answers, targets, `[N, 3 C]`."""
    rows, classes = np.arange(len(targets_N)), answers_NC.shape[1]
    answered_N = answers_NC.argmax(axis=1)
    right = np.flatnonzero(answered_N == targets_N)
    return Ones(
        rows=np.concatenate([right, rows, rows]),
        columns=np.concatenate([targets_N[right], classes + answered_N, 2 * classes + targets_N]),
        width=3 * classes,
    )


def label_counts(targets_NK: np.ndarray, answers_NK: np.ndarray, *, threshold: float) -> Ones:
    """As `class_counts`, per label."""
    is_target, is_answer = targets_NK.astype(bool), answers_NK >= threshold
    labels = targets_NK.shape[1]
    found = [part.nonzero() for part in (is_target & is_answer, is_answer, is_target)]
    return Ones(
        rows=np.concatenate([rows for rows, _ in found]),
        columns=np.concatenate([labels * i + columns for i, (_, columns) in enumerate(found)]),
        width=3 * labels,
    )


def recall_of_counts(means_RM: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur."""
    hits, _, there = np.split(means_RM, 3, axis=1)
    return _mean_of_known(_ratio(hits, there))


def f1_of_counts(means_RM: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur or are answered."""
    hits, answered, there = np.split(means_RM, 3, axis=1)
    return _mean_of_known(_ratio(2 * hits, answered + there))


def micro_f1_of_counts(means_RM: np.ndarray) -> np.ndarray:
    """F1 over all labels together."""
    hits, answered, there = (part.sum(axis=1) for part in np.split(means_RM, 3, axis=1))
    return _ratio(2 * hits, answered + there)


def calibration_gaps(targets_N: np.ndarray, answers_NC: np.ndarray) -> np.ndarray:
    """Right or wrong minus the highest probability, each in the column of the bin that the
    probability lies in, `[N, CALIBRATION_BINS]`.
    """
    own_N = answers_NC.argmax(axis=1)
    sure_N = answers_NC[np.arange(len(own_N)), own_N].astype(np.float64)
    return _binned((own_N == targets_N) - sure_N, sure_N)


def label_calibration_gaps(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    """As `calibration_gaps`, of whether each label holds and its probability, over the number of
    labels, `[N, K × CALIBRATION_BINS]`.
    """
    p_NK, labels = answers_NK.astype(np.float64), answers_NK.shape[1]
    gaps_NK = (targets_NK.astype(bool) - p_NK) / labels
    return np.concatenate([_binned(gaps_NK[:, k], p_NK[:, k]) for k in range(labels)], axis=1)


def calibration_bins(p_N: np.ndarray) -> np.ndarray:
    """The bin of each probability, of `CALIBRATION_BINS` of equal width; from 0, int `[N]`."""
    return np.minimum((p_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)


def _binned(values_N: np.ndarray, p_N: np.ndarray) -> np.ndarray:
    columns_NB = np.zeros((len(values_N), CALIBRATION_BINS))
    columns_NB[np.arange(len(values_N)), calibration_bins(p_N)] = values_N
    return columns_NB


def error_of_gaps(means_RM: np.ndarray) -> np.ndarray:
    """Sum over the bins of by how much the probabilities are wrong on the average."""
    return np.abs(means_RM).sum(axis=1)


def squared_errors(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    """Squared errors, `[N, K]`."""
    return (answers_NK.astype(np.float64) - targets_NK) ** 2


def hits_at(targets_N: np.ndarray, ranks_NP: np.ndarray, *, k: int) -> np.ndarray:
    """Per directed pair: whether a row is found among the first k, and is there, `[N, 2 P]`."""
    there = ~np.isnan(ranks_NP)
    return np.concatenate([there & (np.nan_to_num(ranks_NP, nan=k) < k), there], axis=1).astype(
        float
    )


def recall_of_hits(means_RM: np.ndarray) -> np.ndarray:
    """Mean over the pairs of the share of rows that are found."""
    found, there = np.split(means_RM, 2, axis=1)
    return _mean_of_known(_ratio(found, there))


def moments(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    """x, y, x², y², xy of each number, `[N, 5 K]`; centred, which correlations do not notice."""
    x = targets_NK.astype(np.float64) - targets_NK.mean(axis=0)
    y = answers_NK.astype(np.float64) - answers_NK.mean(axis=0)
    return np.concatenate([x, y, x * x, y * y, x * y], axis=1)


def pearson_of_moments(means_RM: np.ndarray) -> np.ndarray:
    """Mean over the numbers of Pearson's correlation."""
    x, y, xx, yy, xy = np.split(means_RM, 5, axis=1)
    variances = (xx - x * x).clip(min=0) * (yy - y * y).clip(min=0)
    return _mean_of_known(_ratio(xy - x * y, np.sqrt(variances)))


def scaled_errors(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    """e², y, y² of each number, `[N, 3 K]`, with y centred."""
    y = targets_NK.astype(np.float64) - targets_NK.mean(axis=0)
    return np.concatenate([squared_errors(targets_NK, answers_NK), y, y * y], axis=1)


def r2_of_errors(means_RM: np.ndarray) -> np.ndarray:
    """Mean over the numbers of the share of the variance that is explained."""
    errors, y, yy = np.split(means_RM, 3, axis=1)
    return _mean_of_known(1 - _ratio(errors, yy - y * y))


# Of ranks: rows are sorted once, and a resample's ranks are running sums of its counts.


@dataclass(frozen=True, kw_only=True)
class PositiveRows:
    """The P positive rows by score, ascending, within each resample: their counts, and how many
    rows have a lower score, or one that is not higher; `[P, R]` and `[R]`.
    """

    counts: np.ndarray
    below: np.ndarray
    not_above: np.ndarray
    positive_below: np.ndarray
    positive_not_above: np.ndarray
    rows: np.ndarray
    """All rows of each resample, and the positive ones below."""
    positive: np.ndarray


def _positive_rows(
    positive_N: np.ndarray, scores_N: np.ndarray, counts_NR: np.ndarray
) -> PositiveRows:
    order, starts = _groups(scores_N)
    ends = np.append(starts[1:], len(order))
    group_N = np.repeat(np.arange(len(starts)), ends - starts)
    chosen_P = np.flatnonzero(positive_N[order])
    group_P = group_N[chosen_P]
    running = _running(counts_NR[order])
    counts_PR = counts_NR[order[chosen_P]]
    positive = _running(counts_PR)
    return PositiveRows(
        counts=counts_PR,
        below=running[starts[group_P]],
        not_above=running[ends[group_P]],
        positive_below=positive[np.searchsorted(group_P, group_P, side="left")],
        positive_not_above=positive[np.searchsorted(group_P, group_P, side="right")],
        rows=running[-1],
        positive=positive[-1],
    )


def _running(counts_NR: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, … N rows, `[N + 1, R]`; exact in float32 up to 2²⁴ rows."""
    sums = np.zeros((len(counts_NR) + 1, counts_NR.shape[1]), counts_NR.dtype)
    np.cumsum(counts_NR, axis=0, out=sums[1:])
    return sums


def roc_area(rows: PositiveRows) -> np.ndarray:
    """Probability that a positive row is above a negative one, a tie counting as half, `[R]`.

    Hanley and McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747.
    """
    below_PR = rows.below - rows.positive_below
    tied_PR = rows.not_above - rows.positive_not_above - below_PR
    won_R = (rows.counts * (below_PR + tied_PR / 2)).sum(axis=0, dtype=np.float64)
    negative_R = (rows.rows - rows.positive).astype(np.float64)
    return _ratio(won_R, rows.positive * negative_R)


def average_precision(rows: PositiveRows) -> np.ndarray:
    """Mean over the positive rows of the precision at their score, `[R]`, as scikit-learn's."""
    taken_PR = (rows.rows - rows.below).astype(np.float64)
    precision_PR = np.divide(
        rows.positive - rows.positive_below,
        taken_PR,
        out=np.zeros_like(taken_PR),
        where=taken_PR > 0,
    )
    return _ratio((rows.counts * precision_PR).sum(axis=0), rows.positive.astype(np.float64))


def mean_areas(resamples: Resamples, *, area: Callable[[Areas], np.ndarray]) -> np.ndarray:
    """Mean over the classes or labels of the area under a curve, float64 `[R]`."""
    return _mean_of_known(area(resamples.areas))


def one_against_rest(targets: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether rows are of each class or have each label, bool `[N, K]`, and its score; of two
    classes the second alone, since the first says the same.
    """
    if targets.ndim == 2:
        return targets.astype(bool), answers
    first = 1 if answers.shape[1] == 2 else 0
    classes = np.arange(first, answers.shape[1])
    return targets[:, None] == classes, answers[:, first:]


def spearman_of_ranks(resamples: Resamples) -> np.ndarray:
    """float64 `[R]`: mean over the numbers of Pearson's correlation of the ranks."""
    counts_RN = resamples.counts_RN
    total_R1 = counts_RN.sum(axis=1, keepdims=True)
    found = []
    for x_N, y_N in zip(resamples.targets.T, resamples.answers.T, strict=True):
        x_RN, y_RN = (_ranks(values, counts_RN) - (total_R1 + 1) / 2 for values in (x_N, y_N))
        products = ((counts_RN * a * b).sum(axis=1) for a, b in ((x_RN, y_RN), (x_RN, x_RN)))
        xy, xx = products
        yy = (counts_RN * y_RN * y_RN).sum(axis=1)
        found.append(_ratio(xy, np.sqrt(xx * yy)))
    return _mean_of_known(np.stack(found, axis=1))


def _ranks(values_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Mean rank of each row within each resample, `[R, N]`, from 1."""
    order, starts = _groups(values_N)
    sizes_RG = np.add.reduceat(counts_RN[:, order], starts, axis=1)
    ranks_RG = np.cumsum(sizes_RG, axis=1) - sizes_RG + (sizes_RG + 1) / 2
    group_N = np.empty(len(order), np.int64)
    group_N[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    return ranks_RG[:, group_N]


def _groups(values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by value, ascending, and where each run of equal values starts."""
    order = np.argsort(values_N, kind="stable")
    sorted_N = values_N[order]
    return order, np.flatnonzero(np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]]))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def _mean_of_known(values_RK: np.ndarray) -> np.ndarray:
    """Mean over those that are not NaN; NaN where all are."""
    known = ~np.isnan(values_RK)
    return _ratio(np.where(known, values_RK, 0).sum(axis=1), known.sum(axis=1))
