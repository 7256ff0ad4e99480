"""The losses on one worker against written-out references; test_workers.py has several."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
import sklearn.utils.class_weight
import torch
import torch.nn.functional as F

from tests.training.shares import share_of
from training.data.targets import is_labelled
from training.fitting.step import PLAIN
from training.losses.contrastive import info_nce
from training.losses.task import LossSum
from training.task import parse_task
from training.tasks import read_targets
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
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)


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
    torch.testing.assert_close(share_of(PLAIN, logits, targets), expected)
    assert float(share_of(PLAIN, logits[:0], targets[:0])) == 0.0


def read(options, labels):
    """The task and targets of some labels, of which the first 30 rows are the training split."""
    rows = torch.arange(len(next(iter(labels.values()))))
    split = {"train": rows[:30], "validation": rows[30:35], "test": rows[35:]}
    columns = {name: pa.chunked_array([values]) for name, values in labels.items()}
    return read_targets(parse_task(options), columns, split=split, rows=len(rows))


def classes() -> dict[str, list[str | None]]:
    codes = np.random.default_rng(0).choice(3, size=40, p=[0.6, 0.3, 0.1])
    return {"y": [*("abc"[c] for c in codes[:-1]), None]}


def labels() -> dict[str, list[list[str] | None]]:
    drawn = np.random.default_rng(0).random((40, 3)) < [0.7, 0.4, 0.2]
    return {"y": [*([n for n, on in zip("abc", row) if on] for row in drawn[:-1]), None]}


def numbers() -> dict[str, list[float | None]]:
    drawn = np.random.default_rng(0).normal(size=40) * 30 + 1000
    return {"y": [*drawn[:-1].tolist(), None], "z": (drawn**2).tolist()}


def naive_focal(logits, targets, weights, gamma):
    """Equation 5 of Lin et al. 2017, one row at a time."""
    total, count = torch.zeros((), dtype=logits.dtype), 0.0
    for row, target in zip(logits, targets.tolist(), strict=True):
        p = row.exp()[target] / row.exp().sum()
        total = total - weights[target] * (1 - p) ** gamma * p.log()
        count += float(weights[target])
    return total / count


def balanced(targets) -> torch.Tensor:
    y = targets[:30].numpy()
    weights = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(3), y=y)
    return torch.from_numpy(weights)


CLASS_LOSSES = {
    "plain": ({}, lambda x, y: F.cross_entropy(x, y)),
    "balanced": (
        {"class_weights": "balanced"},
        lambda x, y, w: F.cross_entropy(x, y, weight=w),
    ),
    "named weights": (
        {"class_weights": {"c": 3.0, "a": 0.5}},
        lambda x, y: F.cross_entropy(x, y, weight=torch.tensor([0.5, 1, 3], dtype=x.dtype)),
    ),
    "smoothed": (
        {"label_smoothing": 0.2, "class_weights": "balanced"},
        lambda x, y, w: F.cross_entropy(x, y, weight=w, label_smoothing=0.2),
    ),
    "focal": ({"loss": "focal"}, lambda x, y: naive_focal(x, y, torch.ones(3).double(), 2.0)),
    "focal, weighted": (
        {"loss": "focal", "gamma": 0.5, "class_weights": "balanced"},
        lambda x, y, w: naive_focal(x, y, w, 0.5),
    ),
    "focal of gamma 0": ({"loss": "focal", "gamma": 0}, lambda x, y: F.cross_entropy(x, y)),
}
LABEL_LOSSES = {
    "labels": ({}, lambda x, y: F.binary_cross_entropy_with_logits(x, y)),
    "labels, named weights": (
        {"positive_weights": {"b": 4.0}},
        lambda x, y: F.binary_cross_entropy_with_logits(
            x, y, pos_weight=torch.tensor([1.0, 4.0, 1.0]).to(x)
        ),
    ),
}
NUMBER_LOSSES = {
    "mse": ({}, lambda x, y: F.mse_loss(x, y)),
    "mae": ({"loss": "mae"}, lambda x, y: F.l1_loss(x, y)),
    "huber": ({"loss": "huber", "delta": 0.3}, lambda x, y: F.huber_loss(x, y, delta=0.3)),
}
LOSSES = [
    pytest.param({"type": kind, "target": target, **options}, data, reference, id=name)
    for kind, target, data, cases in (
        ("classification", "y", classes, CLASS_LOSSES),
        ("multilabel", "y", labels, LABEL_LOSSES),
        ("regression", ("y", "z"), numbers, NUMBER_LOSSES),
    )
    for name, (options, reference) in cases.items()
]


@pytest.mark.parametrize(("options", "data", "reference"), LOSSES)
def test_each_loss_and_its_gradient_equal_a_reference(options, data, reference) -> None:
    found = read(options, data())
    rows = is_labelled(found.values)
    targets = found.values[rows]
    assert len(targets) == 39
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(39, found.task.outputs, generator=generator, dtype=torch.float64)
    theirs = ours.clone().requires_grad_()
    ours.requires_grad_()
    loss = share_of(found.task, ours, targets)
    arguments = (targets.double() if targets.is_floating_point() else targets,)
    if options.get("class_weights") == "balanced":
        arguments = (*arguments, balanced(targets))
    expected = reference(theirs, *arguments)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("options", "data", "reference"), LOSSES)
def test_shares_of_uneven_parts_sum_to_the_whole(options, data, reference) -> None:
    found = read(options, data())
    targets = found.values[is_labelled(found.values)]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(39, found.task.outputs, generator=generator, dtype=torch.float64)
    parts = [slice(0, 5), slice(5, 5), slice(5, 39)]
    sums = [found.task.loss(outputs[part], targets[part]) for part in parts]
    both = LossSum(total=sum(s.total for s in sums), weight=sum(s.weight for s in sums))
    torch.testing.assert_close(both.total / both.weight, share_of(found.task, outputs, targets))


def test_balanced_labels_weigh_as_much_with_as_without() -> None:
    found = read({"type": "multilabel", "target": "y", "positive_weights": "balanced"}, labels())
    train = found.values[:30]
    with_it, without = train.sum(dim=0), (1 - train).sum(dim=0)
    torch.testing.assert_close(found.task.weights * with_it, without)


def test_a_row_answered_with_certainty_has_a_finite_focal_gradient() -> None:
    found = read({"target": "y", "loss": "focal", "gamma": 0.5}, classes())
    outputs = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    loss = share_of(found.task, outputs, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(100.0)
    assert outputs.grad.isfinite().all()


def test_one_worker_gathers_its_own_rows() -> None:
    x = torch.randn(3, 2)
    assert gather_rows(x).rows is x
