"""Gated fusion: each hidden unit takes its value from the modalities by gates that see them all.

Suffixes of tensors: B rows, W hidden width, M modalities, V all modalities' widths side by side.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.fusion import FusionModel
from training.models.layers import Input, PerModality, project_all, projections


class GatedFusion(FusionModel):
    """Gated multimodal units over the modalities that are present.

    Arevalo et al. 2017, https://arxiv.org/abs/1702.01992, section 3: values
    `h_m = tanh(W_m x_m)`, gates `z = σ(W_z [x_1, x_2])`, fused `z ∘ h_1 + (1 − z) ∘ h_2`.
    The gates of any number of modalities are here a softmax over those that are present, which
    for two is the paper's unit (`W_z = W_1 − W_2`): they sum to one in every unit, so that a row
    with one modality is that modality's values. A missing one adds nothing to the others' gates.
    """

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.values = PerModality({m: nn.Linear(width, width) for m in inputs})
        self.gates = PerModality({m: nn.Linear(len(inputs) * width, width) for m in inputs})
        # Its bias is what stands alone where all modalities are missing.
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        all_BV = hidden_BMW.flatten(1)  # zero where one is missing
        value_BMW = torch.stack(
            [self.values[m](hidden_BMW[:, i]).tanh() for i, m in enumerate(self.values)], dim=1
        )
        gate_BMW = torch.stack([layer(all_BV) for _, layer in self.gates.items()], dim=1)
        missing_BM1 = ~present_BM[:, :, None]
        # A finite floor: with -inf, a row without any modality would be 0 / 0.
        gate_BMW = gate_BMW.masked_fill(missing_BM1, torch.finfo(gate_BMW.dtype).min)
        gate_BMW = gate_BMW.softmax(dim=1).masked_fill(missing_BM1, 0.0)
        return (gate_BMW * value_BMW).sum(dim=1)
