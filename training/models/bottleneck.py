"""Bottleneck transformer: modalities that speak to each other through a few tokens alone.

Suffixes of tensors: B rows, T tokens of a modality with its class token, N bottleneck tokens,
W hidden width, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.attention import Tokens, keys_or_all, mean_of_present, modality_tokens
from training.models.fusion import FusionModel
from training.models.layers import AttentionBlock, Input, PerModality, projections


class BottleneckFusion(FusionModel):
    """A transformer a modality; from a layer on, all read and write common bottleneck tokens.

    Nagrani et al. 2021 (MBT), https://arxiv.org/abs/2107.00135, section 3: from layer
    `fusion_layer` on, `[z_m, b_m] = Transformer_m([z_m, b])`, and then `b` is the mean of the
    `b_m`, here over the modalities that are present. The cost grows with each sequence's own
    length squared and not with that of all together. The fused vector is the mean of the present
    modalities' class tokens, as the paper averages their logits.
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
        fusion_layer: int,
        bottlenecks: int,
    ) -> None:
        super().__init__()
        self.fusion_layer = fusion_layer
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.class_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.bottleneck_NW = nn.Parameter(torch.randn(bottlenecks, width) * width**-0.5)
        self.layers = nn.ModuleList(
            PerModality(
                {m: AttentionBlock(width=width, heads=heads, dropout=dropout) for m in inputs}
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        # Its bias is what stands alone where all modalities are missing.
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        tokens = modality_tokens(self.projections, embeddings, presence, masks)
        streams = {m: part.after(self.class_MW[i]) for i, (m, part) in enumerate(tokens.items())}
        present_BM = torch.stack([part.present_B for part in streams.values()], dim=1)
        bottleneck_BNW = self.bottleneck_NW.expand(present_BM.shape[0], -1, -1)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, PerModality)
            if number < self.fusion_layer:
                streams = {
                    m: part.with_x(layer[m](part.x_BTW, keys_or_all(part.there_BT)))
                    for m, part in streams.items()
                }
            else:
                streams, bottleneck_BNW = _exchange(
                    layer, streams, bottleneck_BNW=bottleneck_BNW, present_BM=present_BM
                )
        class_BMW = torch.stack([part.x_BTW[:, 0] for part in streams.values()], dim=1)
        return mean_of_present(self.norm(class_BMW), present_BM)


def _exchange(
    layer: PerModality,
    streams: Mapping[str, Tokens],
    *,
    bottleneck_BNW: Tensor,
    present_BM: Tensor,
) -> tuple[dict[str, Tokens], Tensor]:
    """A layer in which each modality attends to the bottleneck, and the bottleneck to each."""
    count = bottleneck_BNW.shape[1]
    after, written = {}, []
    for m, part in streams.items():
        there_BT = torch.cat(
            [part.there_BT, part.there_BT.new_ones(part.there_BT.shape[0], count)], dim=1
        )
        x_BTW = layer[m](torch.cat([part.x_BTW, bottleneck_BNW], dim=1), there_BT)
        after[m] = part.with_x(x_BTW[:, :-count])
        written.append(x_BTW[:, -count:].flatten(1))
    mean_BV = mean_of_present(torch.stack(written, dim=1), present_BM)
    return after, mean_BV.view(bottleneck_BNW.shape)
