"""How far to trust the candidates: what is read from records and files, and how it is told."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import re

import numpy as np
import pytest
import sklearn.calibration

from tests.workflows.report_cases import digits
from training.candidate import read_predictions, read_shapley
from training.evaluation.metrics import metrics_of
from workflows.reporting.answers import Answers
from workflows.reporting.collect import collect
from workflows.reporting.collect_studies import find_leanings, find_studies, reliability_bins
from workflows.reporting.findings import ReportData
from workflows.reporting.report import render
from workflows.reporting.trust import trust_table


@functools.cache
def page_of_digits() -> str:
    return render(digits())


def words_of(page: str) -> str:
    text = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"</?(b|span|i)\b[^>]*>", "", text))
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def section(page: str, name: str) -> str:
    assert page.count(f'<section id="{name}">') == 1
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_the_reliability_curve_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=500)
    targets = rng.integers(4, size=500)
    bins = list(reliability_bins(targets, p))
    right, confidence = sklearn.calibration.calibration_curve(
        p.argmax(axis=1) == targets, p.max(axis=1), n_bins=15
    )
    np.testing.assert_allclose([item.right for item in bins], right)
    np.testing.assert_allclose([item.confidence for item in bins], confidence)
    assert sum(item.rows for item in bins) == 500
    labels = rng.random((500, 4)) < p
    bins = list(reliability_bins(labels, p))
    right, _ = sklearn.calibration.calibration_curve(labels.ravel(), p.ravel(), n_bins=15)
    np.testing.assert_allclose([item.right for item in bins], right)


@pytest.fixture(scope="module")
def collected(fitted_shapes) -> ReportData:
    return collect(
        pipeline=fitted_shapes.pipeline,
        store=fitted_shapes.store,
        snapshot=fitted_shapes.snapshot,
        records=fitted_shapes.records,
    )


def test_what_is_left_is_that_of_the_stored_answers(fitted_shapes, collected) -> None:
    studies = {item.candidate: item for item in collected.studies}
    assert set(studies) == {record.name for record in fitted_shapes.records}
    early = next(record for record in fitted_shapes.records if record.name == "early")
    table = read_predictions(fitted_shapes.store, early.fingerprint)
    answers = Answers.from_table(
        table,
        split="test",
        task=fitted_shapes.pipeline.spec.task,
        metric=fitted_shapes.pipeline.metric,
    )
    found = {item.modalities: item.value for item in studies["early"].subsets}
    assert list(found) == [("caption",), ("photo",), ("caption", "photo")]
    assert found["caption", "photo"] == pytest.approx(answers.value)
    for gone, left in (("photo", "caption"), ("caption", "photo")):
        expected = answers.metric.value(answers.targets, answers.without[gone])
        assert found[(left,)] == pytest.approx(expected)
    alone = (found["caption",] + found["photo",]) / 2
    assert studies["early"].kept_of_subsets == pytest.approx(alone / answers.value)
    assert {curve.values[0] for curve in studies["early"].curves} == {answers.value}
    error = metrics_of(fitted_shapes.pipeline.spec.task)["calibration_error"]
    reliability = studies["early"].reliability
    assert reliability.error == pytest.approx(error.value(answers.targets, answers.answers))
    assert reliability.low < reliability.error < reliability.high
    assert reliability.temperature == early.temperature
    single = studies["single-photo"]
    assert single.subsets == ()
    assert single.kept_of_subsets is None
    assert {curve.modality for curve in single.curves} == {"photo"}


def test_leanings_are_means_of_the_stored_values_by_slice(fitted_shapes, collected) -> None:
    early = next(record for record in fitted_shapes.records if record.name == "early")
    store, snapshot = fitted_shapes.store, fitted_shapes.snapshot
    samples = store.read_samples(snapshot, columns=["slice.language"])
    found = list(
        find_leanings(
            early, store=store, snapshot=snapshot, samples=samples, order=["caption", "photo"]
        )
    )
    assert [(item.group, item.value) for item in found] == [
        (None, "all"), ("language", "en"), ("language", "fr"),
    ]  # fmt: skip
    table = read_shapley(store, early.fingerprint)
    rows, photo = table["row"].to_numpy(), table["shapley.photo"].to_numpy()
    french = np.array(samples["slice.language"].to_pylist())[rows] == "fr"
    assert found[2].rows == french.sum()
    assert found[2].strength["photo"] == pytest.approx(np.abs(photo[french]).mean())
    assert found[2].direction["photo"] == pytest.approx(photo[french].mean())
    assert found[0].strength["photo"] == pytest.approx(np.abs(photo).mean())


def test_a_record_of_the_time_before_has_no_study(fitted_shapes) -> None:
    old = [dataclasses.replace(record, study={}) for record in fitted_shapes.records]
    tested = dict.fromkeys((record.name for record in old), None)
    options = {
        "metric": fitted_shapes.pipeline.metric,
        "task": fitted_shapes.pipeline.spec.task,
        "order": ["caption", "photo"],
        "confidence": 0.95,
    }
    assert list(find_studies(old, tested=tested, **options)) == []
    page = render(dataclasses.replace(digits(), studies=(), leanings=()))
    for name in ("trust", "leaning"):
        assert f'id="{name}"' not in page
        assert f'href="#{name}"' not in page


def test_the_page_tells_who_keeps_most_and_how_sure_the_winner_is() -> None:
    page, data = page_of_digits(), digits()
    words = words_of(page)
    assert re.search(r"The winner, \w+, is too sure, by \d\.\d points\.", words)
    assert "scaled by a temperature of 1.62, fitted to the validation rows" in words
    assert "Noise and swaps are of 300 of the 372 test rows, drawn by a fixed seed." in words
    rows = re.findall(r"<tr.*?</tr>", section(page, "trust"), re.DOTALL)
    tested = [item for item in data.candidates if item.test is not None]
    assert len(rows) == 1 + len(tested)
    assert all(any(f" {item.name}" in row for row in rows) for item in tested)
    assert "0.034 [0.021, 0.052]" in words
    assert section(page, "trust").count("<figcaption>") == 3


def test_the_page_tells_what_the_winner_leans_on_and_where_not() -> None:
    words = words_of(page_of_digits())
    assert "48 % of what the winner's answers owe to their inputs, they owe to drawing." in words
    assert "Not so in speaker 2: there it leans most on sentence." in words
    assert "0.190 +0.160 0.310 +0.290 0.140 −0.020" in words


def test_what_is_not_defined_is_a_dash() -> None:
    data = digits()
    first, *others = data.studies
    curves = tuple(dataclasses.replace(curve, kept=math.nan) for curve in first.curves)
    changed = dataclasses.replace(first, curves=curves, kept_of_subsets=math.nan)
    table = trust_table(
        dataclasses.replace(data, studies=(changed, *others)), candidates=data.candidates
    )
    kept = {row["name"]: row["kept"] for row in table["rows"]}
    assert kept[first.candidate] == [None, None, None]
    assert all(cell["share"] < 1 for cell in kept["attention"])
