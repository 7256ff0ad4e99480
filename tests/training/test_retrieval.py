"""Retrieval against a reference that sorts every query by itself, torchmetrics and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.retrieval as theirs

from training.evaluation.retrieval import retrieve

ROWS = 60


def made(seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, gallery and classes, of which some are none."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(rows, 4))
    queries = gallery + rng.normal(size=(rows, 4))
    return queries, gallery, rng.integers(-1, 5, size=rows)


def found_by(queries: np.ndarray, gallery: np.ndarray, *numbers: np.ndarray, **options: object):
    return retrieve(
        torch.from_numpy(queries),
        gallery_NS=torch.from_numpy(gallery),
        numbers_NI=torch.from_numpy(np.stack(numbers, axis=1)),
        **options,
    )


def naive(queries: np.ndarray, gallery: np.ndarray, right: np.ndarray, k: int):
    """Recall@k, median rank and mean average precision, one query at a time."""
    hits, ranks, precisions = [], [], []
    for i, query in enumerate(queries):
        if not right[i].any():
            continue
        scores = gallery @ query
        order = np.argsort(-scores, kind="stable")
        hits.append(right[i][order[:k]].any())
        ranks.append(1 + int(np.argmax(right[i][order])))
        precisions.append(sklearn.metrics.average_precision_score(right[i], scores))
    return np.mean(hits), np.median(ranks), np.mean(precisions)


@pytest.mark.parametrize("block_scores", [1, 7 * ROWS, 10**6])
def test_all_measures_equal_a_naive_reference(block_scores) -> None:
    queries, gallery, classes = made()
    rows = np.arange(ROWS)
    payloads = np.random.default_rng(1).integers(ROWS // 2, size=ROWS)
    cases = {
        "own": ((rows,), rows[:, None] == rows),
        "class": ((classes,), (classes[:, None] == classes) & (classes[:, None] >= 0)),
        "own or payload": (
            (rows, payloads),
            (rows[:, None] == rows) | (payloads[:, None] == payloads),
        ),
    }
    for numbers, right in cases.values():
        found = found_by(queries, gallery, *numbers, block_scores=block_scores)
        for k in (1, 5, 10):
            recall, rank, precision = naive(queries, gallery, right, k)
            assert found.recall[k] == pytest.approx(recall)
        assert found.median_rank == rank
        assert found.mean_average_precision == pytest.approx(precision)
        assert found.queries == right.any(axis=1).sum()
        assert 0 < found.recall[1] < found.recall[10]


def test_precision_and_recall_are_those_of_torchmetrics() -> None:
    queries, gallery, classes = made(3)
    classes = np.abs(classes)
    found = found_by(queries, gallery, classes)
    # torchmetrics takes what scores below zero for not relevant.
    scores = torch.from_numpy(queries @ gallery.T)
    scores = scores - scores.min() + 1
    right = torch.from_numpy(classes[:, None] == classes)
    pairs = list(zip(scores, right, strict=True))
    precision = np.mean([float(theirs.retrieval_average_precision(s, r)) for s, r in pairs])
    hits = np.mean([float(theirs.retrieval_hit_rate(s, r, top_k=5)) for s, r in pairs])
    assert found.mean_average_precision == pytest.approx(precision, rel=1e-6)
    assert found.recall[5] == pytest.approx(hits)


@pytest.mark.parametrize("classes", [np.arange(30), np.arange(30) % 3], ids=["few", "many"])
def test_a_tie_counts_against_the_query(classes) -> None:
    same = np.ones((30, 4))
    found = found_by(same, same, classes)
    right = int((classes == 0).sum())
    assert found.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.median_rank == 30 - right + 1
    # All wrong answers first, and the right ones last.
    worst = np.mean([(k + 1) / (30 - right + k + 1) for k in range(right)])
    assert found.mean_average_precision == pytest.approx(worst)


def test_chance_is_what_guessing_reaches() -> None:
    classes = np.random.default_rng(0).integers(-1, 3, size=24)
    rounds, total = 400, 0.0
    for i in range(rounds):
        rng = np.random.default_rng(i)
        found = found_by(rng.normal(size=(24, 16)), rng.normal(size=(24, 16)), classes, ks=(3,))
        total += found.recall[3] / rounds
    assert total == pytest.approx(found.chance[3], abs=0.02)
    counts = [(classes == c).sum() for c in classes if c >= 0]
    exact = np.mean([1 - math.comb(24 - c, 3) / math.comb(24, 3) for c in counts])
    assert found.chance[3] == pytest.approx(exact)
    assert found_by(*made()[:2], np.arange(ROWS)).chance[5] == pytest.approx(5 / ROWS)


def test_rows_without_a_number_ask_for_nothing() -> None:
    x = np.eye(4)
    found = found_by(x, x, np.array([-1, -1, 2, -1]))
    assert (found.queries, found.gallery, found.recall[1]) == (1, 4, 1.0)
    nothing = found_by(x, x, np.full(4, -1))
    assert (nothing.queries, nothing.recall[1], nothing.chance[1]) == (0, 0.0, 0.0)
    assert math.isnan(nothing.median_rank)


def test_no_rows_are_refused() -> None:
    x = np.eye(4)
    with pytest.raises(ValueError, match="needs rows"):
        found_by(x[:0], x[:0], np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="needs rows"):
        found_by(x, x[:2], np.arange(4))


def test_the_matrix_of_all_pairs_is_never_held(watched) -> None:
    rows = 500
    queries, gallery, classes = made(rows=rows)
    with watched() as sizes:
        found_by(queries, gallery, np.arange(rows), block_scores=20 * rows)
        found_by(queries, gallery, classes, block_scores=20 * rows)
    assert max(sizes) == 20 * rows
