"""Metrics of classification, without a library that decides what ties mean.

Suffixes of tensors: N rows, C classes.
"""

from __future__ import annotations

from torch import Tensor

SMALLEST_PROBABILITY = 1e-12
"""What a probability of zero counts as in a logarithm."""


def accuracy(scores_NC: Tensor, *, targets_N: Tensor) -> float:
    """Share of rows whose highest score is the target's; of equal scores the first class's."""
    _check_rows(scores_NC, targets_N)
    return float((scores_NC.argmax(dim=1) == targets_N).double().mean())


def top_k_accuracy(scores_NC: Tensor, *, targets_N: Tensor, k: int) -> float:
    """Share of rows whose target is among the k highest scores; a tie counts against it."""
    _check_rows(scores_NC, targets_N)
    target_N1 = scores_NC.gather(1, targets_N[:, None].long())
    better_N = (scores_NC >= target_N1).sum(dim=1) - 1
    return float((better_N < k).double().mean())


def negative_log_likelihood(probabilities_NC: Tensor, *, targets_N: Tensor) -> float:
    """Mean of −log p(target), in nats."""
    _check_rows(probabilities_NC, targets_N)
    target_N = probabilities_NC.double().gather(1, targets_N[:, None].long()).squeeze(1)
    return float(-target_N.clamp(min=SMALLEST_PROBABILITY).log().mean())


def _check_rows(scores_NC: Tensor, targets_N: Tensor) -> None:
    if len(scores_NC) == 0 or len(scores_NC) != len(targets_N):
        raise ValueError(
            f"a metric needs rows, as many scores as targets: {len(scores_NC)}, {len(targets_N)}"
        )
