from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from training.batch import Batch
from training.built_in import parse_candidate
from training.fitting.step import learning_rate, make_model, make_optimizer, seed_step, train_step


class Tiny(nn.Module):
    """Two numbers to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, embeddings, presence, masks):
        return self.layer(embeddings["x"])


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    x = torch.randn(16, 2)
    return Batch(
        embeddings={"x": x},
        presence={"x": torch.ones(16, dtype=torch.bool)},
        targets=(x[:, 0] > 0).long(),
    )


def test_steps_lower_the_loss_of_a_tiny_model(batch: Batch) -> None:
    model = Tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = [train_step(model, optimizer=optimizer, batch=batch).loss for _ in range(50)]
    assert losses[-1] < 0.4 < losses[0]


def test_gradient_is_clipped_to_the_norm_given(batch: Batch) -> None:
    model = Tiny()
    before = [p.detach().clone() for p in model.parameters()]
    step = train_step(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        batch=batch,
        gradient_clip=0.01,
    )
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters())]).norm()
    assert step.gradient_norm > 0.1
    assert float(moved.detach()) == pytest.approx(0.01, rel=1e-3)


def test_loss_that_is_not_finite_changes_nothing(batch: Batch) -> None:
    model = Tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch.embeddings["x"][5, 0] = math.inf
    step = train_step(model, optimizer=torch.optim.AdamW(model.parameters()), batch=batch)
    assert not step.finite
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_learning_rate_rises_to_the_highest_and_falls_to_nothing() -> None:
    rates = [learning_rate(s, steps=100, warmup=0.1, highest=0.5) for s in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert max(rates) == 0.5
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, steps=1, warmup=0.0, highest=0.5) == 0.5


def test_matrices_decay_and_vectors_do_not(table) -> None:
    spec = parse_candidate({"type": "alignment", "weight_decay": 0.3})
    model = make_model(spec, table=table, modalities=tuple(table.embeddings))
    decay = {
        id(p): group["weight_decay"]
        for group in make_optimizer(model, spec=spec).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim >= 2 else 0.0), name
    assert decay[id(model.log_scale)] == 0.0


def test_first_weights_come_from_the_seed_and_leave_torchs_generator_alone(table) -> None:
    def weights(seed: int) -> torch.Tensor:
        spec = parse_candidate({"type": "late", "seed": seed})
        model = make_model(spec, table=table, modalities=tuple(table.embeddings))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = weights(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_what_a_step_draws_is_a_function_of_seed_epoch_and_step() -> None:
    def drawn(seed: int, epoch: int, step: int) -> tuple[float, ...]:
        seed_step(nn.Identity(), seed=seed, epoch=epoch, step=step, rows=4)
        return tuple(torch.rand(3).tolist())

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(*place) for place in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 2, 1))}) == 4
