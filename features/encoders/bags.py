"""Bags of words: for each text, the sum of its words' vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sum_words(
    texts: Sequence[Sequence[int]],
    vectors_ND: np.ndarray,
    *,
    place_W: np.ndarray | None = None,
    weight_W: np.ndarray | None = None,
) -> np.ndarray:
    """float32 `[B, D]`: for each text, given by its words' numbers, the sum of their vectors.

    `place_W` says which float32 vector is a word's, if it is not that of its number; `weight_W`
    is what it is multiplied by. A text's words are added in their order, so other texts change no
    bit; no vector is copied, however often it is named.
    """
    from scipy.sparse import csr_array

    ends = np.cumsum([0, *map(len, texts)])
    words = np.fromiter((word for text in texts for word in text), np.int64, int(ends[-1]))
    places = words if place_W is None else place_W[words]
    weights = np.ones(len(words), np.float32) if weight_W is None else weight_W[words]
    sum_BN = csr_array((weights, places, ends), shape=(len(texts), len(vectors_ND)))
    sums_BD: np.ndarray = sum_BN @ vectors_ND
    return sums_BD
