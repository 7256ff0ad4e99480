from __future__ import annotations

import torch
from torch import nn

from training.fitting.adamw import AdamW
from training.fitting.checkpoint import load_optimizer, optimizer_tensors


def groups(weights: list[nn.Parameter]) -> list[dict]:
    return [
        {"params": weights[:2], "weight_decay": 0.3},
        {"params": weights[2:], "weight_decay": 0.0},
    ]


def test_it_is_torchs_bit_for_bit_and_goes_on_from_its_statistics() -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (2, 2), (7,), ()]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(w.detach().clone()) for w in ours]
    optimizer = AdamW(groups(ours), lr=0.1)
    reference = torch.optim.AdamW(groups(theirs), lr=0.1, fused=True)
    for step in range(8):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape) if step != 3 or a.ndim else None
            b.grad = None if a.grad is None else a.grad.clone()
        for made in (optimizer, reference):
            for group in made.param_groups:
                group["lr"] = 0.1 / (step + 1)
            made.step()
        if step == 4:  # another one, which is given what the first has come to
            tensors = optimizer_tensors(optimizer)
            optimizer = AdamW(groups(ours), lr=0.1)
            load_optimizer(optimizer, tensors=tensors)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in ours)
