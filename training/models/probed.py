"""Models that learn without labels, and are made to answer by a linear probe afterwards.

Suffixes of tensors: B rows, S width of what the probe sees, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Tensors


class Probed(nn.Module):
    """Base of such models: the probe sees `fuse`; where nothing is present it answers the prior."""

    probe_weight_CS: Tensor
    probe_bias_C: Tensor
    prior_C: Tensor

    def __init__(self, modalities: Iterable[str], *, outputs: int, dim: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.register_buffer("probe_weight_CS", torch.zeros(outputs, dim))
        self.register_buffer("probe_bias_C", torch.zeros(outputs))
        self.register_buffer("prior_C", torch.zeros(outputs))

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """What the probe sees of each row, `[B, S]`."""
        raise NotImplementedError

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """The probe's outputs `[B, C]`."""
        logits_BC = F.linear(
            self.fuse(embeddings, presence, masks), self.probe_weight_CS, self.probe_bias_C
        )
        some_B1 = torch.stack([presence[m] for m in self.modalities], dim=1).any(1, keepdim=True)
        return torch.where(some_B1, logits_BC, self.prior_C)

    @torch.no_grad()
    def set_probe(self, *, weight_CS: Tensor, bias_C: Tensor, prior_C: Tensor) -> None:
        """Take over a fitted linear probe, and the log shares of the classes."""
        self.probe_weight_CS.copy_(weight_CS)
        self.probe_bias_C.copy_(bias_C)
        self.prior_C.copy_(prior_C)
