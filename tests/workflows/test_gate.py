"""The gate: what passes, what does not and by how much, and how often chance passes it."""

from __future__ import annotations

import json

import numpy as np
import pydantic
import pytest
import scipy.stats

from training.evaluation.metrics import metrics_of
from training.task import ClassificationSpec, RegressionSpec
from workflows.promotion.gate import FrozenRows, Predictions, PromotionSpec, Verdict, judge

ACCURACY = metrics_of(ClassificationSpec(target="y"))["accuracy"]


def rows(count: int, **groups: object) -> FrozenRows:
    return FrozenRows(rows=np.arange(count), targets=np.zeros(count, int), **groups)  # type: ignore[arg-type]


def answers(right: np.ndarray) -> Predictions:
    """Predictions that are right where `right` is."""
    answers = np.stack([right, 1 - right], axis=1).astype(float)
    return Predictions(rows=np.arange(len(right)), answers=answers)


def verdict_of(
    mine: np.ndarray, theirs: np.ndarray | None, *, frozen: FrozenRows | None = None, **spec: float
) -> Verdict:
    return judge(
        frozen=frozen or rows(len(mine)),
        challenger=answers(mine),
        champion=None if theirs is None else answers(theirs),
        spec=PromotionSpec(**spec),  # type: ignore[arg-type]
        metric=ACCURACY,
    )


def block(count: int, *, wrong: int, start: int = 0) -> np.ndarray:
    """All right, but for some from `start` on."""
    right = np.ones(count)
    right[start : start + wrong] = 0
    return right


def test_a_large_gain_passes_and_a_large_loss_does_not() -> None:
    good, bad = block(300, wrong=20), block(300, wrong=60)
    passed, refused = verdict_of(good, bad), verdict_of(bad, good)
    assert passed.passed
    assert not refused.passed
    condition = refused.conditions[0]
    assert condition.difference == pytest.approx(-40 / 300)
    assert condition.challenger == pytest.approx(0.8)
    assert condition.champion == pytest.approx(280 / 300)
    assert f"falls short by {-condition.low:.3f}" in refused.sentence  # type: ignore[operator]


