from __future__ import annotations

import pytest
import torch

from training.evaluation.ranks import pairs_of, ranks_of
from training.evaluation.retrieval import retrieve


@pytest.mark.parametrize("numbered", [False, True])
def test_ranks_are_those_of_the_recall(numbered) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60, 1, 4, generator=generator)
    vectors = base + torch.randn(60, 3, 4, generator=generator)
    presence = torch.rand(60, 3, generator=generator) < 0.8
    payloads = torch.randint(-1, 20, (60, 3), generator=generator) if numbered else None
    options = {"presence_NM": presence, "payloads_NM": payloads, "block_scores": 7 * 60}
    ranks = ranks_of(vectors, **options)
    parts = [ranks_of(vectors, **options, asking=slice(a, b)) for a, b in ((0, 17), (17, 60))]
    assert torch.equal(torch.cat(parts).nan_to_num(-1), ranks.nan_to_num(-1))
    pairs = pairs_of(["a", "b", "c"])
    assert ranks.shape == (60, len(pairs))
    for column, (query, answer) in enumerate(pairs):
        q, a = "abc".index(query), "abc".index(answer)
        both = presence[:, q] & presence[:, a]
        assert torch.equal(ranks[:, column].isnan(), ~both)
        numbers = [torch.arange(60)[both]]
        if payloads is not None:
            numbers += [payloads[both, q], payloads[both, a]]
        found = retrieve(
            vectors[both, q],
            gallery_NS=vectors[both, a],
            numbers_NI=torch.stack(numbers, dim=1),
            ks=(1, 5, 10),
        )
        for k in (1, 5, 10):
            assert (ranks[both, column] < k).double().mean() == pytest.approx(found.recall[k])
    collapsed = ranks_of(torch.ones(9, 2, 4), presence_NM=torch.ones(9, 2, dtype=torch.bool))
    assert (collapsed == 8).all()


def test_the_matrix_of_all_pairs_is_never_held(watched) -> None:
    rows = 500
    vectors = torch.randn(rows, 2, 4, generator=torch.Generator().manual_seed(0))
    options = {"presence_NM": torch.ones(rows, 2, dtype=torch.bool), "block_scores": 20_000}
    with watched() as sizes:
        ranks = ranks_of(vectors, payloads_NM=torch.arange(2 * rows).view(rows, 2) // 4, **options)
    assert ranks.shape == (rows, 2)
    assert max(sizes) <= 20_000
