"""Fusion models: embeddings of several modalities, any of which may be missing → logits.

A missing modality is masked, never filled in: only the rows that are present are computed, so
what stands in the others has no influence on an output or a gradient, not even NaN. For the
taxonomy (early, late, by a model) see Baltrušaitis, Ahuja and Morency 2019,
https://arxiv.org/abs/1705.09406, section 6.

Suffixes of tensors: B rows, D width of an embedding, W hidden width, M modalities, T tokens
(M + 1), H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLAMP = 10.0
"""Standard deviations beyond which an input's dimension is cut off."""


class Input(Protocol):
    """A modality's width and, if they are known, mean and deviation `[D]`."""

    @property
    def dim(self) -> int: ...
    @property
    def mean(self) -> Tensor | None: ...
    @property
    def std(self) -> Tensor | None: ...


class RowDropout(nn.Module):
    """Dropout whose draws belong to rows of the global batch, whichever worker holds them.

    After `seed_dropout` a worker draws for the whole batch and keeps the draws of its own rows,
    so two workers on half the batch each do what one does on the whole. Without it, ordinary
    dropout: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.draw: tuple[int, int, int] | None = None
        """Seed, rows of the global batch, and number of this worker's first row in it."""

    def forward(self, x_BX: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x_BX
        if self.draw is None:
            return F.dropout(x_BX, self.probability)
        seed, rows, first = self.draw
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand((rows, *x_BX.shape[1:]), generator=generator)
        kept = (drawn[first : first + len(x_BX)] >= self.probability).to(x_BX.device)
        return x_BX * kept / (1 - self.probability)


def seed_dropout(model: nn.Module, *, seed: int, rows: int, first: int) -> None:
    """Seed every `RowDropout` of a model for a step on a global batch of `rows`."""
    layers = (layer for layer in model.modules() if isinstance(layer, RowDropout))
    for i, layer in enumerate(layers):
        layer.draw = ((seed * 1_000_003 + i) % 2**63, rows, first)


class Projection(nn.Module):
    """One modality's embeddings `[B, D]`, standardised, to `[B, W]`; zero where it is missing."""

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, source: Input, *, width: int, dropout: float) -> None:
        super().__init__()
        mean = torch.zeros(source.dim) if source.mean is None else source.mean
        std = torch.ones(source.dim) if source.std is None else source.std
        self.register_buffer("mean_D", mean.clone())
        self.register_buffer("std_D", std.clone())
        self.layers = nn.Sequential(nn.Linear(source.dim, width), nn.LayerNorm(width), nn.GELU())
        self.dropout = RowDropout(dropout)
        self.width = width

    def forward(self, x_BD: Tensor, present_B: Tensor) -> Tensor:
        rows = present_B.nonzero().squeeze(1)
        scaled = ((x_BD[rows] - self.mean_D) / self.std_D).clamp(-CLAMP, CLAMP)
        hidden = self.layers(scaled)
        hidden_BW = hidden.new_zeros(len(x_BD), self.width).index_copy(0, rows, hidden)
        return self.dropout(hidden_BW)


class PerModality(nn.Module):
    """One layer a modality, found by the modality's name, in the order given.

    The name is prefixed within: `nn.ModuleDict` refuses what is an attribute of its own, as
    `type` or `values` are.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(layers)
        self.layers = nn.ModuleDict({f"of-{name}": layer for name, layer in layers.items()})

    def __getitem__(self, name: str) -> nn.Module:
        return self.layers[f"of-{name}"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Each modality's name and layer."""
        return zip(self.names, self.layers.values())