def test_the_interval_is_that_of_the_paired_difference() -> None:
    rng = np.random.default_rng(1)
    mine, theirs = rng.random(400) < 0.85, rng.random(400) < 0.80
    condition = verdict_of(mine, theirs).conditions[0]
    reference = scipy.stats.bootstrap(
        (mine.astype(float) - theirs.astype(float),),
        np.mean,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert condition.low == pytest.approx(reference.low, abs=0.006)
    assert condition.high == pytest.approx(reference.high, abs=0.006)


def test_a_model_is_no_better_than_itself() -> None:
    same = block(200, wrong=30)
    verdict = verdict_of(same, same)
    assert not verdict.passed
    assert verdict.conditions[0].difference == 0


TRIALS = 400


def share_passed(count: int, *, better: float, worse: float, seed: int, **spec: float) -> float:
    """How often a challenger passes on rows of which it alone is right on one share, and the
    champion alone on another.
    """
    rng = np.random.default_rng(seed)
    passed = 0
    for _ in range(TRIALS):
        draw = rng.random(count)
        mine, theirs = draw < 0.5 + better, (draw < 0.5) | (draw >= 1 - worse)
        passed += verdict_of(mine, theirs, **spec).passed
    return passed / TRIALS


def most_by_chance(rate: float) -> float:
    """The share that chance, at a rate, goes beyond once in a thousand times."""
    return float(scipy.stats.binom.ppf(0.999, TRIALS, rate)) / TRIALS


@pytest.mark.parametrize(
    ("count", "differing", "confidence"), [(30, 0.4, 0.8), (60, 0.2, 0.9), (300, 0.16, 0.95)]
)
def test_a_model_that_is_no_better_passes_no_more_often_than_stated(
    count: int, differing: float, confidence: float
) -> None:
    half = differing / 2
    chance = share_passed(count, better=half, worse=half, seed=count, confidence=confidence)
    assert 0 < chance <= most_by_chance((1 - confidence) / 2)


def test_a_gain_that_is_just_the_least_passes_no_more_often_than_stated() -> None:
    chance = share_passed(300, better=0.15, worse=0.05, seed=1, confidence=0.9, min_gain=0.1)
    assert 0 < chance <= most_by_chance(0.05)


def test_numbers_of_few_rows_pass_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(5)
    spec = PromotionSpec(confidence=0.8)
    metric = spec.metric_of(RegressionSpec(target="y"))
    frozen = FrozenRows(rows=np.arange(12), targets=np.zeros((12, 1)))
    passed = 0
    for _ in range(TRIALS):
        mine, theirs = (
            Predictions(rows=np.arange(12), answers=rng.normal(size=(12, 1))) for _ in range(2)
        )
        passed += judge(
            frozen=frozen, challenger=mine, champion=theirs, spec=spec, metric=metric
        ).passed
    assert 0 < passed / TRIALS <= most_by_chance(0.1)


@pytest.mark.parametrize(("better", "worse", "min_gain"), [(0.18, 0.08, 0.0), (0.25, 0.05, 0.08)])
def test_a_true_gain_is_found_with_the_power_of_the_normal_approximation(
    better: float, worse: float, min_gain: float
) -> None:
    count, gain = 250, better - worse
    error = np.sqrt((better + worse - gain**2) / count)
    z = scipy.stats.norm.ppf(0.975)
    power = float(scipy.stats.norm.cdf((gain - min_gain) / error - z))
    assert 0.6 < power < 0.999
    found = share_passed(count, better=better, worse=worse, seed=2, min_gain=min_gain)
    slack = 3.3 * np.sqrt(power * (1 - power) / TRIALS) + 0.02
    assert found == pytest.approx(power, abs=slack)


def test_the_gain_that_is_called_detectable_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(3)
    mine, theirs = rng.random(250) < 0.6, rng.random(250) < 0.6
    verdict = verdict_of(mine, theirs)
    assert verdict.detectable is not None
    differing = float((mine != theirs).mean())
    gain = verdict.detectable
    found = share_passed(250, better=(differing + gain) / 2, worse=(differing - gain) / 2, seed=4)
    assert found == pytest.approx(0.8, abs=3.3 * np.sqrt(0.16 / TRIALS) + 0.03)
    assert verdict_of(mine, None).detectable is None


def test_mcnemar_is_shown_beside_the_interval() -> None:
    mine, theirs = block(200, wrong=10), block(200, wrong=22, start=8)
    condition = verdict_of(mine, theirs).conditions[0]
    only_mine = int(((mine == 1) & (theirs == 0)).sum())
    only_theirs = int(((mine == 0) & (theirs == 1)).sum())
    expected = scipy.stats.binomtest(only_mine, only_mine + only_theirs).pvalue
    assert condition.p == pytest.approx(expected)
    assert f"McNemar p = {expected:.3f}" in condition.detail


def test_min_gain_moves_the_threshold_either_way() -> None:
    mine, theirs = block(500, wrong=40), block(500, wrong=60)
    low = verdict_of(mine, theirs).conditions[0].low
    assert low is not None and low > 0.01
    assert not verdict_of(mine, theirs, min_gain=low).passed, "it must be above, not equal"
    assert verdict_of(mine, theirs, min_gain=low - 1e-9).passed
    assert verdict_of(theirs, mine, min_gain=-0.1).passed, "no worse than a tenth"


def test_the_first_champion_has_only_the_floor_to_pass() -> None:
    right = block(100, wrong=30)
    assert verdict_of(right, None).passed
    assert verdict_of(right, None, floor=0.7).passed
    refused = verdict_of(right, None, floor=0.75)
    assert not refused.passed
    assert "0.700 is 0.050 below 0.750" in refused.sentence
    assert refused.sentence.startswith("refused: floor")


def test_a_slice_fails_only_if_it_surely_lost_more_than_allowed() -> None:
    # 400 rows of one language get better by 80 right answers, 100 of the other worse by 30.
    language = np.array(["en"] * 400 + ["fr"] * 100, dtype=object)
    frozen = rows(500, slices={"language": language})
    mine = np.concatenate([np.ones(400), block(100, wrong=35)])
    theirs = np.concatenate([block(400, wrong=80), block(100, wrong=5)])
    free = verdict_of(mine, theirs, frozen=frozen)
    assert free.passed, "slices decide nothing unless they are asked to"
    french = next(item for item in free.breakdown if item.name == "language: fr")
    assert (french.rows, french.difference) == (100, pytest.approx(-0.30))
    assert french.high is not None and -0.25 < french.high < -0.15

    guarded = verdict_of(mine, theirs, frozen=frozen, max_slice_drop=0.05)
    assert not guarded.passed
    failed = [condition for condition in guarded.conditions if not condition.passed]
    assert [condition.name for condition in failed] == ["language: fr"]
    assert f"by {-0.05 - french.high:.3f}" in failed[0].detail
    # Where the interval reaches over the limit, the drop is not sure.
    assert verdict_of(mine, theirs, frozen=frozen, max_slice_drop=-french.high + 1e-9).passed
    assert not verdict_of(mine, theirs, frozen=frozen, max_slice_drop=-french.high - 1e-9).passed


def test_a_slice_of_few_rows_is_shown_and_decides_nothing() -> None:
    language = np.array(["en"] * 290 + ["fr"] * 10, dtype=object)
    frozen = rows(300, slices={"language": language})
    mine = np.concatenate([np.ones(290), np.zeros(10)])
    theirs = np.concatenate([block(290, wrong=60), np.ones(10)])
    verdict = verdict_of(mine, theirs, frozen=frozen, max_slice_drop=0.0)
    assert verdict.passed
    assert "not judged: 10 rows" in next(
        c.detail for c in verdict.conditions if c.name == "language: fr"
    )
    assert not verdict_of(mine, theirs, frozen=frozen, max_slice_drop=0.0, min_slice_rows=10).passed


def test_rows_without_a_modality_are_a_slice_too() -> None:
    lacking = np.arange(200) < 50
    frozen = rows(200, missing={"speech": lacking, "photo": np.zeros(200, bool)})
    mine = np.concatenate([block(50, wrong=25), np.ones(150)])
    theirs = np.concatenate([np.ones(50), block(150, wrong=80)])
    verdict = verdict_of(mine, theirs, frozen=frozen, max_slice_drop=0.1)
    assert [item.name for item in verdict.breakdown] == ["speech missing"]
    assert verdict.breakdown[0].challenger == pytest.approx(0.5)
    assert not verdict.passed
    assert "speech missing" in verdict.sentence


def test_a_slice_value_may_be_missing() -> None:
    frozen = rows(4, slices={"language": np.array(["en", None, "en", None], dtype=object)})
    names = {item.name: item.rows for item in verdict_of(np.ones(4), None, frozen=frozen).breakdown}
    assert names == {"language: en": 2, "language: (none)": 2}


def test_other_rows_than_the_frozen_ones_are_refused() -> None:
    frozen = rows(5)
    fewer = Predictions(rows=np.arange(4), answers=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"champion must answer the 5 frozen test rows.*1 are mis"):
        judge(
            frozen=frozen,
            challenger=answers(np.ones(5)),
            champion=fewer,
            spec=PromotionSpec(),
            metric=ACCURACY,
        )
    shifted = Predictions(rows=np.arange(1, 6), answers=np.ones((5, 2)))
    with pytest.raises(ValueError, match="1 are missing, 1 are others"):
        judge(
            frozen=frozen, challenger=shifted, champion=None, spec=PromotionSpec(), metric=ACCURACY
        )
    with pytest.raises(ValueError, match="no labelled test row"):
        judge(
            frozen=rows(0),
            challenger=answers(np.ones(0)),
            champion=None,
            spec=PromotionSpec(),
            metric=ACCURACY,
        )


def test_a_verdict_survives_json_and_is_the_same_each_time() -> None:
    language = np.array(["en"] * 60 + ["fr"] * 40, dtype=object)
    frozen = rows(100, slices={"language": language})
    spec = {"max_slice_drop": 0.1, "floor": 0.5}
    made = [verdict_of(block(100, wrong=9), block(100, wrong=30), frozen=frozen, **spec)] * 2
    assert made[0] == made[1]
    assert Verdict.from_json(made[0].to_json()) == made[0]
    assert json.loads(made[0].to_json())["conditions"][0]["name"] == "accuracy"


def test_the_table_has_each_group_once() -> None:
    language = np.array(["en"] * 60 + ["fr"] * 40, dtype=object)
    frozen = rows(100, slices={"language": language})
    plain = verdict_of(block(100, wrong=9), block(100, wrong=30), frozen=frozen).table()
    assert [row["name"] for row in plain] == ["accuracy", "language: en", "language: fr"]
    assert [row["verdict"] for row in plain] == ["pass", "", ""]
    assert plain[0]["challenger"] == "0.910"
    judged = verdict_of(block(100, wrong=9), None, frozen=frozen, floor=0.95).table()
    assert [row["verdict"] for row in judged] == ["pass", "FAIL", "", ""]
    assert judged[0]["champion"] == "–"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("confidence", 1.0),
        ("floor", float("inf")),
        ("max_slice_drop", -0.1),
        ("min_gain", float("nan")),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(field: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError, match=field):
        PromotionSpec(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"), [("floor", 95), ("max_slice_drop", 1.5), ("min_gain", 1.0)]
)
def test_what_a_share_cannot_be_is_out_of_range_of_an_accuracy_alone(field, value) -> None:
    spec = PromotionSpec(**{field: value})
    problem = spec.out_of_range(spec.metric_of(ClassificationSpec(target="y")))
    assert problem is not None
    assert problem[0] == field
    assert spec.out_of_range(spec.metric_of(RegressionSpec(target="y"))) is None


def test_a_metric_that_the_task_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'rmse'\? its metrics: mae, rmse"):
        PromotionSpec(metric="rsme").metric_of(RegressionSpec(target="y"))


def test_an_error_passes_by_becoming_less_and_has_a_floor_above() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 1)) * 40
    frozen = FrozenRows(rows=np.arange(200), targets=truth)

    def guesses(error: float) -> Predictions:
        return Predictions(rows=np.arange(200), answers=truth + rng.normal(size=(200, 1)) * error)

    good, bad = guesses(3), guesses(9)
    for name in ("mae", "rmse", "spearman"):
        spec = PromotionSpec(metric=name)
        metric = spec.metric_of(RegressionSpec(target="y"))
        verdict = judge(frozen=frozen, challenger=good, champion=bad, spec=spec, metric=metric)
        assert verdict.passed
        assert verdict.metric == name
        assert not judge(
            frozen=frozen, challenger=bad, champion=good, spec=spec, metric=metric
        ).passed
    spec = PromotionSpec(floor=5)
    metric = spec.metric_of(RegressionSpec(target="y"))
    options = {"frozen": frozen, "champion": None, "spec": spec, "metric": metric}
    assert judge(challenger=good, **options).passed
    refused = judge(challenger=bad, **options)
    assert "above 5.000" in refused.sentence
    assert not refused.passed


