"""The vector encoder against scikit-learn's normalisation and plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest
from sklearn.preprocessing import normalize

from features.columns import PayloadColumns
from features.encoders import parse_encoder
from features.payloads import open_payload

RANDOM = np.random.default_rng(0)


def encoder(**options: Any) -> Any:
    return parse_encoder({"type": "vector", "dim": 4, **options}).load()


def encoded(vectors: list[np.ndarray], **options: Any) -> np.ndarray:
    loaded = encoder(**options)
    return loaded.encode(loaded.prepare_all(vectors))


@pytest.mark.parametrize("type", [pa.list_(pa.float16()), pa.list_(pa.float32(), 4), "tensor"])
def test_vectors_of_a_table_pass_as_they_are(type: Any) -> None:
    rows = RANDOM.normal(size=(5, 4)).astype(np.float16).astype(np.float32)
    if type == "tensor":
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    else:
        values = rows.astype(np.float16) if type.value_type == pa.float16() else rows
        column = pa.array(list(values), type)
    columns = PayloadColumns(kind="vector", columns=("v",))
    found = [
        open_payload(value, columns=columns, folder="")
        for value in columns.payloads(pa.table({"v": column}))
    ]
    result = encoded(found)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, rows)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_normalised_vectors_are_those_of_scikit_learn(size: float) -> None:
    rows = RANDOM.normal(size=(50, 4))
    found = encoded(list(rows * size), normalize=True)
    np.testing.assert_allclose(found, normalize(rows), atol=1e-7)


def test_one_at_a_time_and_all_at_once_are_the_same() -> None:
    loaded = encoder(normalize=True)
    rows = list(RANDOM.normal(size=(20, 4)))
    together = loaded.prepare_all(rows)
    for row, prepared in zip(rows, together, strict=True):
        np.testing.assert_array_equal(loaded.prepare(row), prepared)
    np.testing.assert_array_equal(
        loaded.encode(together), np.concatenate([loaded.encode([item]) for item in together])
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_each_bad_vector_has_its_reason_and_spoils_no_other(normalized: bool) -> None:
    good = np.array([1.0, 2.0, 2.0, 4.0])
    bad = {
        "3 numbers, where `dim` is 4": np.ones(3),
        "number 2 of the vector .* NaN": np.array([1, np.inf, np.nan, 1])[[0, 3, 2, 1]],
        "number 1 of the vector .* infinite": np.array([1, -np.inf, 0, 1]),
        "a vector of zeros": np.zeros(4),
        "negative zeros|a vector of zeros": -np.zeros(4),
    }
    loaded = encoder(normalize=normalized)
    mixed = [item for vector in bad.values() for item in (good, vector)]
    found = loaded.prepare_all(mixed)
    for place, reason in enumerate(bad):
        np.testing.assert_allclose(found[2 * place], good / (5 if normalized else 1))
        assert isinstance(found[2 * place + 1], ValueError)
        with pytest.raises(ValueError, match=reason):
            loaded.prepare(bad[reason])
    assert all(isinstance(item, ValueError) for item in loaded.prepare_all(list(bad.values())))


def test_numbers_beyond_float32_are_bad_and_not_infinite() -> None:
    with pytest.raises(ValueError, match="out of range for float32"):
        encoder().prepare(np.array([1.0, 1e39, 0, 0]))


@pytest.mark.parametrize("normalized", [False, True])
def test_zeros_pass_where_they_are_allowed(normalized: bool) -> None:
    found = encoded([np.zeros(4), np.ones(4)], zero="allow", normalize=normalized)
    np.testing.assert_array_equal(found[0], np.zeros(4))
    np.testing.assert_allclose(found[1], np.full(4, 0.5 if normalized else 1))


def test_no_vector_is_no_batch() -> None:
    assert encoder().prepare_all([]) == []


def test_what_changes_a_vector_changes_the_fingerprint_and_nothing_else_does() -> None:
    def print_of(**options: Any) -> str:
        return parse_encoder({"type": "vector", "dim": 4, **options}).fingerprint()

    same = {print_of(), print_of(batch_size=7), print_of(normalize=False)}
    assert len(same) == 1
    changed = [print_of(normalize=True), print_of(zero="allow"), print_of(dtype="float32")]
    assert len({*same, *changed}) == 4


def test_a_vector_without_a_width_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="dim"):
        parse_encoder({"type": "vector"})
