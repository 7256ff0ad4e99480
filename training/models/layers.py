"""What models of several modalities are built of: projections, dropout by row, attention.

A missing modality is masked, never filled in: what stands in its rows has no influence on an
output or a gradient, not even NaN.

Suffixes of tensors: B rows, T steps of a sequence or tokens, D width of an embedding, W hidden
width, M modalities, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Tensors

CLAMP = 10.0
"""Standard deviations beyond which an input's dimension is cut off."""
DRAWN_AT_ONCE = 256
"""Rows of the global batch whose dropout a GPU draws at once."""


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

    of_candidate: ClassVar[bool] = True
    """Whether the probability is the candidate's `dropout`, or the layer's own."""
    factor: Tensor | None

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.draw: Draw | None = None
        self.shape: tuple[int, ...] = ()
        """Of one row, as it was last met."""
        # What rows are multiplied by, if another has drawn it: for several models at once.
        self.register_buffer("factor", None, persistent=False)

    def forward(self, x_BX: Tensor) -> Tensor:
        self.shape = tuple(x_BX.shape[1:])
        if not self.training:
            return x_BX
        if self.factor is not None:
            return x_BX * self.factor
        if self.probability == 0:
            return x_BX
        if self.draw is None:
            return F.dropout(x_BX, self.probability)
        return x_BX * self.draw.factor(
            len(x_BX), shape=self.shape, probability=self.probability, device=x_BX.device
        )


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which draws of a dropout layer are a worker's own."""

    seed: int
    rows: int
    """Of the global batch."""
    first: int
    """Number of this worker's first row in it."""

    def factor(
        self,
        rows: int,
        *,
        shape: tuple[int, ...],
        probability: float,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """float32 `[rows, *shape]`: 0 with that probability, else what keeps the expectation.

        A GPU draws for itself, and other numbers than a CPU: to draw them here and send them there
        took most of a step of a large model.
        """
        if torch.device(device).type == "cpu":
            kept = self._kept_by_numpy(rows, shape=shape, probability=probability)
        else:
            kept = self._kept_by_torch(rows, shape=shape, probability=probability, device=device)
        return kept.to(torch.float32).div_(1 - probability)

    def _kept_by_torch(
        self, rows: int, *, shape: tuple[int, ...], probability: float, device: torch.device | str
    ) -> Tensor:
        # Block by block of the global batch, of which only a worker's own are drawn: all of them
        # would take as many times the memory of a layer's output as there are workers.
        generator = torch.Generator(device)
        last = self.first + rows
        begin = self.first - self.first % DRAWN_AT_ONCE
        kept = []
        for start in range(begin, last, DRAWN_AT_ONCE):
            generator.manual_seed((self.seed * 2_147_483_659 + start) % 2**63)
            drawn = torch.rand(DRAWN_AT_ONCE, *shape, generator=generator, device=device)
            kept.append(drawn[max(0, self.first - start) : last - start] >= probability)
        return torch.cat(kept) if kept else torch.ones(0, *shape, dtype=torch.bool, device=device)

    def _kept_by_numpy(self, rows: int, *, shape: tuple[int, ...], probability: float) -> Tensor:
        size = self.rows * math.prod(shape)
        words = np.random.SFC64(self.seed).random_raw(-(-size // 4))  # of 64 bits: four draws each
        drawn = words.astype("<u8", copy=False).view("<u2")[:size].reshape(self.rows, *shape)
        return torch.from_numpy(drawn[self.first : self.first + rows] >= round(probability * 2**16))


def dropout_layers(model: nn.Module) -> list[RowDropout]:
    """A model's dropout layers, in the order in which they are numbered for their draws."""
    return [layer for layer in model.modules() if isinstance(layer, RowDropout)]


def dropout_draws(layers: int, *, seed: int, rows: int, first: int) -> list[Draw]:
    """The draws of so many dropout layers for a step on a global batch of `rows`."""
    return [
        Draw(seed=(seed * 1_000_003 + i) % 2**63, rows=rows, first=first) for i in range(layers)
    ]


def give_factors(model: nn.Module, *, rows: int) -> None:
    """Give every `RowDropout` what its draw makes of `rows` rows, so that its pass draws nothing.

    The layers must have met a row before.
    """
    for layer in dropout_layers(model):
        if layer.draw is not None and layer.probability > 0:
            layer.factor = layer.draw.factor(
                rows,
                shape=layer.shape,
                probability=layer.probability,
                device=next(model.parameters()).device,
            )


def seed_dropout(model: nn.Module, *, seed: int, rows: int, first: int) -> None:
    """Seed every `RowDropout` of a model for a step on a global batch of `rows`."""
    layers = dropout_layers(model)
    draws = dropout_draws(len(layers), seed=seed, rows=rows, first=first)
    for layer, draw in zip(layers, draws, strict=True):
        layer.draw = draw


def masked(x: Tensor, there: Tensor) -> Tensor:
    """`x`, and zero where it is not there, whatever stands there: `torch.where(there, x, 0)`.

    On a CPU, of float32 that needs no gradient by its bits, which takes a third of the time; but
    ONNX knows no bits.
    """
    plainly = (x.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_exporting()
    if x.is_cuda or x.dtype != torch.float32 or plainly:
        return torch.where(there, x, 0.0)
    return (x.view(torch.int32) & -there.to(torch.int32)).view(torch.float32)


class Projection(nn.Module):
    """One modality's embeddings, standardised, into the model's width; zero where it is missing.

    `[B, D]` to `[B, W]`; of sequences each step by itself, `[B, T, D]` to `[B, T, W]`.
    """

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

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """`there` says which of the vectors are: bool `[B]`, or `[B, T]` of sequences."""
        there = there.unsqueeze(-1)
        # What stands in the others is taken away before it can meet a weight: NaN times 0 is NaN.
        scaled = (masked(x, there) - self.mean_D).div_(self.std_D).clamp(-CLAMP, CLAMP)
        # Finite now, so that zero times it is zero: several times as fast as `torch.where`.
        return self.dropout(self.layers(scaled) * there)


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


def pooled(layer: nn.Module, x: Tensor, present_B: Tensor, mask_BT: Tensor | None) -> Tensor:
    """What a layer makes of each row `[B, W]`; of a sequence, which has a mask, its steps' mean.

    `layer(x, there)` is zero where nothing is there.
    """
    if mask_BT is None:
        row_BW: Tensor = layer(x, present_B)
        return row_BW
    steps_BT = mask_BT & present_B[:, None]
    sum_BW: Tensor = layer(x, steps_BT).sum(dim=1)
    return sum_BW / steps_BT.sum(dim=1, keepdim=True).clamp(min=1)


def project_all(
    projections: PerModality,
    embeddings: Tensors,
    presence: Tensors,
    masks: Tensors,
) -> tuple[Tensor, Tensor]:
    """All modalities' projections `[B, M, W]`, and which are present `[B, M]`.

    A sequence's is the mean over its steps.
    """
    hidden = [
        pooled(layer, embeddings[m], presence[m], masks.get(m)) for m, layer in projections.items()
    ]
    present = [presence[m] for m in projections]
    return torch.stack(hidden, dim=1), torch.stack(present, dim=1)


def projections(inputs: Mapping[str, Input], *, width: int, dropout: float) -> PerModality:
    """A projection for each modality."""
    return PerModality(
        {m: Projection(source, width=width, dropout=dropout) for m, source in inputs.items()}
    )


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
