"""Low-rank tensor fusion: all products of the modalities' features, through factors of low rank.

Suffixes of tensors: B rows, W hidden width, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.fusion import FusionModel
from training.models.layers import Input, PerModality, project_all, projections


class LowRankFusion(FusionModel):
    """Fusion by a tensor over the modalities' outer product, of rank R and never built.

    Liu et al. 2018 (LMF), https://arxiv.org/abs/1806.00064, section 3:
    `h = Σ_r w_r ∏_m (W_m^(r) [z_m; 1])`, the product being elementwise and the appended 1 a bias.
    The factor of a missing modality is 1, which changes no product. The factors begin near 1 (the
    biases are 1), so the model begins near a sum of what the modalities say alone, and a product
    of many neither vanishes nor explodes.
    """

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, width: int, dropout: float, rank: int
    ) -> None:
        super().__init__()
        self.rank = rank
        self.projections = projections(inputs, width=width, dropout=dropout)
        factors = {m: nn.Linear(width, rank * width) for m in inputs}
        for layer in factors.values():
            nn.init.ones_(layer.bias)
        self.factors = PerModality(factors)
        self.weight_R = nn.Parameter(torch.full((rank,), 1 / rank))
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        width = hidden_BMW.shape[-1]
        product_BRW = hidden_BMW.new_ones(hidden_BMW.shape[0], self.rank, width)
        for i, m in enumerate(self.factors):
            factor_BRW = self.factors[m](hidden_BMW[:, i]).unflatten(-1, (self.rank, width))
            product_BRW = product_BRW * torch.where(present_BM[:, i, None, None], factor_BRW, 1.0)
        return (self.weight_R[:, None] * product_BRW).sum(dim=1)