def project_all(
    projections: PerModality, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """All modalities' projections `[B, M, W]`, and which are present `[B, M]`."""
    hidden = [layer(embeddings[m], presence[m]) for m, layer in projections.items()]
    present = [presence[m] for m in projections]
    return torch.stack(hidden, dim=1), torch.stack(present, dim=1)


def projections(inputs: Mapping[str, Input], *, width: int, dropout: float) -> PerModality:
    """A projection for each modality."""
    return PerModality(
        {m: Projection(source, width=width, dropout=dropout) for m, source in inputs.items()}
    )


class SingleModality(nn.Module):
    """A classifier on one modality; where it is missing, the learned prior of the classes."""

    def __init__(
        self, inputs: Mapping[str, Input], *, classes: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        (self.modality,) = inputs
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.head = nn.Linear(width, classes, bias=False)
        self.prior_C = nn.Parameter(torch.zeros(classes))

    def forward(self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> Tensor:
        hidden_BMW, _ = project_all(self.projections, embeddings, presence)
        return self.prior_C + self.head(hidden_BMW[:, 0])


class EarlyFusion(nn.Module):
    """Projections side by side into one classifier; a learned token stands for a missing one."""

    def __init__(
        self, inputs: Mapping[str, Input], *, classes: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.missing_MW = nn.Parameter(torch.randn(len(inputs), width) * width**-0.5)
        self.hidden = nn.Sequential(
            nn.Linear(len(inputs) * width, width), nn.GELU(), RowDropout(dropout)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence)
        tokens_BMW = torch.where(present_BM[:, :, None], hidden_BMW, self.missing_MW)
        return self.head(self.hidden(tokens_BMW.flatten(1)))


class LateFusion(nn.Module):
    """A classifier a modality; the mean of the present ones' logits by learned weights.

    The weights of the present modalities sum to one; the prior of the classes is added, and
    stands alone where all are missing.
    """

    def __init__(
        self, inputs: Mapping[str, Input], *, classes: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.heads = PerModality({m: nn.Linear(width, classes, bias=False) for m in inputs})
        self.weight_M = nn.Parameter(torch.zeros(len(inputs)))
        self.prior_C = nn.Parameter(torch.zeros(classes))

    def forward(self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence)
        logits_BMC = torch.stack(
            [self.heads[m](hidden_BMW[:, i]) for i, m in enumerate(self.heads)], dim=1
        )
        # A finite floor: with -inf, a row without any modality would be 0 / 0.
        floor = torch.finfo(logits_BMC.dtype).min
        weight_BM = self.weight_M.expand_as(present_BM).masked_fill(~present_BM, floor)
        share_BM = weight_BM.softmax(dim=1).masked_fill(~present_BM, 0.0)
        return self.prior_C + (share_BM[:, :, None] * logits_BMC).sum(dim=1)


class AttentionFusion(nn.Module):
    """A transformer over one token a modality and a class token, the missing ones masked out.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, with the norms first (Xiong et al.
    2020, https://arxiv.org/abs/2002.04745). The class token is there for every row, so a row
    without any modality is answered from it alone.
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        classes: int,
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
        self.head = nn.Linear(width, classes)

    def forward(self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence)
        class_B1W = self.class_W.expand(len(hidden_BMW), 1, -1)
        x_BTW = torch.cat([class_B1W, hidden_BMW + self.modality_MW], dim=1)
        present_BT = F.pad(present_BM, (1, 0), value=True)
        for block in self.blocks:
            x_BTW = block(x_BTW, present_BT)
        return self.head(self.norm(x_BTW[:, 0]))


class AttentionBlock(nn.Module):
    """One transformer layer whose keys are the present tokens alone."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropouts = nn.ModuleList([RowDropout(dropout), RowDropout(dropout)])

    def forward(self, x_BTW: Tensor, present_BT: Tensor) -> Tensor:
        B, T, W = x_BTW.shape
        qkv = self.query_key_value(self.attention_norm(x_BTW))
        q_BHTX, k_BHTX, v_BHTX = (
            part.view(B, T, self.heads, W // self.heads).transpose(1, 2)
            for part in qkv.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(
            q_BHTX, k_BHTX, v_BHTX, attn_mask=present_BT[:, None, None, :]
        )
        mixed_BTW = mixed.transpose(1, 2).reshape(B, T, W)
        x_BTW = x_BTW + self.dropouts[0](self.attended(mixed_BTW))
        return x_BTW + self.dropouts[1](self.mlp(x_BTW))
