"""Whether differences are real: against SciPy, by hand, and how often chance is taken for one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from training.evaluation.bootstrap import LEAST_RESAMPLES, metric_interval, paired_resamples
from training.evaluation.metrics import metrics_of
from training.evaluation.significance import bootstrap_p, difference, holm, mcnemar
from training.task import ClassificationSpec, RegressionSpec

CLASSIFICATION = metrics_of(ClassificationSpec(target="y"))
ACCURACY = CLASSIFICATION["accuracy"]
MAE = metrics_of(RegressionSpec(target="y"))["mae"]


def test_mcnemar_is_the_sign_test_of_the_rows_where_one_is_right() -> None:
    a = np.repeat([1, 1, 0, 0], [50, 15, 4, 11])
    b = np.repeat([1, 0, 1, 0], [50, 15, 4, 11])
    assert mcnemar(a, b) == pytest.approx(scipy.stats.binomtest(15, 19).pvalue)
    assert mcnemar(b, a) == mcnemar(a, b)
    # As the χ² form of many rows says (McNemar 1947), with its correction for continuity.
    many = mcnemar(np.repeat([1, 0], [180, 120]), np.repeat([0, 1], [180, 120]))
    assert many == pytest.approx(scipy.stats.chi2.sf((60 - 1) ** 2 / 300, 1), rel=0.05)


def test_models_that_never_differ_are_not_told_apart() -> None:
    same = np.array([1, 0, 1])
    assert mcnemar(same, same) == 1.0
    with pytest.raises(ValueError, match="of the same rows"):
        mcnemar(same, same[:2])


def test_holm_by_hand() -> None:
    # As R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_equal_models_few_comparisons_are_taken_for_real() -> None:
    rng = np.random.default_rng(0)
    alarms, trials = 0, 200
    for _ in range(trials):
        right = rng.random((6, 150)) < 0.7
        alarms += min(holm([mcnemar(right[0], other) for other in right[1:]])) < 0.05
    assert alarms <= scipy.stats.binom.ppf(0.999, trials, 0.05)


def regression(noise: float, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = rng.normal(size=(120, 1))
    return truth, truth + rng.normal(size=(120, 1)) * noise


def test_bootstrap_p_is_small_for_a_real_difference_and_even_for_none() -> None:
    rng = np.random.default_rng(1)
    p_values = []
    for _ in range(150):
        truth, a = regression(1.0, rng=rng)
        b = truth + rng.normal(size=(120, 1))
        found = difference(MAE, targets=truth, a=a, b=b)
        assert found.test == "paired bootstrap"
        p_values.append(found.p)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001
    truth, a = regression(0.5, rng=rng)
    better = difference(MAE, targets=truth, a=a, b=truth + rng.normal(size=(120, 1)))
    assert better.p < 0.01
    assert better.gain.low > 0


def test_of_right_and_wrong_the_p_is_mcnemars_and_the_gain_is_paired() -> None:
    rng = np.random.default_rng(2)
    targets = np.zeros(300, int)
    right = rng.random((2, 300)) < [[0.9], [0.75]]
    a, b = (np.stack([r, ~r], axis=1).astype(float) for r in right)
    found = difference(ACCURACY, targets=targets, a=a, b=b)
    assert found.test == "McNemar"
    assert found.p == mcnemar(right[0], right[1])
    assert found.gain.mean == pytest.approx(right[0].mean() - right[1].mean())
    assert found.gain.low > 0


def test_more_rows_leave_a_clear_lead_real_though_they_are_resampled_less_often() -> None:
    rng = np.random.default_rng(3)
    targets = rng.integers(10, size=40_000)

    def answered(share: float) -> np.ndarray:
        """The right class to a share of the rows, and any to the others."""
        guess = np.where(rng.random(len(targets)) < share, targets, rng.integers(10, size=40_000))
        return np.eye(10, dtype=np.float32)[guess]

    best, metric = answered(0.6), CLASSIFICATION["balanced_accuracy"]
    others = [answered(share) for share in (0.55, 0.5, 0.4)]
    drawn = paired_resamples(metric, targets=targets, a=best, b=others[0])
    assert len(drawn) == LEAST_RESAMPLES
    found = [difference(metric, targets=targets, a=best, b=other) for other in others]
    assert all(item.gain.low > 0 for item in found)
    assert max(holm([item.p for item in found])) < 0.001


def test_a_p_beyond_what_can_be_counted_is_students() -> None:
    rng = np.random.default_rng(4)
    gains = rng.normal(0.5, 1.0, size=300)
    values = gains[rng.integers(300, size=(2000, 300))].mean(axis=1)
    expected = scipy.stats.ttest_1samp(gains, 0.0).pvalue
    assert expected < 1e-6
    found = bootstrap_p(float(gains.mean()), values, units=300)
    assert np.log10(found) == pytest.approx(np.log10(expected), abs=0.7)
    # What is drawn from a single unit says nothing beyond the draws.
    assert bootstrap_p(1.0, np.ones(99), units=1) == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy"])
def test_rows_of_one_group_are_drawn_together(name) -> None:
    rng = np.random.default_rng(5)
    metric, groups = CLASSIFICATION[name], np.repeat(rng.permutation(24), 30)
    targets = rng.integers(2, size=720)
    # A model answers all rows of a speaker, or none.
    right = (rng.random((2, 24)) < [[0.8], [0.6]])[:, groups]
    a, b = (np.eye(2)[np.where(r, targets, 1 - targets)] for r in right)
    options = {"targets": targets, "groups": groups}
    found = metric_interval(metric, answers=a, **options)
    alone = metric_interval(metric, targets=targets, answers=a)
    assert found.mean == alone.mean
    shares = right[0].reshape(24, 30).mean(axis=1)
    drawn = shares[rng.integers(24, size=(4000, 24))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)
    assert found.high - found.low > 3 * (alone.high - alone.low)
    apart, together = (
        difference(metric, targets=targets, a=a, b=b),
        difference(metric, a=a, b=b, **options),
    )
    assert apart.p < 1e-3 < 0.05 < together.p
    assert together.test == "paired bootstrap of groups"
    assert together.gain.low < apart.gain.low


def test_groups_of_one_row_each_are_rows_and_one_group_tells_of_its_rows() -> None:
    rng = np.random.default_rng(6)
    targets = rng.integers(2, size=60)
    answers = np.eye(2)[np.where(rng.random(60) < 0.8, targets, 1 - targets)]
    for metric in (ACCURACY, CLASSIFICATION["f1"]):
        plain = metric_interval(metric, targets=targets, answers=answers)
        for groups in (rng.permutation(60) * 7, np.full(60, 3)):
            found = metric_interval(metric, targets=targets, answers=answers, groups=groups)
            assert found == plain
