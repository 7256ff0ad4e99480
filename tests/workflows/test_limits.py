"""The limits of a gate: any metric, slice, set of modalities and cost, as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.workflows import command
from training.evaluation.metrics import metrics_of
from training.task import ClassificationSpec
from workflows.pipeline import ConfigurationError, load_pipeline
from workflows.promotion.compare import Answered, FrozenRows, Further, Predictions
from workflows.promotion.costs import Cost, latency, size
from workflows.promotion.gate import judge
from workflows.promotion.outlook import limits_without_rows
from workflows.promotion.spec import PromotionSpec
from workflows.promotion.verdict import Condition, TestSet, Verdict

METRICS = metrics_of(ClassificationSpec(target="y"))


def answers(right: np.ndarray) -> Predictions:
    """Answers that are right where `right` is, all classes being 0."""
    p = np.where(right.astype(bool), 0.9, 0.2)
    return Predictions(rows=np.arange(len(p)), answers=np.stack([p, 1 - p], axis=1))


def right(count: int, *, wrong: int) -> np.ndarray:
    """All right but the first."""
    return np.arange(count) >= wrong


def verdict_of(
    limit: object,
    *,
    mine: np.ndarray,
    theirs: np.ndarray | None,
    slices: dict[str, np.ndarray] | None = None,
    missing: dict[str, np.ndarray] | None = None,
    further: Further | None = None,
    **spec: object,
) -> Verdict:
    frozen = FrozenRows(
        rows=np.arange(len(mine)),
        targets=np.zeros(len(mine), int),
        slices=slices or {},
        missing=missing or {},
    )
    return judge(
        frozen=frozen,
        challenger=answers(mine),
        champion=None if theirs is None else answers(theirs),
        spec=PromotionSpec(min_gain=-0.9, limits=[limit], **spec),  # type: ignore[arg-type]
        metric=METRICS["accuracy"],
        further=further or Further(metrics=METRICS),
    )


def limited(verdict: Verdict) -> list[Condition]:
    """The conditions of limits."""
    return list(verdict.conditions[1:])


def test_a_floor_and_a_ceiling_hold_for_the_first_champion_too() -> None:
    mine = right(200, wrong=40)
    for limit, passed in [
        ({"floor": 0.8}, True),
        ({"floor": 0.81}, False),
        ({"metric": "log_loss", "ceiling": 0.41}, True),
        ({"metric": "log_loss", "ceiling": 0.40}, False),
    ]:
        verdict = verdict_of(limit, mine=mine, theirs=None)
        (condition,) = limited(verdict)
        assert verdict.passed is condition.passed is passed
    loss = 0.8 * -np.log(0.9) + 0.2 * -np.log(0.2)
    assert condition.challenger == pytest.approx(loss)
    assert f"{loss:.3f} is {loss - 0.4:.3f} above 0.400" in condition.detail


def test_against_no_champion_no_drop_is_too_large() -> None:
    verdict = verdict_of({"max_drop": 0.0, "proven": True}, mine=right(99, wrong=9), theirs=None)
    assert verdict.passed
    assert "no champion before" in limited(verdict)[0].detail


def test_a_drop_fails_if_it_is_sure_and_a_proven_one_unless_its_absence_is() -> None:
    # 4 rows of 200 lost and 2 won: neither sure to be worse than by 1%, nor sure not to be.
    mine = np.ones(200, bool)
    theirs = np.ones(200, bool)
    mine[:4], theirs[4:6] = False, False
    unsure = verdict_of({"max_drop": 0.01}, mine=mine, theirs=theirs)
    assert unsure.passed
    asked = verdict_of({"max_drop": 0.01, "proven": True}, mine=mine, theirs=theirs)
    (condition,) = limited(asked)
    assert not asked.passed
    assert condition.low is not None and condition.high is not None
    assert condition.low < -0.01 < condition.high
    assert f"it reaches {-0.01 - condition.low:.3f} below -0.010" in asked.sentence
    assert verdict_of({"max_drop": 0.05, "proven": True}, mine=mine, theirs=theirs).passed
    worse = verdict_of({"max_drop": 0.01}, mine=right(200, wrong=30), theirs=theirs)
    assert not worse.passed
    assert "all of it lies" in worse.sentence


def test_a_slice_is_judged_on_its_rows_alone_by_any_metric() -> None:
    language = np.array(["ja"] * 50 + ["en"] * 150, dtype=object)
    source = np.array(["phone", "web"] * 100, dtype=object)
    mine = right(200, wrong=25)
    options = {
        "mine": mine,
        "theirs": right(200, wrong=20),
        "slices": {"language": language, "source": source},
    }
    failed = verdict_of({"slice": "language: ja", "floor": 0.6}, **options)
    (condition,) = limited(failed)
    assert (condition.name, condition.rows) == ("accuracy, language: ja", 50)
    assert condition.challenger == pytest.approx(0.5)
    assert not failed.passed
    assert verdict_of({"slice": {"language": "en"}, "floor": 1.0}, **options).passed
    both = verdict_of({"slice": {"language": "ja", "source": "web"}, "floor": 0.4}, **options)
    assert limited(both)[0].name == "accuracy, language: ja, source: web"
    assert limited(both)[0].rows == 25
    loss = limited(
        verdict_of({"metric": "log_loss", "slice": "language: en", "ceiling": 1}, **options)
    )
    assert loss[0].challenger == pytest.approx(-np.log(0.9))


def test_a_slice_that_cannot_be_judged_fails_and_says_why() -> None:
    language = np.array(["ja"] * 10 + ["en"] * 90, dtype=object)
    options = {"mine": right(100, wrong=0), "theirs": None, "slices": {"language": language}}
    few = verdict_of({"slice": "language: ja", "floor": 0.1}, **options)
    assert not few.passed
    assert "10 test rows, fewer than min_slice_rows (20)" in few.sentence
    assert verdict_of({"slice": "language: ja", "floor": 0.1}, min_slice_rows=10, **options).passed
    gone = verdict_of({"slice": "language: jp", "floor": 0.1}, **options)
    assert "no test row is of language: jp; did you mean 'ja'? there are en, ja" in gone.sentence
    undefined = verdict_of({"metric": "auroc", "floor": 0.1}, **options)
    assert "these 100 rows do not define AUROC" in undefined.sentence
    for verdict in (few, gone, undefined):
        assert Verdict.from_json(verdict.to_json()) == verdict
        assert verdict.table()[1]["challenger"] in ("–", "1.000")


def test_rows_that_lack_modalities_are_those_that_lack_all_of_them() -> None:
    photo, speech = np.arange(100) < 40, np.arange(100) >= 20
    mine = right(100, wrong=10)
    options = {"mine": mine, "theirs": mine, "missing": {"photo": photo, "speech": speech}}
    one = limited(verdict_of({"missing": ["photo"], "floor": 0.1}, **options))[0]
    assert (one.rows, one.challenger) == (40, pytest.approx(0.75))
    both = limited(verdict_of({"missing": ["photo", "speech"], "floor": 0.1}, **options))[0]
    assert (both.name, both.rows) == ("accuracy, photo and speech missing", 20)


def test_modalities_alone_are_judged_by_the_answers_from_them_where_one_is_there() -> None:
    lacking = {"caption": np.arange(100) < 30, "photo": np.zeros(100, bool)}
    alone = Answered(
        challenger=answers(right(100, wrong=65)), champion=answers(right(100, wrong=30))
    )
    verdict = verdict_of(
        {"present": ["caption"], "floor": 0.45, "max_drop": 0.1},
        mine=right(100, wrong=0),
        theirs=right(100, wrong=0),
        missing=lacking,
        further=Further(metrics=METRICS, alone={("caption",): alone}),
    )
    floor, drop = limited(verdict)
    assert (floor.name, floor.rows) == ("accuracy, caption alone", 70)
    assert floor.challenger == pytest.approx(0.5) and floor.passed
    assert drop.difference == pytest.approx(-0.5) and not drop.passed


def test_what_a_model_costs_is_a_limit_and_in_a_trial_run_not_known() -> None:
    mine = right(50, wrong=0)
    cost = Cost(rows=50, challenger=12.0, champion=9.0, difference=-3.0, low=-4.0, high=-2.0)
    further = Further(metrics=METRICS, costs={"latency_ms": cost, "model_mb": None})
    options = {"mine": mine, "theirs": mine, "further": further}
    assert verdict_of({"metric": "latency_ms", "ceiling": 12}, **options).passed
    assert not verdict_of({"metric": "latency_ms", "ceiling": 11.9}, **options).passed
    assert verdict_of({"metric": "latency_ms", "max_drop": 2.0}, **options).passed
    assert not verdict_of({"metric": "latency_ms", "max_drop": 1.9}, **options).passed
    trial = verdict_of({"metric": "model_mb", "ceiling": 1}, **options)
    assert trial.passed and "not measured" in limited(trial)[0].detail


def test_latency_is_the_95th_percentile_of_both_models_asked_in_turn() -> None:
    time, asked = [0.0], list[tuple[str, int]]()

    def model(name: str, seconds: float):
        def ask(row: int) -> None:
            asked.append((name, row))
            time[0] += seconds * (row + 1)

        return ask

    cost = latency(
        model("new", 0.002), model("old", 0.001), rows=20, confidence=0.9, clock=lambda: time[0]
    )
    expected = np.quantile(np.arange(1, 21), 0.95)
    assert cost.challenger == pytest.approx(2 * expected)
    assert cost.champion == pytest.approx(expected)
    assert cost.low is not None and cost.high is not None
    assert cost.low <= cost.difference <= cost.high < 0  # type: ignore[operator]
    timed = asked[6:]
    assert timed[:4] == [("new", 0), ("old", 0), ("old", 1), ("new", 1)]
    assert sum(timed[i][0] == "new" for i in range(0, 40, 2)) == 10


def test_the_size_of_a_model_is_that_of_its_files(tmp_path: Path) -> None:
    for name, count in (("new", 3_000_000), ("old", 1_000_000)):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_bytes(bytes(count))
    cost = size([tmp_path / "new", tmp_path / "old"])
    assert (cost.challenger, cost.champion, cost.difference) == (3.0, 1.0, -2.0)
    assert size([tmp_path / "new"]).champion is None


def test_a_changed_test_set_is_told_in_numbers() -> None:
    told = TestSet(snapshot="b" * 32, rows=120, before="a" * 32, added=30, removed=2, relabelled=1)
    assert "30 rows came, 2 went, 1 have another label; both models answer the 120" in told.sentence
    assert TestSet(snapshot="a", rows=1, before="a").sentence == ""
    assert TestSet(snapshot="a", rows=1, before=None).sentence == ""
    assert "it is gone" in TestSet(snapshot="a", rows=1, before="b").sentence


YAML = """name: x
dataset: {path: t.parquet, split: split, slices: [language]}
features:
  caption: {column: text, encoder: {type: hashing, dim: 8}}
  photo: {column: picture, encoder: {type: hog, size: 16}}
