"""The table encoder against scikit-learn's transformers, fitted on the same training rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pydantic
import pytest
import yaml
from sklearn.feature_extraction import FeatureHasher
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, RobustScaler, StandardScaler
from sklearn.utils import murmurhash3_32

from features.encoders import parse_encoder
from features.spec import FeatureSpec

RANDOM = np.random.default_rng(0)


def spec_of(**options: Any) -> Any:
    return parse_encoder({"type": "table", "clip": None, "missing": False, **options})


def encoded(spec: Any, records: list[dict[str, Any]]) -> np.ndarray:
    loaded = spec.load()
    found = loaded.encode([loaded.prepare(record) for record in records])
    assert found.shape == (len(records), spec.dim)
    assert found.dtype == np.float32
    assert loaded.dim == spec.dim == len(spec.outputs)
    return found


def numbers(rows: int) -> np.ndarray:
    """Columns of every trouble: a normal one, a skewed one with gaps, a constant, one far off."""
    values = np.stack(
        [
            RANDOM.normal(size=rows),
            np.where(RANDOM.random(rows) < 0.2, np.nan, RANDOM.lognormal(size=rows)),
            np.full(rows, 0.1),
            1e9 + RANDOM.integers(5, size=rows),
        ],
        axis=1,
    )
    values[0, 1] = 1.0
    return values


def records_of(values: np.ndarray) -> list[dict[str, Any]]:
    return [{f"n{i}": None if np.isnan(x) else x for i, x in enumerate(row)} for row in values]


@pytest.mark.parametrize(
    ("options", "theirs", "middle"),
    [
        ({"scaling": "standard"}, StandardScaler(), 0.0),
        ({"scaling": "robust"}, RobustScaler(), 0.0),
        (
            {"scaling": "quantile", "quantiles": 20},
            QuantileTransformer(n_quantiles=20, subsample=None),
            0.5,
        ),
        (
            {"scaling": "quantile", "quantiles": 1000},
            QuantileTransformer(n_quantiles=200, subsample=None),
            0.5,
        ),
    ],
)
def test_numbers_are_scaled_as_scikit_learn_scales_them(
    options: dict[str, Any], theirs: Any, middle: float
) -> None:
    train, other = numbers(200), numbers(300)
    if options["scaling"] == "quantile":
        # A constant stands in the middle, and as many quantiles as values are not those of NaN.
        train, other = train[:, [0, 3]], other[:, [0, 3]]
    spec = spec_of(**options).fitted(records_of(train))
    expected = theirs.fit(train).transform(other)
    gaps = np.isnan(expected)
    found = encoded(spec, records_of(other))
    np.testing.assert_allclose(found[~gaps], expected[~gaps], rtol=1e-6, atol=1e-6)
    assert (found[gaps] == middle).all()


def test_quantiles_of_a_column_with_gaps_and_many_equal_values() -> None:
    train = np.where(RANDOM.random(300) < 0.3, np.nan, RANDOM.integers(6, size=300))[:, None]
    count = int((~np.isnan(train)).sum())
    spec = spec_of(scaling="quantile", quantiles=5000).fitted(records_of(train))
    theirs = QuantileTransformer(n_quantiles=count, subsample=None).fit(
        train[~np.isnan(train[:, 0])]
    )
    grid = np.linspace(-1, 7, 81)[:, None]
    np.testing.assert_allclose(
        encoded(spec, records_of(grid)), theirs.transform(grid), rtol=1e-6, atol=1e-7
    )


def test_a_constant_is_scaled_by_one_and_stands_in_the_middle_of_its_quantiles() -> None:
    train = [{"a": 0.1}] * 7
    for scaling in ("standard", "robust"):
        found = encoded(spec_of(scaling=scaling).fitted(train), [{"a": 0.1}, {"a": 2.1}])
        np.testing.assert_allclose(found[:, 0], [0, 2])
    found = encoded(spec_of(scaling="quantile").fitted(train), [{"a": x} for x in (0, 0.1, 1)])
    assert found[:, 0].tolist() == [0, 0.5, 1]


def test_quartiles_that_are_equal_give_way_to_the_deviation() -> None:
    values = [0.0] * 30 + [1000.0, 2000.0]
    spec = spec_of(scaling="robust").fitted([{"a": x} for x in values])
    found = encoded(spec, [{"a": 1000.0}])[0, 0]
    assert found == pytest.approx(1000 / np.std(values))


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_numbers_near_the_ends_of_the_range_are_scaled_like_others(size: float) -> None:
    train = RANDOM.normal(size=(50, 1))
    expected = StandardScaler().fit_transform(train)
    found = encoded(spec_of().fitted(records_of(train * size)), records_of(train * size))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_scaled_numbers_are_cut_off() -> None:
    spec = spec_of(clip=3.0).fitted([{"a": x} for x in (-1.0, 1.0)])
    assert encoded(spec, [{"a": x} for x in (-1e300, 2, 1e300)])[:, 0].tolist() == [-3, 2, 3]


CATEGORIES = RANDOM.choice(list("abcdefg"), size=200, p=[0.3, 0.3, 0.2, 0.1, 0.04, 0.03, 0.03])


@pytest.mark.parametrize("most", [2, 3, 5, 6, 7, 64])
def test_categories_are_those_of_scikit_learn_rare_and_unseen_ones_too(most: int) -> None:
    train = np.stack([CATEGORIES, CATEGORIES[::-1]], axis=1)
    spec = spec_of(max_categories=most).fitted([{"x": x, "y": y} for x, y in train.tolist()])
    theirs = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False
    ).fit(train)
    rows = [(x, y) for x in "abcdefg?" for y in "gfedcba!"]
    found = encoded(spec, [{"x": x, "y": y} for x, y in rows])
    np.testing.assert_array_equal(found, theirs.transform(np.array(rows)))


def test_of_equally_rare_categories_the_same_ones_are_kept_as_by_scikit_learn() -> None:
    names = list("dbcaefgh") * 2
    spec = spec_of(max_categories=4).fitted([{"x": x} for x in names])
    theirs = OneHotEncoder(max_categories=4, handle_unknown="infrequent_if_exist")
    theirs.fit(np.array(names)[:, None])
    kept = set("abcdefgh") - set(theirs.infrequent_categories_[0])
    assert set(spec.statistics.categorical[0].categories) == kept


@pytest.mark.parametrize("dim", [1, 4, 64])
def test_hashed_categories_are_those_of_scikit_learn(dim: int) -> None:
    rows = [{"x": x, "y": y} for x, y in zip(CATEGORIES, CATEGORIES[::-1], strict=True)]
    spec = spec_of(categories="hash", hash_dim=dim).fitted(rows[:50])
    found = encoded(spec, rows)
    np.testing.assert_array_equal(found, FeatureHasher(dim).transform(rows).toarray())
    by_hand = np.zeros((len(rows), dim))
    for line, row in zip(by_hand, rows, strict=True):
        for name, value in row.items():
            hashed = murmurhash3_32(f"{name}={value}", seed=0)
            line[abs(hashed) % dim] += 1 if hashed >= 0 else -1
    np.testing.assert_array_equal(found, by_hand)


def test_missing_cells_have_a_flag_each_and_no_category() -> None:
    train = [{"a": 1.0, "s": "x"}, {"a": 3.0, "s": "y"}, {"a": None, "s": None}]
    spec = spec_of(missing=True).fitted(train)
    assert spec.outputs == ("a", "s=x", "s=y", "a: missing", "s: missing")
    assert encoded(spec, [*train, {"a": 2, "s": "unseen"}]).tolist() == [
        [-1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0],
    ]
    hashed = spec_of(missing=True, categories="hash", hash_dim=3).fitted(train)
    assert hashed.outputs == ("a", "hash 0", "hash 1", "hash 2", "a: missing", "s: missing")
    assert encoded(hashed, [train[2]]).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_columns_of_one_kind_alone() -> None:
    assert spec_of().fitted([{"a": 1}]).outputs == ("a",)
    assert encoded(spec_of().fitted([{"s": "x"}]), [{"s": "x"}, {"s": "y"}]).tolist() == [[1], [0]]


def test_the_kind_of_a_column_is_that_of_its_training_cells_unless_it_is_said() -> None:
    train = [
        {"code": 7, "yes": True, "word": "1", "mixed": 1, "void": None, "on": 19_000.5},
        {"code": 8.0, "yes": None, "word": "2", "mixed": "?", "void": None, "on": None},
    ]
    found = spec_of().fitted(train).statistics
    assert [item.column for item in found.numeric] == ["code", "yes", "void", "on"]
    assert [item.column for item in found.categorical] == ["word", "mixed"]

    said = spec_of(categorical=["code", "yes"], numeric=["word"]).fitted(train)
    assert [item.column for item in said.statistics.numeric] == ["word", "void", "on"]
    categories = {item.column: item.categories for item in said.statistics.categorical}
    assert categories == {"code": ("7", "8"), "yes": ("true",), "mixed": ("1", "?")}
    row = {"code": 8, "yes": True, "word": " 2 ", "mixed": 1.0, "void": None, "on": None}
    assert encoded(said, [row])[0].tolist() == [1, 0, 0, 0, 1, 1, 1, 0]


def test_a_cell_that_does_not_fit_its_column_is_bad_and_says_why() -> None:
    loaded = spec_of().fitted([{"a": 1.0, "s": "x"}]).load()
    with pytest.raises(ValueError, match="column 'a' holds 'unknown', which is not a number"):
        loaded.prepare({"a": "unknown", "s": "x"})
    with pytest.raises(ValueError, match="column 'a' is infinite"):
        loaded.prepare({"a": "inf", "s": "x"})
    with pytest.raises(ValueError, match=r"column 'a' holds .*, which is not a number"):
        loaded.prepare({"a": 10**400, "s": "x"})
    with pytest.raises(ValueError, match="no column 's'"):
        loaded.prepare({"a": 1})


def test_rows_do_not_depend_on_their_neighbours() -> None:
    records = records_of(numbers(20))
    spec = spec_of().fitted(records)
    together = encoded(spec, records)
    alone = np.concatenate([encoded(spec, [record]) for record in records])
    np.testing.assert_array_equal(together, alone)


# ---------------------------------------------------------------- the fit and the fingerprint


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scaling": "robust"},
    {"scaling": "quantile"},
    {"categories": "hash"},
    {"max_categories": 2, "missing": True, "dtype": "float32", "fit_sample": 9},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fitted_spec_is_a_plain_one_that_survives_json_and_yaml(options: dict[str, Any]) -> None:
    records = [{**row, "s": s} for row, s in zip(records_of(numbers(80)), CATEGORIES, strict=False)]
    unfitted = spec_of(**options)
    assert unfitted.needs_fit
    spec = unfitted.fitted(records)
    assert not spec.needs_fit
    assert spec.fitted([]) is spec
    plain = spec.model_dump(mode="json")
    for text, load in ((json.dumps(plain), json.loads), (yaml.safe_dump(plain), yaml.safe_load)):
        again = parse_encoder(load(text))
        assert again == spec
        assert again.fingerprint() == spec.fingerprint()
    np.testing.assert_array_equal(encoded(again, records), encoded(spec, records))
    assert spec.fingerprint() != unfitted.fingerprint()


def test_before_the_fit_an_encoder_has_no_width_and_loads_nothing() -> None:
    for act in (lambda: spec_of().load(), lambda: spec_of().dim):
        with pytest.raises(ValueError, match="no statistics of the training split yet"):
            act()
    with pytest.raises(ValueError, match="no records"):
        spec_of().fitted([])


def test_every_statistic_is_in_the_fingerprint_and_how_it_was_found_is_not() -> None:
    train = [{"a": float(i), "s": "xy"[i % 2]} for i in range(9)]
    spec = spec_of().fitted(train)
    other_numbers = spec_of().fitted([{**row, "a": row["a"] + 1e-9} for row in train])
    other_names = spec_of().fitted([{**row, "s": row["s"].upper()} for row in train])
    assert len({item.fingerprint() for item in (spec, other_numbers, other_names)}) == 3

    said = spec_of(numeric=["a"], categorical=["s"], fit_sample=100, max_categories=9).fitted(train)
    assert said.fingerprint() == spec.fingerprint()
    unfitted = {spec_of(fit_sample=n).fingerprint() for n in (5, 6)}
    assert len(unfitted) == 2, "before the fit, the size of the sample decides the statistics"


def test_the_order_of_the_rows_changes_no_statistic() -> None:
    records = [
        {**row, "s": s} for row, s in zip(records_of(numbers(150)), CATEGORIES, strict=False)
    ]
    for options in OPTIONS:
        found = {
            spec_of(**options).fitted([records[i] for i in order]).fingerprint()
            for order in (np.arange(150), np.arange(150)[::-1], RANDOM.permutation(150))
        }
        assert len(found) == 1


# ---------------------------------------------------------------- what a user may write


def feature(**encoder: Any) -> FeatureSpec:
    value = {"columns": ["age", "sex"], "encoder": {"type": "table", **encoder}}
    return FeatureSpec.model_validate(value)


def scale(column: str) -> dict[str, Any]:
    return {"column": column, "scale": {"center": 40, "scale": 12}}


def test_a_user_may_write_the_statistics_himself() -> None:
    statistics = {
        "numeric": [scale("age")],
        "categorical": [{"column": "sex", "categories": ["f", "m"]}],
    }
    encoder = feature(statistics=statistics, missing=False).encoder
    assert not encoder.needs_fit
    assert encoded(encoder, [{"age": 52, "sex": "m"}]).tolist() == [[1, 0, 1]]


SEX = {"column": "sex"}


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ({"numeric": ["agee"]}, "`numeric` names the column 'agee'; did you mean 'age'"),
        ({"categorical": ["sx"]}, "`categorical` names the column 'sx'; did you mean 'sex'"),
        ({"numeric": ["age"], "categorical": ["age"]}, "name column 'age' twice"),
        ({"statistics": {"numeric": [scale("aeg")]}}, "`statistics` names .* did you mean 'age'"),
        ({"statistics": {"numeric": [scale("age")]}}, "nothing about the column 'sex'"),
        ({"statistics": {}}, "no column"),
        ({"statistics": {"numeric": [scale("age")], "categorical": [{"column": "age"}]}}, "twice"),
        ({"statistics": {"numeric": [{"column": "age"}]}}, "`scale` or `quantiles`"),
        ({"statistics": {"numeric": [{"column": "age", "quantiles": [2, 1]}]}}, "ascending"),
        ({"statistics": {"numeric": [{"column": "age", "quantiles": [1]}]}}, "two numbers or more"),
        (
            {
                "statistics": {"numeric": [scale("age")], "categorical": [SEX]},
                "scaling": "quantile",
            },
            "column 'age': `scaling` needs `quantiles`",
        ),
        (
            {"statistics": {"numeric": [scale("age"), scale("sex")]}, "categorical": ["sex"]},
            "'sex' as numeric, and `categorical`",
        ),
        (
            {"statistics": {"categorical": [SEX, {"column": "age"}]}, "numeric": ["age"]},
            "'age' as categorical, and `numeric`",
        ),
        (
            {
                "categories": "hash",
                "statistics": {"categorical": [{**SEX, "categories": ["f"]}, {"column": "age"}]},
            },
            "no category has a slot",
        ),
        ({"statistics": {"categorical": [{**SEX, "categories": ["f", "f"]}]}}, "'f' twice"),
        (
            {"statistics": {"numeric": [{"column": "a", "scale": {"center": 0, "scale": 0}}]}},
            "scale",
        ),
        ({"scaling": "normal"}, "standard"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_remedy(encoder: Any, told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        feature(**encoder)
