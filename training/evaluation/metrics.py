"""Metrics of a task's answers, and the same over bootstrap resamples.

The value of a metric is scikit-learn's or SciPy's, unless it is a mean over rows. An interval asks
for it thousands of times: there `resampled` computes it from how often each row was drawn, many
resamples at once, and the tests hold it against the library row by row. No torch here, and the
libraries are loaded when they are needed: whoever reads records or judges by accuracy needs none.

Suffixes of arrays: N rows, C classes, K labels or numbers, R resamples, M means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np

from training.evaluation.resampling import (
    Resamples,
    calibration_gaps,
    class_counts,
    error_of_gaps,
    f1_of_counts,
    hits_at,
    label_calibration_gaps,
    label_counts,
    mean_areas,
    micro_f1_of_counts,
    moments,
    of_means,
    one_against_rest,
    pearson_of_moments,
    r2_of_errors,
    recall_of_counts,
    recall_of_hits,
    scaled_errors,
    spearman_of_ranks,
    squared_errors,
)
from training.task import (
    ClassificationSpec,
    MultilabelSpec,
    RegressionSpec,
    RetrievalSpec,
    TaskSpec,
)

SMALLEST_PROBABILITY = 1e-12
"""What a probability of zero counts as in a logarithm."""
TOP_K = 3
RECALL_AT = (1, 5, 10)
MOST_CLASSES = 100
"""Areas under curves are not taken of more classes or labels: it would cost minutes."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How good the answers of a task are, as one number.

    Classification: targets are class indices `[N]`, answers probabilities `[N, C]`. Multilabel:
    targets bool `[N, K]`, answers probabilities `[N, K]`. Regression: both are numbers `[N, K]`.
    Retrieval: answers are ranks `[N, P]` of the true counterpart per directed pair of modalities,
    from 0 and NaN where there is none; targets are of no account.
    """

    name: str
    title: str
    """What people call it."""
    higher_is_better: bool = True
    share: bool = True
    """Whether it lies between 0 and 1."""
    rows: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """Per row float64 `[N]`, whose mean is the metric."""
    binary: bool = False
    """Whether a row is either right or wrong."""
    library: Callable[[np.ndarray, np.ndarray], float] | None = None
    """The metric, where it is no mean over rows."""
    resampled: Callable[[Resamples], np.ndarray] | None = None
    """The metric of each resample, float64 `[R]`; NaN where it is not defined."""
    biased: bool = False
    """Whether chance alone makes the metric of a resample larger than that of the rows."""
    applies: Callable[[int], bool] = lambda outputs: True
    """Whether it is taken of so many classes, labels or numbers."""
    of: str = ""
    """Of how many that is, in words, if not of any."""

    def value(self, targets: np.ndarray, answers: np.ndarray) -> float:
        """The metric; NaN where it is not defined, as an area under a curve of rows of one class.

        ValueError if there are no rows, or not as many answers as targets.
        """
        if len(targets) == 0 or len(targets) != len(answers):
            raise ValueError(
                f"a metric needs rows, as many answers as targets: {len(answers)}, {len(targets)}"
            )
        if self.rows is not None:
            return float(self.rows(targets, answers).mean())
        assert self.library is not None
        return float(self.library(targets, answers))

    def gain(self, mine: float, theirs: float) -> float:
        """By how much one value is better than another; negative if it is worse."""
        return mine - theirs if self.higher_is_better else theirs - mine

    def is_better(self, mine: float, theirs: float) -> bool:
        return self.gain(mine, theirs) > 0


def right(targets_N: np.ndarray, answers_NC: np.ndarray) -> np.ndarray:
    """Whether the highest probability is the target's, 0 or 1 `[N]`; of equal ones the first's."""
    return (answers_NC.argmax(axis=1) == targets_N).astype(np.float64)


def _top_k(targets_N: np.ndarray, answers_NC: np.ndarray, *, k: int) -> np.ndarray:
    """Whether the target is among the k highest; a tie counts against it.

    scikit-learn breaks ties by the order of classes, so that a constant model would seem good.
    """
    own_N1 = np.take_along_axis(answers_NC, targets_N[:, None].astype(np.int64), axis=1)
    return ((answers_NC >= own_N1).sum(axis=1) - 1 < k).astype(np.float64)


def _log_losses(targets_N: np.ndarray, answers_NC: np.ndarray) -> np.ndarray:
    """−log p(target), in nats."""
    own_N1 = np.take_along_axis(answers_NC, targets_N[:, None].astype(np.int64), axis=1)
    return -np.log(own_N1[:, 0].astype(np.float64).clip(min=SMALLEST_PROBABILITY))


def _label_log_losses(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    p = answers_NK.astype(np.float64)
    own = np.where(targets_NK.astype(bool), p, 1 - p).clip(min=SMALLEST_PROBABILITY)
    return -np.log(own).mean(axis=1)


def _exact(targets_NK: np.ndarray, answers_NK: np.ndarray, *, threshold: float) -> np.ndarray:
    """Whether all labels of a row are right."""
    return ((answers_NK >= threshold) == targets_NK.astype(bool)).all(axis=1).astype(np.float64)


def _absolute_errors(targets_NK: np.ndarray, answers_NK: np.ndarray) -> np.ndarray:
    return np.abs(answers_NK.astype(np.float64) - targets_NK).mean(axis=1)


# What scikit-learn and SciPy say.


def _balanced_accuracy(targets_N: np.ndarray, answers_NC: np.ndarray) -> float:
    from sklearn.metrics import recall_score

    there = np.unique(targets_N)
    answered = answers_NC.argmax(axis=1)
    return float(recall_score(targets_N, answered, labels=there, average="macro", zero_division=0))


def _macro_f1(targets_N: np.ndarray, answers_NC: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(targets_N, answers_NC.argmax(axis=1), average="macro"))


def _label_f1(
    targets_NK: np.ndarray, answers_NK: np.ndarray, *, threshold: float, average: str
) -> float:
    from sklearn.metrics import f1_score

    answered, there = answers_NK >= threshold, targets_NK.astype(bool)
    if average == "macro":
        some = answered.any(axis=0) | there.any(axis=0)
        answered, there = answered[:, some], there[:, some]
    if not (answered.any() or there.any()):
        return np.nan
    return float(f1_score(there, answered, average=average, zero_division=0))


def _areas(
    targets: np.ndarray, answers: np.ndarray, *, area: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    """Mean area over the classes or labels that some rows have and some have not."""
    positive_NK, scores_NK = one_against_rest(targets, answers)
    some = [k for k, column in enumerate(positive_NK.T) if column.any() and not column.all()]
    values = [area(positive_NK[:, k], scores_NK[:, k]) for k in some]
    return float(np.mean(values)) if values else np.nan


def _roc(targets: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return _areas(targets, answers, area=roc_auc_score)


def _precision(targets: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return _areas(targets, answers, area=average_precision_score)


def _rmse(targets_NK: np.ndarray, answers_NK: np.ndarray) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(targets_NK, answers_NK))


def _r2(targets_NK: np.ndarray, answers_NK: np.ndarray) -> float:
    from sklearn.metrics import r2_score

    known = np.ptp(targets_NK, axis=0) > 0
    if not known.any():
        return np.nan
    return float(r2_score(targets_NK[:, known], answers_NK[:, known]))


def _correlation(targets_NK: np.ndarray, answers_NK: np.ndarray, *, kind: str) -> float:
    import scipy.stats

    measure = getattr(scipy.stats, kind)
    values = [
        float(measure(x, y).statistic)
        for x, y in zip(targets_NK.T, answers_NK.T, strict=True)
        if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    ]
    return float(np.mean(values)) if values else np.nan


def _few(outputs: int) -> bool:
    return outputs <= MOST_CLASSES


def _calibration_error(
    columns: Callable[[np.ndarray, np.ndarray], np.ndarray],
    applies: Callable[[int], bool] = lambda outputs: True,
) -> Metric:
    """Expected calibration error: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.

    Of one class a row, of the answer; of labels, of each, mean over them. It is never below what
    chance gives: of few rows even a perfect model has some, and a resample, in which rows are
    repeated, has more than the rows; its interval is moved back by as much.
    """
    return Metric(
        name="calibration_error",
        title="calibration error",
        higher_is_better=False,
        library=partial(_value_of_means, columns=columns, metric=error_of_gaps),
        resampled=partial(of_means, columns=columns, metric=error_of_gaps),
        biased=True,
        applies=applies,
    )


def _value_of_means(
    targets: np.ndarray,
    answers: np.ndarray,
    *,
    columns: Callable[[np.ndarray, np.ndarray], np.ndarray],
    metric: Callable[[np.ndarray], np.ndarray],
) -> float:
    whole = Resamples(targets=targets, answers=answers, counts_RN=np.ones((1, len(targets))))
    return float(of_means(whole, columns=columns, metric=metric)[0])


AUROC = Metric(
    name="auroc",
    title="AUROC",
    library=_roc,
    resampled=partial(mean_areas, area=attrgetter("roc")),
    applies=_few,
    of=f"{MOST_CLASSES} classes or labels at most",
)
"""Area under the ROC curve, one against the rest, mean over the classes or labels."""
AUPRC = Metric(
    name="auprc",
    title="average precision",
    library=_precision,
    resampled=partial(mean_areas, area=attrgetter("precision")),
    applies=_few,
    of=f"{MOST_CLASSES} classes or labels at most",
)
"""Area under the precision–recall curve as average precision, mean over the classes or labels."""
CLASSIFICATION = (
    Metric(name="accuracy", title="accuracy", rows=right, binary=True),
    Metric(
        name="balanced_accuracy",
        title="balanced accuracy",
        library=_balanced_accuracy,
        resampled=partial(of_means, columns=class_counts, metric=recall_of_counts),
    ),
    Metric(
        name="f1",
        title="macro F1",
        library=_macro_f1,
        resampled=partial(of_means, columns=class_counts, metric=f1_of_counts),
    ),
    AUROC,
    AUPRC,
    Metric(
        name=f"top_{TOP_K}_accuracy",
        title=f"top-{TOP_K} accuracy",
        rows=partial(_top_k, k=TOP_K),
        binary=True,
        applies=lambda outputs: outputs > TOP_K,
        of=f"more than {TOP_K} classes",
    ),
    Metric(
        name="log_loss", title="log loss", higher_is_better=False, share=False, rows=_log_losses
    ),
    _calibration_error(calibration_gaps),
)
REGRESSION = (
    Metric(
        name="mae",
        title="mean absolute error",
        higher_is_better=False,
        share=False,
        rows=_absolute_errors,
    ),
    Metric(
        name="rmse",
        title="root mean square error",
        higher_is_better=False,
        share=False,
        library=_rmse,
        resampled=partial(
            of_means, columns=squared_errors, metric=lambda means: np.sqrt(means).mean(axis=1)
        ),
    ),
    Metric(
        name="r2",
        title="R²",
        share=False,
        library=_r2,
        resampled=partial(of_means, columns=scaled_errors, metric=r2_of_errors),
    ),
    Metric(
        name="pearson",
        title="Pearson correlation",
        share=False,
        library=partial(_correlation, kind="pearsonr"),
        resampled=partial(of_means, columns=moments, metric=pearson_of_moments),
    ),
    Metric(
        name="spearman",
        title="rank correlation",
        share=False,
        library=partial(_correlation, kind="spearmanr"),
        resampled=spearman_of_ranks,
    ),
)


def _recall(k: int) -> Metric:
    """Share of queries whose counterpart is among the k nearest, mean over the pairs."""
    return Metric(
        name=f"recall_at_{k}",
        title=f"recall@{k}",
        library=partial(_value_of_means, columns=partial(hits_at, k=k), metric=recall_of_hits),
        resampled=partial(of_means, columns=partial(hits_at, k=k), metric=recall_of_hits),
    )


def _multilabel(threshold: float) -> tuple[Metric, ...]:
    # One and the same for both, so that it is worked out once.
    counts = partial(label_counts, threshold=threshold)
    return (
        AUPRC,
        AUROC,
        Metric(
            name="f1",
            title="macro F1",
            library=partial(_label_f1, threshold=threshold, average="macro"),
            resampled=partial(of_means, columns=counts, metric=f1_of_counts),
        ),
        Metric(
            name="micro_f1",
            title="micro F1",
            library=partial(_label_f1, threshold=threshold, average="micro"),
            resampled=partial(of_means, columns=counts, metric=micro_f1_of_counts),
        ),
        Metric(
            name="exact_match",
            title="exact match",
            binary=True,
            rows=partial(_exact, threshold=threshold),
        ),
        Metric(
            name="log_loss",
            title="log loss",
            higher_is_better=False,
            share=False,
            rows=_label_log_losses,
        ),
        _calibration_error(label_calibration_gaps, applies=_few),
    )


ERRORS = frozenset(
    metric.name
    for metric in (*CLASSIFICATION, *_multilabel(0.5), *REGRESSION)
    if not metric.higher_is_better
)
"""Names of the metrics of which less is better."""


def metrics_of(task: TaskSpec) -> Mapping[str, Metric]:
    """The metrics of a task by name, the one that decides unless another is chosen first."""
    found: tuple[Metric, ...] = ()
    if isinstance(task, ClassificationSpec):
        found = CLASSIFICATION
    elif isinstance(task, MultilabelSpec):
        found = _multilabel(task.threshold)
    elif isinstance(task, RegressionSpec):
        found = REGRESSION
    elif isinstance(task, RetrievalSpec):
        found = tuple(_recall(k) for k in RECALL_AT)
    return {metric.name: metric for metric in found}
