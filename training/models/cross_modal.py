"""Cross-modal transformer: each modality is told by each other one, pair by pair.

Suffixes of tensors: B rows, T tokens of the modality that asks, W hidden width, V the widths of
what all others say to one modality, side by side: (M − 1) W, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.attention import (
    CrossAttentionBlock,
    Tokens,
    keys_or_all,
    mean_of_present,
    modality_tokens,
)
from training.models.fusion import FusionModel
from training.models.layers import AttentionBlock, Input, PerModality, RowDropout, projections


class CrossModalEncoder(nn.Module):
    """What a source says to a target: layers in which the target asks the source's first tokens."""

    def __init__(self, *, width: int, heads: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width=width, heads=heads, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, target_BTW: Tensor, source: Tokens) -> Tensor:
        for block in self.blocks:
            target_BTW = block(target_BTW, source)
        told_BTW: Tensor = self.norm(target_BTW)
        return told_BTW


class CrossModalTarget(nn.Module):
    """One modality after all others have spoken to it: a vector a row."""

    def __init__(
        self,
        sources: Sequence[str],
        *,
        width: int,
        heads: int,
        dropout: float,
        layers: int,
        self_layers: int,
    ) -> None:
        super().__init__()
        told = len(sources) * width
        self.encoders = PerModality(
            {
                source: CrossModalEncoder(width=width, heads=heads, dropout=dropout, layers=layers)
                for source in sources
            }
        )
        self.blocks = nn.ModuleList(
            AttentionBlock(width=told, heads=heads, dropout=dropout) for _ in range(self_layers)
        )
        self.norm = nn.LayerNorm(told)

    def forward(self, target: Tokens, tokens: Mapping[str, Tokens]) -> Tensor:
        """`[B, V]`, zero where the target is missing; `tokens` are all modalities'."""
        x_BTV = torch.cat(
            [encoder(target.x_BTW, tokens[m]) for m, encoder in self.encoders.items()], dim=-1
        )
        for block in self.blocks:
            x_BTV = block(x_BTV, keys_or_all(target.there_BT))
        return mean_of_present(self.norm(x_BTV), target.there_BT)


class CrossModalFusion(FusionModel):
    """A cross-modal transformer for each ordered pair of modalities, then self-attention.

    Tsai et al. 2019 (MulT), https://arxiv.org/abs/1906.00295, section 3: in every layer
    `Z = Z + CM(LN(Z), LN(S))`, `Z = Z + f(LN(Z))`, where CM is attention whose queries are the
    target's tokens and whose keys and values are the source's low-level ones `S`; so the
    sequences need not be aligned nor of one length. What all sources say to a target stands side
    by side and goes through self-attention. A row's vector of a modality is the mean over its
    steps (the paper takes the last), or a learned token where it is missing; a missing source adds
    nothing.
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
        self_layers: int,
    ) -> None:
        super().__init__()
        told = (len(inputs) - 1) * width
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.targets = PerModality(
            {
                target: CrossModalTarget(
                    [source for source in inputs if source != target],
                    width=width,
                    heads=heads,
                    dropout=dropout,
                    layers=layers,
                    self_layers=self_layers,
                )
                for target in inputs
            }
        )
        self.missing_MV = nn.Parameter(torch.randn(len(inputs), told) * told**-0.5)
        self.hidden = nn.Sequential(
            nn.Linear(len(inputs) * told, width), nn.GELU(), RowDropout(dropout)
        )
        self.head = nn.Linear(width, outputs)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        tokens = modality_tokens(self.projections, embeddings, presence, masks)
        vector_BMV = torch.stack(
            [self.targets[m](target, tokens) for m, target in tokens.items()], dim=1
        )
        present_BM = torch.stack([target.present_B for target in tokens.values()], dim=1)
        vector_BMV = torch.where(present_BM[:, :, None], vector_BMV, self.missing_MV)
        fused_BW: Tensor = self.hidden(vector_BMV.flatten(1))
        return fused_BW
