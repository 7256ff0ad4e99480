"""Co-attention: each modality's tokens ask those of the others, layer by layer.

Suffixes of tensors: B rows, W hidden width, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.attention import (
    CrossAttentionBlock,
    Tokens,
    joined,
    keys_or_all,
    mean_of_present,
    modality_tokens,
)
from training.models.fusion import FusionModel
from training.models.layers import AttentionBlock, Input, PerModality, projections


class CoAttentionLayer(nn.Module):
    """Every modality asks the tokens of all others, then its own."""

    def __init__(
        self, modalities: tuple[str, ...], *, width: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.others = PerModality(
            {m: CrossAttentionBlock(width=width, heads=heads, dropout=dropout) for m in modalities}
        )
        self.own = PerModality(
            {m: AttentionBlock(width=width, heads=heads, dropout=dropout) for m in modalities}
        )

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        after = {}
        for m, part in streams.items():
            others = joined(other for name, other in streams.items() if name != m)
            x_BTW = self.others[m](part.x_BTW, others)
            after[m] = part.with_x(self.own[m](x_BTW, keys_or_all(part.there_BT)))
        return after


class CoAttentionFusion(FusionModel):
    """A stream of tokens a modality, in co-attentional layers.

    Lu et al. 2019 (ViLBERT), https://arxiv.org/abs/1908.02265, figure 2: in each layer the
    queries are a stream's own and the keys and values the other's, and a layer of self-attention
    follows; with more than two, the keys are those of all others. Norms come first. The fused
    vector is the mean of the present streams' class tokens (the paper, which has two, multiplies
    them).
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        outputs: int,
        width: int,
        dropout: float,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.class_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.modality_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.layers = nn.ModuleList(
            CoAttentionLayer(tuple(inputs), width=width, heads=heads, dropout=dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        # Its bias is what stands alone where all modalities are missing.
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        tokens = modality_tokens(self.projections, embeddings, presence, masks)
        streams = {
            m: part.with_x(part.x_BTW + self.modality_MW[i]).after(self.class_MW[i])
            for i, (m, part) in enumerate(tokens.items())
        }
        for layer in self.layers:
            streams = layer(streams)
        class_BMW = torch.stack([part.x_BTW[:, 0] for part in streams.values()], dim=1)
        present_BM = torch.stack([part.present_B for part in streams.values()], dim=1)
        return mean_of_present(self.norm(class_BMW), present_BM)
