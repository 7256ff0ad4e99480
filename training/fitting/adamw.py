"""AdamW in one kernel a group: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

As `torch.optim.AdamW(fused=True)`, bit for bit. That class, once made, imports torch's compiler,
which takes longer than many a fit, and checks at every step what does not change here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class AdamW:
    """Weights in groups, each with `params`, `weight_decay` and `lr`, as torch's optimizers have.

    The weights of a group are of one type and on one device.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float) -> None:
        self.param_groups = [{"lr": lr, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """Per weight, once it has been updated: `step`, `exp_avg` and `exp_avg_sq`."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            states = [self._state(weight) for weight in weights]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                weights,
                [weight.grad for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                amsgrad=False,
                lr=group["lr"],
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                maximize=False,
            )

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        if weight not in self.state:
            self.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32, device=weight.device),
                "exp_avg": torch.zeros_like(weight, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(weight, memory_format=torch.preserve_format),
            }
        return self.state[weight]
