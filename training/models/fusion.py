"""Fusion models: embeddings of several modalities, any of which may be missing → outputs.

For the taxonomy (early, late, by a model) see Baltrušaitis, Ahuja and Morency 2019,
https://arxiv.org/abs/1705.09406, section 6.

Suffixes of tensors: B rows, D width of an embedding, W hidden width, M modalities, T steps of a
sequence, or tokens, C outputs of the task: classes, labels or numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Tensors
from training.models.attention import joined, modality_tokens
from training.models.layers import AttentionBlock, Input, RowDropout, project_all, projections


class FusionModel(nn.Module):
    """Base of the fusions: `fuse` makes one vector of a row's modalities, `head` answers from it.

    All take `embeddings` (per modality float `[B, D]`, of sequences `[B, T, D]`), `presence`
    (bool `[B]`) and `masks` (of sequences alone: bool `[B, T]`, true where a step is).
    """

    head: nn.Module

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """The fused representation `[B, W]`."""
        raise NotImplementedError

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """The outputs `[B, C]`."""
        outputs_BC: Tensor = self.head(self.fuse(embeddings, presence, masks))
        return outputs_BC


class SingleModality(FusionModel):
    """One modality alone; where it is missing, a learned answer."""

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        (self.modality,) = inputs
        self.projections = projections(inputs, width=width, dropout=dropout)
        # Its bias is what stands alone where the modality is missing.
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, _ = project_all(self.projections, embeddings, presence, masks)
        return hidden_BMW[:, 0]


class EarlyFusion(FusionModel):
    """Projections side by side into one classifier; a learned token stands for a missing one."""

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.missing_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.hidden = nn.Sequential(
            nn.Linear(len(inputs) * width, width), nn.GELU(), RowDropout(dropout)
        )
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        tokens_BMW = torch.where(present_BM[:, :, None], hidden_BMW, self.missing_MW)
        return self.hidden(tokens_BMW.flatten(1))


class AttentionFusion(FusionModel):
    """A transformer over all modalities' tokens and a class token, the missing ones masked out.

    A pooled embedding is one token, a sequence one a step. Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762, with the norms first (Xiong et al. 2020,
    https://arxiv.org/abs/2002.04745). The class token is there for every row, so a row without
    any modality is answered from it alone.
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
        self.class_W = nn.Parameter(torch.randn(width) * width**-0.5)
        self.modality_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.blocks = nn.ModuleList(
            AttentionBlock(width=width, heads=heads, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        tokens = modality_tokens(self.projections, embeddings, presence, masks)
        all_modalities = joined(
            part.with_x(part.x_BTW + self.modality_MW[i]) for i, part in enumerate(tokens.values())
        )
        class_B1W = self.class_W.expand(all_modalities.x_BTW.shape[0], 1, -1)
        x_BTW = torch.cat([class_B1W, all_modalities.x_BTW], dim=1)
        there_BT = F.pad(all_modalities.there_BT, (1, 0), value=True)
        for block in self.blocks:
            x_BTW = block(x_BTW, there_BT)
        return self.norm(x_BTW[:, 0])
