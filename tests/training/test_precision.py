from __future__ import annotations

import math

import torch
from torch import nn

from training.fitting.precision import FIRST_SCALE, LossScale, autocast
from training.training_spec import TrainingSpec


def test_the_scale_goes_as_torchs() -> None:
    """Against torch.amp.GradScaler, over steps of which some overflow."""
    ours = LossScale.of("float16")
    theirs = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=2000)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs.scale(torch.ones(1))
    for step in range(4100):
        finite = step not in (3, 4, 2500)
        weight.grad = torch.tensor([1.0 if finite else math.inf])
        theirs.step(optimizer)
        theirs.update()
        ours.note(finite=finite)
        if step % 50 == 0 or not finite:
            assert ours.value == theirs.get_scale(), step
    assert ours.value == FIRST_SCALE / 4


def test_only_float16_is_scaled() -> None:
    assert [LossScale.of(p).value for p in ("float32", "bfloat16", "float16")] == [1, 1, 2**16]


def test_products_are_of_the_precision_asked_for() -> None:
    x = torch.ones(2, 2)
    for precision in ("float32", "bfloat16", "float16"):
        with autocast(precision, device="cpu"):
            assert (x @ x).dtype == getattr(torch, precision)
    assert TrainingSpec().precision == "float32"
