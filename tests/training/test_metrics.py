"""Metrics against scikit-learn, SciPy and torchmetrics: as they are, and resample by resample."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics.functional as theirs

from training.evaluation.bootstrap import metric_interval, metric_intervals, paired_metric
from training.evaluation.metrics import Metric, metrics_of
from training.evaluation.resampling import Resamples
from training.task import ClassificationSpec, MultilabelSpec, RegressionSpec, RetrievalSpec

CLASSIFICATION = metrics_of(ClassificationSpec(target="y"))
MULTILABEL = metrics_of(MultilabelSpec(target="y", threshold=0.4))
REGRESSION = metrics_of(RegressionSpec(target="y"))


def classified(rows: int = 200, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and probabilities that know a little of them; some are equal."""
    rng = np.random.default_rng(0)
    targets = rng.integers(classes, size=rows)
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[targets]
    p = np.exp(np.round(logits, 1))
    return targets, p / p.sum(axis=1, keepdims=True)


def labelled(rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Four labels, one of them rare, and probabilities with ties."""
    rng = np.random.default_rng(1)
    targets = rng.random((rows, 4)) < [0.5, 0.3, 0.6, 0.05]
    return targets, np.round(np.clip(targets * 0.3 + rng.random((rows, 4)) * 0.7, 0, 1), 2)


def measured(rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers of unlike size, and guesses at them with ties."""
    rng = np.random.default_rng(2)
    targets = rng.normal(size=(rows, 2)) * [1, 50] + [0, 2000]
    return targets, np.round(targets + rng.normal(size=(rows, 2)) * [0.5, 30], 1)


CASES = [
    *(
        pytest.param(m, classified(), id=f"classification {m.name}")
        for m in CLASSIFICATION.values()
    ),
    *(
        pytest.param(m, classified(classes=2), id=f"two classes {m.name}")
        for m in CLASSIFICATION.values()
        if m.applies(2)
    ),
    *(pytest.param(m, labelled(), id=f"multilabel {m.name}") for m in MULTILABEL.values()),
    *(pytest.param(m, measured(), id=f"regression {m.name}") for m in REGRESSION.values()),
]


def test_classification_agrees_with_scikit_learn_and_torchmetrics() -> None:
    y, p = classified()
    answers, value = p.argmax(axis=1), {n: m.value(y, p) for n, m in CLASSIFICATION.items()}
    assert value["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, answers))
    expected = sklearn.metrics.balanced_accuracy_score(y, answers)
    assert value["balanced_accuracy"] == pytest.approx(expected)
    assert value["f1"] == pytest.approx(sklearn.metrics.f1_score(y, answers, average="macro"))
    expected = sklearn.metrics.roc_auc_score(y, p, multi_class="ovr", average="macro")
    assert value["auroc"] == pytest.approx(expected)
    assert value["log_loss"] == pytest.approx(sklearn.metrics.log_loss(y, p))
    scores, targets = torch.from_numpy(p), torch.from_numpy(y)
    options = {"num_classes": 6, "average": "macro"}
    expected = float(theirs.classification.multiclass_average_precision(scores, targets, **options))
    assert value["auprc"] == pytest.approx(expected, rel=1e-5)
    expected = float(theirs.classification.multiclass_auroc(scores, targets, **options))
    assert value["auroc"] == pytest.approx(expected, rel=1e-5)
    expected = float(
        theirs.classification.multiclass_calibration_error(
            scores, targets, num_classes=6, n_bins=15, norm="l1"
        )
    )
    assert value["calibration_error"] == pytest.approx(expected, rel=1e-5)
    options = {"num_classes": 6, "average": "micro", "top_k": 3}
    # torchmetrics lets a tie pass by order; here no row has one at the third place.
    unlike = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    expected = float(theirs.classification.multiclass_accuracy(unlike, targets, **options))
    assert CLASSIFICATION["top_3_accuracy"].value(y, unlike.numpy()) == pytest.approx(expected)


def test_two_classes_agree_with_scikit_learn() -> None:
    y, p = classified(classes=2)
    expected = sklearn.metrics.roc_auc_score(y, p[:, 1])
    assert CLASSIFICATION["auroc"].value(y, p) == pytest.approx(expected)
    expected = sklearn.metrics.average_precision_score(y, p[:, 1])
    assert CLASSIFICATION["auprc"].value(y, p) == pytest.approx(expected)


def test_multilabel_agrees_with_scikit_learn_and_torchmetrics() -> None:
    y, p = labelled()
    value = {name: metric.value(y, p) for name, metric in MULTILABEL.items()}
    assert value["auprc"] == pytest.approx(sklearn.metrics.average_precision_score(y, p))
    assert value["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(y, p))
    options = {"num_labels": 4, "threshold": 0.399999}
    scores, targets = torch.from_numpy(p), torch.from_numpy(y).int()
    for name, average in (("f1", "macro"), ("micro_f1", "micro")):
        expected = theirs.classification.multilabel_f1_score(
            scores, targets, average=average, **options
        )
        assert value[name] == pytest.approx(float(expected), rel=1e-6)
    expected = theirs.classification.multilabel_exact_match(scores, targets, **options)
    assert value["exact_match"] == pytest.approx(float(expected))
    # None lies on the edge of a bin.
    unround = p * 0.99 + 0.001
    errors = [
        theirs.classification.binary_calibration_error(
            torch.tensor(unround[:, k]), targets[:, k], n_bins=15, norm="l1"
        ).item()
        for k in range(4)
    ]
    error = MULTILABEL["calibration_error"].value(y, unround)
    assert error == pytest.approx(np.mean(errors), rel=1e-5)
    losses = [sklearn.metrics.log_loss(y[:, k], p[:, k].clip(1e-12, 1 - 1e-12)) for k in range(4)]
    assert value["log_loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_calibration_error_of_what_is_as_often_right_as_it_says_is_what_chance_leaves() -> None:
    """Of few rows even a perfect model has some; the interval is around the value of the rows."""
    rng, metric = np.random.default_rng(5), CLASSIFICATION["calibration_error"]
    sure = rng.uniform(0.5, 1, size=40_000)
    p = np.stack([sure, 1 - sure], axis=1)
    targets = (rng.random(len(p)) >= sure).astype(int)
    assert metric.value(targets, p) < 0.01
    few = targets[:200], p[:200]
    assert metric.value(*few) > 0.03
    interval = metric_interval(metric, targets=few[0], answers=few[1])
    assert interval.low < metric.value(*few) < interval.high
    overconfident = np.stack([sure**0.25, 1 - sure**0.25], axis=1)
    expected = np.mean(sure**0.25 - sure)
    assert metric.value(targets, overconfident) == pytest.approx(expected, abs=0.01)


def test_regression_agrees_with_scikit_learn_and_scipy() -> None:
    y, x = measured()
    value = {name: metric.value(y, x) for name, metric in REGRESSION.items()}
    assert value["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(y, x))
    assert value["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(y, x))
    assert value["r2"] == pytest.approx(sklearn.metrics.r2_score(y, x))
    for name, kind in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
        expected = np.mean([kind(y[:, k], x[:, k]).statistic for k in range(2)])
        assert value[name] == pytest.approx(expected)


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_a_resample_has_the_value_of_the_rows_that_it_holds(metric: Metric, data) -> None:
    targets, answers = data
    if metric.resampled is None:
        assert metric.rows is not None
        return
    rng = np.random.default_rng(3)
    rows = rng.integers(len(targets), size=(5, len(targets)))
    counts = np.stack([np.bincount(r, minlength=len(targets)) for r in rows]).astype(float)
    expected = [metric.value(targets[r], answers[r]) for r in rows]
    resamples = Resamples(targets=targets, answers=answers, counts_RN=counts)
    np.testing.assert_allclose(metric.resampled(resamples), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("metric", "data"),
    [
        (CLASSIFICATION["accuracy"], classified()),
        (CLASSIFICATION["auroc"], classified(classes=2)),
        (MULTILABEL["f1"], labelled()),
        (REGRESSION["rmse"], measured()),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_interval_is_that_of_a_bootstrap_row_by_row(metric: Metric, data) -> None:
    targets, answers = data
    found = metric_interval(metric, targets=targets, answers=answers)
    rng = np.random.default_rng(4)
    rows = (rng.integers(len(targets), size=len(targets)) for _ in range(200))
    values = [metric.value(targets[r], answers[r]) for r in rows]
    assert found.mean == pytest.approx(metric.value(targets, answers))
    spread = np.std(values)
    low, high = np.nanquantile(values, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.6 * spread)
    assert found.high == pytest.approx(high, abs=0.6 * spread)
    assert metric_interval(metric, targets=targets, answers=answers) == found


@pytest.mark.parametrize(("metric", "data"), CASES)
def test_better_answers_gain_whichever_way_the_metric_points(metric: Metric, data) -> None:
    targets, answers = data
    worse = answers[np.random.default_rng(5).permutation(len(answers))]
    gain = paired_metric(metric, targets=targets, a=answers, b=worse)
    assert gain.low > 0
    assert metric.is_better(metric.value(targets, answers), metric.value(targets, worse))
    loss = paired_metric(metric, targets=targets, a=worse, b=answers)
    assert loss.mean == pytest.approx(-gain.mean)
    assert loss.high < 0
    same = paired_metric(metric, targets=targets, a=answers, b=answers)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_certain_and_wrong_is_finite() -> None:
    p = np.array([[1.0, 0.0]])
    found = CLASSIFICATION["log_loss"].value(np.array([1]), p)
    assert found == pytest.approx(-math.log(1e-12))


def test_a_constant_model_is_not_among_the_best_by_ties() -> None:
    targets, p = np.arange(8) % 4, np.full((8, 4), 0.25)
    assert CLASSIFICATION["top_3_accuracy"].value(targets, p) == 0.0
    assert CLASSIFICATION["auroc"].value(targets, p) == 0.5


def test_what_rows_do_not_define_is_nan_and_its_interval_too() -> None:
    targets, p = np.zeros(9, np.int64), np.full((9, 2), 0.5)
    found = metric_interval(CLASSIFICATION["auroc"], targets=targets, answers=p)
    assert math.isnan(found.mean)
    assert math.isnan(found.low)
    same = np.ones((9, 1))
    for name in ("r2", "pearson", "spearman"):
        assert math.isnan(REGRESSION[name].value(same, same))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        CLASSIFICATION["accuracy"].value(np.zeros(0), np.zeros((0, 3)))


def test_recall_is_the_share_of_known_ranks_below_k() -> None:
    ranks = np.array([[0, 3, np.nan], [1, np.nan, np.nan], [0, 0, np.nan]])
    found = metrics_of(RetrievalSpec())
    targets = np.zeros(3)
    # Pair by pair, then over the pairs that any row has.
    assert found["recall_at_1"].value(targets, ranks) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["recall_at_5"].value(targets, ranks) == 1.0
    assert math.isnan(found["recall_at_1"].value(targets, np.full((3, 3), np.nan)))


@pytest.mark.parametrize("kind", ["labels", "classes"])
def test_memory_of_intervals_does_not_grow_with_labels_or_classes(kind) -> None:
    rng = np.random.default_rng(6)
    if kind == "labels":
        targets, answers = rng.random((1500, 40)) < 0.5, rng.random((1500, 40), np.float32)
        metrics = [MULTILABEL[name] for name in ("auprc", "auroc", "f1")]
    else:
        targets, answers = rng.integers(1000, size=3000), rng.random((3000, 1000), np.float32)
        metrics = [CLASSIFICATION["f1"], CLASSIFICATION["balanced_accuracy"]]
    # What is loaded at the first use is none of theirs.
    metric_intervals(metrics, targets=targets[:50], answers=answers[:50], resamples=2)
    tracemalloc.start()
    try:
        found = metric_intervals(metrics, targets=targets, answers=answers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(interval.low <= interval.mean for interval in found)
    # Curves of all labels at once take 230 MiB, and counts of all classes, as a matrix, 69.
    assert peak < 48 * 2**20