def test_a_slice_that_does_not_define_the_metric_is_left_out() -> None:
    spec = PromotionSpec(metric="auroc")
    metric = spec.metric_of(ClassificationSpec(target="y"))
    targets = np.arange(100) % 2
    targets[80:] = 0
    language = np.array(["en"] * 80 + ["fr"] * 20, dtype=object)
    frozen = FrozenRows(rows=np.arange(100), targets=targets, slices={"language": language})
    p = np.linspace(0, 1, 100)
    mine = Predictions(rows=np.arange(100), answers=np.stack([1 - p, p], axis=1))
    verdict = judge(frozen=frozen, challenger=mine, champion=mine, spec=spec, metric=metric)
    assert [item.name for item in verdict.breakdown] == ["language: en"]
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_a_verdict_of_the_time_of_accuracy_alone_can_be_read() -> None:
    verdict = verdict_of(block(100, wrong=9), None)
    value = json.loads(verdict.to_json())
    names = {"score": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    before = {names.get(name, name): item for name, item in value.items() if name != "metric"}
    assert Verdict.from_json(json.dumps(before)) == verdict


def test_rows_of_one_group_are_no_more_evidence_than_the_group() -> None:
    # Of 12 speakers with 40 rows each, the challenger is better for 7 and worse for 5.
    mine = np.repeat([1, 0], [7 * 40, 5 * 40])
    theirs = 1 - mine
    assert verdict_of(mine, theirs).passed
    frozen = rows(480, drawn=np.repeat(np.arange(12), 40))
    verdict = verdict_of(mine, theirs, frozen=frozen)
    assert not verdict.passed
    assert verdict.low < 0.4 < verdict.high
