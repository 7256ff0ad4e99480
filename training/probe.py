"""Classifiers on frozen vectors: a linear probe and the nearest neighbours.

Suffixes of tensors: N rows that are known, Q rows that are asked, C classes, S width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.metrics import negative_log_likelihood

PROBE_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Inverse regularisation of the linear probe; the one with the best validation loss is taken."""
NEIGHBOURS = 20
BLOCK_SCORES = 2**22
"""Similarities that are held at a time."""


def nearest_neighbours(
    queries_QS: Tensor,
    *,
    known_NS: Tensor,
    classes_N: Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = 0.07,
    block_scores: int = BLOCK_SCORES,
) -> Tensor:
    """Shares of the votes of each query's nearest known rows for each class, float `[Q, C]`.

    A row votes for its class with the weight exp(cosine / temperature): Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4; vectors are of length one. ValueError if no
    rows are known.
    """
    if not len(known_NS):
        raise ValueError("the nearest neighbours of nothing: there are no known rows")
    votes = []
    for block_QS in queries_QS.split(max(1, block_scores // len(known_NS))):
        near = (block_QS @ known_NS.T).topk(min(neighbours, len(known_NS)), dim=1)
        weight_QK = (near.values / temperature).softmax(dim=1)
        vote_QC = weight_QK.new_zeros(len(block_QS), classes)
        votes.append(vote_QC.scatter_add(1, classes_N[near.indices], weight_QK))
    return torch.cat(votes) if votes else queries_QS.new_zeros(0, classes)


def best_linear_probe(
    *,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[C, S]` and biases `[C]` of the logistic regression of the lowest validation loss.

    Each split is vectors `[N, S]` and classes `[N]`; the training rows are of two classes at
    least.
    """
    from sklearn.linear_model import LogisticRegression

    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for strength in PROBE_STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(*train)
        weight, bias = _all_classes(fitted, classes=classes)
        logits = torch.from_numpy(validation[0] @ weight.T + bias)
        loss = math.inf
        if len(logits):
            loss = negative_log_likelihood(
                logits.softmax(dim=1), targets_N=torch.from_numpy(validation[1])
            )
        if best is None or loss < best[0]:
            best = (loss, weight, bias)
    assert best is not None
    return best[1], best[2]


def _all_classes(fitted: Any, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax weights for all classes, of a fit that has met some; of two classes it keeps one."""
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((classes, coefficients.shape[1]))
    # A class that was never met is never answered.
    bias = np.full(classes, -50.0)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return weight, bias