task: {target: y}
candidates: [{type: early}]
promotion:
  limits:
    - %s
"""


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("{metric: acuracy, floor: 1}", "no metric 'acuracy' .* did you mean 'accuracy'"),
        ("{metric: latency, ceiling: 1}", "did you mean 'latency_ms'"),
        ("{metric: log_loss, floor: 1}", "of log_loss less is better: give a `ceiling`"),
        ("{metric: f1, ceiling: 1}", "of f1 more is better: give a `floor`"),
        ("{metric: f1, floor: 80}", "macro F1 is a share"),
        ("{metric: f1}", "a limit needs a `floor`, a `ceiling` or a `max_drop`"),
        ("{floor: 0.5, proven: true}", "`proven` is of a `max_drop`"),
        ("{flor: 0.5}", "did you mean 'floor'"),
        ("{floor: 0.5, slice: ja}", 'a slice is written "column: value"'),
        ("{floor: 0.5, slice: {language: no}}", "YAML reads .* as false; put it in quotes"),
        ('{floor: 0.5, slice: "langage: ja"}', "'langage' is no slice; did you mean 'language'"),
        ("{floor: 0.5, missing: photo}", r"this is a list: \[photo\]"),
        ("{floor: 0.5, missing: [foto]}", "no modality 'foto'; did you mean 'photo'"),
        ("{floor: 0.5, present: [caption, photo]}", "nothing is taken away"),
        ("{floor: 0.5, present: [caption], missing: [photo]}", "either `missing`"),
        ("{metric: model_mb, ceiling: 5, missing: [photo]}", "model_mb is of the whole model"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_with_the_remedy(
    limit: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text(YAML % limit)
    with pytest.raises(ConfigurationError, match=expected) as error:
        load_pipeline(tmp_path / "x.yaml")
    assert "x.yaml:10: promotion.limits" in str(error.value)


def test_a_gate_without_limits_is_the_same_question_as_before_there_were_any(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.yaml").write_text(YAML % "{metric: model_mb, ceiling: 5}")
    spec = load_pipeline(tmp_path / "x.yaml").spec.promotion
    assert "limits" in spec.identity()
    human = PromotionSpec(require="human").identity()
    assert human == PromotionSpec().identity()
    assert set(human) == {
        *("metric", "min_gain", "confidence", "floor", "max_slice_drop", "min_slice_rows")
    }


def test_what_the_gate_will_refuse_for_lack_of_rows_is_told_before_anything_is_fitted(
    fitted_shapes, capsys
) -> None:
    """As many rows, and the same limits, as the table itself says."""
    store, snapshot = fitted_shapes.store, fitted_shapes.snapshot
    table = store.read_samples(snapshot).to_pandas()
    counts = table[table["split"] == "test"]["slice.language"].value_counts()
    some = counts.index[0]
    limits = [{"slice": f"language: {some}", "floor": 0.1}, {"slice": "language: xx", "floor": 0.1}]

    def told(least: int) -> dict[int, str]:
        spec = PromotionSpec(limits=limits, min_slice_rows=least)  # type: ignore[arg-type]
        return dict(limits_without_rows(store, snapshot=snapshot, spec=spec))

    found = told(int(counts[some]))
    assert found.keys() == {1}
    assert "no test row is of language: xx" in found[1]
    assert f"language is one of {', '.join(sorted(counts.index))}" in found[1]
    found = told(int(counts[some]) + 1)
    assert found.keys() == {0, 1}
    assert f"{counts[some]} test rows are of language: {some}" in found[0]
    assert dict(limits_without_rows(store, snapshot=snapshot, spec=PromotionSpec())) == {}

    # `plan` says so, where the rows are known.
    spec = yaml.safe_load(fitted_shapes.pipeline.path.read_text())
    spec["promotion"] = {"limits": [{"slice": "language: xx", "floor": 0.5}]}
    spoiled = fitted_shapes.pipeline.path.with_name("spoiled.yaml")
    spoiled.write_text(yaml.safe_dump(spec))
    code, out, err = command.sensorium(capsys, "plan", spoiled)
    said = " ".join((out + err).split())
    assert code == 0, said
    assert "warning promotion.limits.0: no test row is of language: xx" in said
