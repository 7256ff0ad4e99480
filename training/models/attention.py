"""Attention over the steps of sequences: tokens with positions, and blocks that ask other tokens.

A pooled embedding is a sequence of one step. Steps that are not there are never keys, so they
have no influence; what stands in their own places is finite and of no account.

Suffixes of tensors: B rows, T tokens of one modality, K tokens that are asked, W hidden width,
M modalities, H heads, X width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Tensors
from training.models.layers import PerModality, RowDropout


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One modality's tokens of each row."""

    x_BTW: Tensor
    there_BT: Tensor
    """bool: which of them are there."""

    @property
    def present_B(self) -> Tensor:
        """Which rows have a token at all."""
        return self.there_BT.any(dim=1)

    def with_x(self, x_BTW: Tensor) -> Tokens:
        """The same tokens with other values."""
        return Tokens(x_BTW=x_BTW, there_BT=self.there_BT)

    def after(self, token_W: Tensor) -> Tokens:
        """These behind a learned token `[W]`, which is there wherever one of them is."""
        first_B1W = token_W.expand(self.x_BTW.shape[0], 1, -1)
        return Tokens(
            x_BTW=torch.cat([first_B1W, self.x_BTW], dim=1),
            there_BT=torch.cat([self.present_B[:, None], self.there_BT], dim=1),
        )


def modality_tokens(
    projections: PerModality,
    embeddings: Tensors,
    presence: Tensors,
    masks: Tensors,
) -> dict[str, Tokens]:
    """Each modality's projected steps, with their positions added."""
    tokens = {}
    for m, layer in projections.items():
        if m in masks:
            x, there_BT = embeddings[m], masks[m] & presence[m][:, None]
        else:
            x, there_BT = embeddings[m][:, None], presence[m][:, None]
        hidden_BTW = layer(x, there_BT)
        tokens[m] = Tokens(x_BTW=hidden_BTW + sinusoids(hidden_BTW), there_BT=there_BT)
    return tokens


def sinusoids(x_BTW: Tensor) -> Tensor:
    """The positions `[T, W]` of the steps of `[B, T, W]`, of any number of them.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5.
    """
    T, W = x_BTW.shape[1:]
    dtype = torch.promote_types(x_BTW.dtype, torch.float32)
    step_T1 = torch.arange(T, device=x_BTW.device, dtype=dtype)[:, None]
    unit_W = torch.arange(W, device=x_BTW.device)
    angle_TW = step_T1 * torch.pow(10_000.0, -(unit_W - unit_W % 2).to(dtype) / W)
    return torch.where(unit_W % 2 == 1, angle_TW.cos(), angle_TW.sin()).to(x_BTW.dtype)


def joined(several: Iterable[Tokens]) -> Tokens:
    """The tokens of several modalities as one row of them."""
    parts = list(several)
    return Tokens(
        x_BTW=torch.cat([part.x_BTW for part in parts], dim=1),
        there_BT=torch.cat([part.there_BT for part in parts], dim=1),
    )


def keys_or_all(there_BT: Tensor) -> Tensor:
    """Which tokens are keys: those that are there; all in a row that has none.

    A softmax over no key at all is not a number. The outcome for such a row is of no account.
    """
    return there_BT | ~there_BT.any(dim=1, keepdim=True)


def mean_of_present(x_BMW: Tensor, present_BM: Tensor) -> Tensor:
    """Mean `[B, W]` over what is present, modalities or tokens; zero where nothing is."""
    kept_BMW = torch.where(present_BM[:, :, None], x_BMW, 0.0)
    return kept_BMW.sum(dim=1) / present_BM.sum(dim=1, keepdim=True).clamp(min=1)


class CrossAttentionBlock(nn.Module):
    """One transformer layer in which one modality's tokens ask those of others.

    Where none of the others is there, nothing is added but the layer's own network. Norms first,
    as in Tsai et al. 2019 (MulT), https://arxiv.org/abs/1906.00295, section 3.
    """

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(width)
        self.key_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropouts = nn.ModuleList([RowDropout(dropout), RowDropout(dropout)])

    def forward(self, x_BTW: Tensor, asked: Tokens) -> Tensor:
        """`x_BTW` after it has asked the tokens `asked`, `[B, K, W]`."""
        q_BHTX = self._by_head(self.query(self.query_norm(x_BTW)))
        k_BKW, v_BKW = self.key_value(self.key_norm(asked.x_BTW)).chunk(2, dim=-1)
        mixed_BHTX = F.scaled_dot_product_attention(
            q_BHTX,
            self._by_head(k_BKW),
            self._by_head(v_BKW),
            attn_mask=keys_or_all(asked.there_BT)[:, None, None, :],
        )
        mixed_BTW = mixed_BHTX.transpose(1, 2).reshape(x_BTW.shape)
        attended_BTW = torch.where(asked.present_B[:, None, None], self.attended(mixed_BTW), 0.0)
        x_BTW = x_BTW + self.dropouts[0](attended_BTW)
        return x_BTW + self.dropouts[1](self.mlp(x_BTW))

    def _by_head(self, x_BTW: Tensor) -> Tensor:
        B, T, W = x_BTW.shape
        return x_BTW.view(B, T, self.heads, W // self.heads).transpose(1, 2)
