from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.evaluation.bootstrap import bootstrap_interval


def test_agrees_with_scipy_on_continuous_values() -> None:
    values = np.random.default_rng(0).normal(size=200)
    interval = bootstrap_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(theirs.low, abs=0.02)
    assert interval.high == pytest.approx(theirs.high, abs=0.02)


def test_agrees_with_the_normal_interval_on_right_and_wrong() -> None:
    # Two distinct values go by the multinomial law; the interval must be that of drawing rows.
    values = np.arange(2000) % 4 == 0
    interval = bootstrap_interval(values)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 2000)
    assert interval.mean == 0.25
    assert interval.low == pytest.approx(0.25 - half, abs=0.002)
    assert interval.high == pytest.approx(0.25 + half, abs=0.002)


def test_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    intervals = [
        bootstrap_interval(rng.random(300) < 0.6, confidence=0.9, resamples=500, seed=i)
        for i in range(400)
    ]
    covered = np.mean([i.low <= 0.6 <= i.high for i in intervals])
    assert 0.86 <= covered <= 0.94


def test_wider_confidence_is_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(50)
    narrow, wide = (bootstrap_interval(values, confidence=c) for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_paired_difference_is_far_narrower_than_the_two_apart() -> None:
    rng = np.random.default_rng(0)
    b = rng.random(500) < 0.7
    a = b | (rng.random(500) < 0.05)  # never worse, a little better
    paired = bootstrap_interval(a * 1.0 - b)
    apart = bootstrap_interval(a).high - bootstrap_interval(a).low
    assert paired.low > 0
    assert paired.high - paired.low < apart / 2
    assert paired.mean == pytest.approx(a.mean() - b.mean())
    swapped = bootstrap_interval(b * 1.0 - a)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low), abs=0.005)


def test_equal_arguments_give_equal_intervals() -> None:
    values = np.random.default_rng(0).random(40)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


def test_one_value_and_constant_values_have_no_width() -> None:
    assert bootstrap_interval([0.5]).low == bootstrap_interval([0.5]).high == 0.5
    constant = bootstrap_interval(np.ones(30))
    assert (constant.low, constant.high) == (1.0, 1.0)


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="1 of the values are not finite"):
        bootstrap_interval([1.0, np.nan])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0], confidence=95)
