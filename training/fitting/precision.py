"""Computing in sixteen bits: where, and how small gradients are kept from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from training.training_spec import Precision

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000


def autocast(precision: Precision, *, device: torch.device | str) -> AbstractContextManager[object]:
    """A block whose matrix products are of this precision; weights and sums stay float32."""
    if precision == "float32":
        return nullcontext()
    # Nothing is used twice within a pass, so there is nothing to remember; and what would be
    # remembered of stacked weights is of no use outside of their pass.
    return torch.autocast(
        torch.device(device).type, dtype=getattr(torch, precision), cache_enabled=False
    )


@dataclass(kw_only=True)
class LossScale:
    """What the loss is multiplied by in float16, and the gradients divided by after.

    Halved where a gradient overflows, whose step is left out, and doubled after so many steps
    without: Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2.
    """

    value: float = FIRST_SCALE
    good: int = 0
    """Steps since it was changed."""

    @classmethod
    def of(cls, precision: Precision) -> LossScale:
        """The scale at the first step: 1 where there is nothing to scale."""
        return cls(value=FIRST_SCALE if precision == "float16" else 1.0)

    def note(self, *, finite: bool) -> None:
        """Take account of a step whose gradients were finite or not."""
        if not finite:
            self.value, self.good = self.value / 2, 0
            return
        self.good += 1
        if self.good == GROWTH_STEPS:
            self.value, self.good = self.value * 2, 0
