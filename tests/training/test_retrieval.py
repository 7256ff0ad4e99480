from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.ranks import pairs_of, ranks_of
from training.retrieval import retrieval_recall


def naive_recall(queries, gallery, classes, k):
    hits, class_hits, known = 0, 0, 0
    for i, query in enumerate(queries):
        order = np.argsort(-(gallery @ query), kind="stable")[:k]
        hits += i in order
        if classes[i] >= 0:
            known += 1
            class_hits += any(classes[j] == classes[i] for j in order)
    return hits / len(queries), class_hits / known


def test_ranks_are_those_of_the_recall(monkeypatch) -> None:
    monkeypatch.setattr("training.ranks.BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60, 1, 4, generator=generator)
    vectors = base + torch.randn(60, 3, 4, generator=generator)
    presence = torch.rand(60, 3, generator=generator) < 0.8
    ranks = ranks_of(vectors, presence_NM=presence)
    pairs = pairs_of(["a", "b", "c"])
    assert ranks.shape == (60, len(pairs))
    for column, (query, answer) in enumerate(pairs):
        q, a = "abc".index(query), "abc".index(answer)
        both = presence[:, q] & presence[:, a]
        assert torch.equal(ranks[:, column].isnan(), ~both)
        found = retrieval_recall(
            vectors[both, q],
            gallery_NS=vectors[both, a],
            classes_N=torch.full((int(both.sum()),), -1),
        )
        for k in (1, 5, 10):
            assert (ranks[both, column] < k).double().mean() == pytest.approx(found.recall[k])
    collapsed = ranks_of(torch.ones(9, 2, 4), presence_NM=torch.ones(9, 2, dtype=torch.bool))
    assert (collapsed == 8).all()


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_recall_equals_a_naive_reference(block) -> None:
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(60, 4))
    queries = gallery + rng.normal(size=(60, 4))
    classes = rng.integers(-1, 5, size=60)
    found = retrieval_recall(
        torch.from_numpy(queries),
        gallery_NS=torch.from_numpy(gallery),
        classes_N=torch.from_numpy(classes),
        block=block,
    )
    for k in (1, 5, 10):
        own, any_of_class = naive_recall(queries, gallery, classes, k)
        assert found.recall[k] == pytest.approx(own)
        assert found.class_recall[k] == pytest.approx(any_of_class)
    assert 0 < found.recall[1] < found.recall[10] < 1
    assert found.class_queries == (classes >= 0).sum()


def test_chance_is_what_guessing_reaches() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(-1, 3, size=24)
    totals = {"recall": 0.0, "class_recall": 0.0}
    rounds = 400
    for i in range(rounds):
        generator = torch.Generator().manual_seed(i)
        found = retrieval_recall(
            torch.randn(24, 16, generator=generator),
            gallery_NS=torch.randn(24, 16, generator=generator),
            classes_N=torch.from_numpy(classes),
            ks=(3,),
        )
        for name in totals:
            totals[name] += getattr(found, name)[3] / rounds
    assert totals["recall"] == pytest.approx(found.chance[3], abs=0.01)
    assert totals["class_recall"] == pytest.approx(found.class_chance[3], abs=0.02)
    counts = [(classes == c).sum() for c in classes if c >= 0]
    exact = np.mean([1 - math.comb(24 - c, 3) / math.comb(24, 3) for c in counts])
    assert found.class_chance[3] == pytest.approx(exact)


def test_a_collapsed_space_finds_nothing() -> None:
    same = torch.ones(30, 4)
    found = retrieval_recall(same, gallery_NS=same, classes_N=torch.arange(30) % 3)
    assert found.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.class_recall == {1: 0.0, 5: 0.0, 10: 0.0}


def test_retrieval_without_labels_or_rows() -> None:
    x = torch.eye(4)
    found = retrieval_recall(x, gallery_NS=x, classes_N=torch.full((4,), -1))
    assert found.recall[1] == 1.0
    assert (found.class_queries, found.class_recall[1]) == (0, 0.0)
    with pytest.raises(ValueError, match="needs rows"):
        retrieval_recall(x[:0], gallery_NS=x[:0], classes_N=torch.zeros(0))
