"""Contrastive alignment: one tower a modality into a shared space of unit vectors.

Radford et al. 2021 (CLIP), https://arxiv.org/abs/2103.00020; with a sigmoid, Zhai et al. 2023
(SigLIP), https://arxiv.org/abs/2303.15343; for more than two modalities, over every pair, or with
one of them as the anchor of all others: Girdhar et al. 2023 (ImageBind),
https://arxiv.org/abs/2305.05665. With labels, rows of one class may count as belonging together:
Khosla et al. 2020 (SupCon), https://arxiv.org/abs/2004.11362.

Suffixes of tensors: B rows, M modalities, W hidden width, S width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Batch
from training.losses.contrastive import info_nce, modality_pairs
from training.losses.sigmoid import sigmoid_loss
from training.models.grad_cache import in_chunks
from training.models.layers import Input, PerModality, pooled, projections
from training.models.shared_space import SharedSpace

LARGEST_LOG_SCALE = math.log(100)
"""The inverse temperature is held at 100 at most, as in CLIP, section 2.5."""
FIRST_BIAS = -10.0
"""Of the sigmoid, as in SigLIP, section 3.2: most pairs of rows do not belong together."""
ContrastiveLoss = Literal["infonce", "sigmoid"]


class Alignment(SharedSpace):
    """Towers that learn from which embeddings belong to one sample, and need no labels."""

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        outputs: int,
        width: int,
        dropout: float,
        dim: int,
        temperature: float,
        learn_temperature: bool = True,
        loss: ContrastiveLoss = "infonce",
        anchor: str | None = None,
        by_class: bool = False,
        cache_rows: int | None = None,
    ) -> None:
        super().__init__(inputs, outputs=outputs, dim=dim)
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.heads = PerModality({m: nn.Linear(width, dim, bias=False) for m in inputs})
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(temperature)), requires_grad=learn_temperature
        )
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS)) if loss == "sigmoid" else None
        self.least_log_scale = min(0.0, -math.log(temperature))
        place = None if anchor is None else self.modalities.index(anchor)
        self.pairs = modality_pairs(len(self.modalities), anchor=place)
        self.by_class = by_class
        self.cache_rows = cache_rows

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, a scalar."""
        return self.log_scale.exp()

    def embed(
        self, modality: str, *, x: Tensor, present_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        hidden_BW = pooled(self.projections[modality], x, present_B, mask_BT)
        return F.normalize(self.heads[modality](hidden_BW), dim=-1)

    def loss_share(self, batch: Batch) -> Tensor:
        """This worker's share of the contrastive loss over the batch of all workers.

        Where the batch numbers all modalities' payloads, rows with the same one count as right;
        by class, so do rows whose target is the same.
        """
        aligned_BMS, present_BM = in_chunks(
            self.embed_all, batch.inputs, model=self, rows=self.cache_rows
        )
        payloads_BM = None
        if all(m in batch.payloads for m in self.modalities):
            payloads_BM = torch.stack([batch.payloads[m] for m in self.modalities], dim=1)
        if self.bias is None:
            return info_nce(
                aligned_BMS,
                presence_BM=present_BM,
                scale=self.scale,
                pairs=self.pairs,
                payloads_BM=payloads_BM,
                classes_B=batch.targets if self.by_class else None,
            )
        return sigmoid_loss(
            aligned_BMS,
            presence_BM=present_BM,
            scale=self.scale,
            bias=self.bias,
            pairs=self.pairs,
            payloads_BM=payloads_BM,
            classes_B=batch.targets if self.by_class else None,
        )

    def after_step(self) -> None:
        """Hold the inverse temperature within 1..100, or from where it began if that is less."""
        with torch.no_grad():
            self.log_scale.clamp_(self.least_log_scale, LARGEST_LOG_SCALE)
