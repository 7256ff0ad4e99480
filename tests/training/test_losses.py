"""The losses on one worker against written-out references; test_workers.py has several."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from training.contrastive import info_nce
from training.losses import cross_entropy
from training.workers import gather_rows


def make(rows: int = 9, modalities: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, modalities, 5, generator=generator, dtype=torch.float64)
    presence = torch.rand(rows, modalities, generator=generator) < 0.7
    return F.normalize(x, dim=-1), presence


def naive_info_nce(x: torch.Tensor, presence: torch.Tensor, scale: float) -> torch.Tensor:
    """Equation 4 of Oord et al. 2018, in both directions, one number at a time."""
    losses = []
    for a, b in combinations(range(x.shape[1]), 2):
        rows = [i for i in range(len(x)) if presence[i, a] and presence[i, b]]
        if len(rows) < 2:
            continue
        total = torch.zeros((), dtype=x.dtype)
        for u, v in ((a, b), (b, a)):
            for i in rows:
                own = torch.exp(scale * (x[i, u] * x[i, v]).sum())
                others = sum(torch.exp(scale * (x[i, u] * x[j, v]).sum()) for j in rows)
                total = total - torch.log(own / others)
        losses.append(total / (2 * len(rows)))
    return sum(losses) / len(losses)


def test_info_nce_and_its_gradient_equal_the_naive_reference() -> None:
    x, presence = make()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64)
    loss = info_nce(ours, presence_BM=presence, scale=scale)
    expected = naive_info_nce(theirs, presence, 7.0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_two_modalities_are_clips_loss() -> None:
    x, _ = make(modalities=2)
    image, text = x[:, 0], x[:, 1]
    scale = torch.tensor(1 / 0.07, dtype=torch.float64)
    # As published: figure 3 of the paper, and ClipLoss of open_clip.
    logits = scale * image @ text.T
    labels = torch.arange(len(x))
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    everywhere = torch.ones(len(x), 2, dtype=torch.bool)
    torch.testing.assert_close(info_nce(x, presence_BM=everywhere, scale=scale), expected)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e200])
def test_missing_rows_have_no_influence(garbage) -> None:
    x, presence = make()
    outcomes = []
    for value in (0.5, garbage):
        filled = torch.where(presence[:, :, None], x, torch.full_like(x, value)).requires_grad_()
        loss = info_nce(filled, presence_BM=presence, scale=torch.tensor(5.0))
        loss.backward()
        outcomes.append((loss, filled.grad))
    (loss, gradient), (other_loss, other_gradient) = outcomes
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert (gradient[~presence] == 0).all()


def test_uninformative_embeddings_cost_the_log_of_the_rows() -> None:
    x = F.normalize(torch.ones(6, 2, 4), dim=-1)
    loss = info_nce(x, presence_BM=torch.ones(6, 2, dtype=torch.bool), scale=torch.tensor(9.0))
    assert float(loss) == pytest.approx(math.log(6), rel=1e-6)


def test_no_pair_costs_nothing_and_can_still_be_differentiated() -> None:
    x, _ = make()
    one_each = torch.zeros(9, 3, dtype=torch.bool)
    one_each[torch.arange(9), torch.arange(9) % 3] = True
    one_each[0, 1] = True  # a pair of a single row has nothing to be told from
    x[~one_each] = float("nan")
    x.requires_grad_()
    scale = torch.tensor(3.0, requires_grad=True)
    loss = info_nce(x, presence_BM=one_each, scale=scale)
    loss.backward()
    assert loss.item() == 0.0
    assert (x.grad == 0).all()


def test_cross_entropy_is_torchs_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 3, generator=generator), torch.arange(7) % 3
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(logits, targets_B=targets), expected)
    assert float(cross_entropy(logits[:0], targets_B=targets[:0])) == 0.0


def test_one_worker_gathers_its_own_rows() -> None:
    x = torch.randn(3, 2)
    assert gather_rows(x).rows is x
