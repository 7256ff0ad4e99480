"""Hashed n-grams: against scikit-learn's hash, and by their invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic
import pytest

from features.encoders.text import HashingSpec


def embed(spec: Any, texts: list[str]) -> np.ndarray:
    encoder = spec.load()
    rows: np.ndarray = encoder.encode([encoder.prepare(text) for text in texts])
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), encoder.dim)
    return rows


@pytest.mark.parametrize("within_words", [True, False])
def test_hashing_is_the_normalised_sum_of_its_signed_ngrams(within_words: bool) -> None:
    from sklearn.utils import murmurhash3_32

    spec = HashingSpec(dim=64, ngrams=(1, 3), within_words=within_words)
    text = "ab cab"
    expected = np.zeros(64)
    for word in [" ab ", " cab "] if within_words else [text]:
        for length in (1, 2, 3):
            for start in range(len(word) - length + 1):
                hashed = murmurhash3_32(word[start : start + length].encode(), seed=0)
                expected[abs(hashed) % 64] += 1 if hashed >= 0 else -1
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(embed(spec, [text])[0], expected, atol=1e-6)


def test_hashing_sees_one_digit_in_all_its_widths_and_one_word_in_all_its_cases() -> None:
    rows = embed(HashingSpec(), ["Room 7 STRASSE", "room ７ straße", "Ｒｏｏｍ 7 strasse"])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    rows = embed(HashingSpec(), ["㎏ ℡ ﬁne ｶﾞ", "kg tel fine ガ"])
    np.testing.assert_array_equal(rows[0], rows[1])


def test_hashing_tells_texts_of_any_script_apart() -> None:
    rows = embed(HashingSpec(), ["七つの部屋", "八つの部屋", "семь комнат", "восемь комнат"])
    likeness = rows @ rows.T
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-6)
    assert (likeness[~np.eye(4, dtype=bool)] < 0.95).all()
    assert likeness[0, 1] > likeness[0, 2]


def test_hashing_without_normalising_counts() -> None:
    spec = HashingSpec(ngrams=(1, 1), within_words=False, signed=False, normalize=False)
    assert embed(spec, ["aaab"])[0].max() == 3
    assert embed(spec, ["aaab"])[0].sum() == 4


def test_hashing_refuses_ngrams_the_wrong_way_round() -> None:
    with pytest.raises(pydantic.ValidationError, match="shortest, longest"):
        HashingSpec(ngrams=(3, 1))


def test_a_text_shorter_than_any_ngram_is_refused_and_never_zero() -> None:
    crossing = HashingSpec(ngrams=(4, 6), within_words=False).load()
    with pytest.raises(ValueError, match="shorter than an n-gram of 4 characters"):
        crossing.prepare(" no ")
    assert crossing.encode([crossing.prepare("four")]).any()
    padded = HashingSpec(ngrams=(4, 6)).load()
    assert padded.encode([padded.prepare("no")]).any()
