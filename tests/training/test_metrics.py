from __future__ import annotations

import math

import pytest
import sklearn.metrics
import torch
import torchmetrics.functional as theirs

from training.metrics import (
    accuracy,
    negative_log_likelihood,
    top_k_accuracy,
)


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 6, generator=generator).softmax(dim=1), torch.randint(
        6, (200,), generator=generator
    )


def test_accuracy_and_top_k_agree_with_torchmetrics(scores) -> None:
    p, y = scores
    options = {"num_classes": 6, "average": "micro"}
    expected = float(theirs.classification.multiclass_accuracy(p, y, **options))
    assert accuracy(p, targets_N=y) == pytest.approx(expected)
    assert top_k_accuracy(p, targets_N=y, k=1) == pytest.approx(expected)
    expected = float(theirs.classification.multiclass_accuracy(p, y, top_k=3, **options))
    assert top_k_accuracy(p, targets_N=y, k=3) == pytest.approx(expected)


def test_likelihood_agrees_with_scikit_learn(scores) -> None:
    p, y = scores[0].double() / scores[0].double().sum(dim=1, keepdim=True), scores[1]
    expected = sklearn.metrics.log_loss(y.numpy(), p.numpy(), labels=range(6))
    assert negative_log_likelihood(p, targets_N=y) == pytest.approx(expected, rel=1e-6)


def test_certain_and_wrong_is_finite() -> None:
    p = torch.tensor([[1.0, 0.0]])
    assert negative_log_likelihood(p, targets_N=torch.tensor([1])) == pytest.approx(
        -math.log(1e-12)
    )


def test_a_constant_model_is_not_among_the_best_by_ties() -> None:
    p = torch.full((8, 4), 0.25)
    assert top_k_accuracy(p, targets_N=torch.arange(8) % 4, k=3) == 0.0


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        accuracy(torch.zeros(0, 3), targets_N=torch.zeros(0))
