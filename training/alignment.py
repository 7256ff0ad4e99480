"""Contrastive alignment: one tower a modality into a shared space of unit vectors.

Radford et al. 2021 (CLIP), https://arxiv.org/abs/2103.00020; for more than two modalities,
Girdhar et al. 2023 (ImageBind), https://arxiv.org/abs/2305.05665, here over every pair.

Suffixes of tensors: B rows, M modalities, S width of the shared space, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Batch
from training.contrastive import info_nce
from training.layers import Input, PerModality, project_all, projections

LARGEST_LOG_SCALE = math.log(100)
"""The inverse temperature is held at 100 at most, as in CLIP, section 2.5."""


class Alignment(nn.Module):
    """Towers into a shared space, with a linear probe on top that makes it a classifier too.

    The towers learn from which embeddings belong to one sample, and need no labels. The probe is
    fitted afterwards, on the mean of a row's present embeddings; where none is present the
    answer is the prior of the classes.
    """

    probe_weight_CS: Tensor
    probe_bias_C: Tensor
    prior_C: Tensor

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        outputs: int,
        width: int,
        dropout: float,
        dim: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.heads = PerModality({m: nn.Linear(width, dim, bias=False) for m in inputs})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.register_buffer("probe_weight_CS", torch.zeros(outputs, dim))
        self.register_buffer("probe_bias_C", torch.zeros(outputs))
        self.register_buffer("prior_C", torch.zeros(outputs))

    @property
    def scale(self) -> Tensor:
        """The inverse temperature, a scalar."""
        return self.log_scale.exp()

    def embed_all(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """All modalities' unit vectors `[B, M, S]`, zero where one is missing, and presence."""
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        aligned = [
            F.normalize(self.heads[m](hidden_BMW[:, i]), dim=-1) for i, m in enumerate(self.heads)
        ]
        return torch.stack(aligned, dim=1), present_BM

    def fuse(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """Mean of a row's present unit vectors `[B, S]`; zero where none is present."""
        aligned_BMS, present_BM = self.embed_all(embeddings, presence, masks)
        return aligned_BMS.sum(dim=1) / present_BM.sum(dim=1, keepdim=True).clamp(min=1)

    def loss_share(self, batch: Batch) -> Tensor:
        """This worker's share of the contrastive loss over the batch of all workers."""
        aligned_BMS, present_BM = self.embed_all(*batch.inputs)
        return info_nce(aligned_BMS, presence_BM=present_BM, scale=self.scale)

    def after_step(self) -> None:
        """Hold the inverse temperature within 1..100."""
        with torch.no_grad():
            self.log_scale.clamp_(0.0, LARGEST_LOG_SCALE)

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        logits_BC = F.linear(
            self.fuse(embeddings, presence, masks), self.probe_weight_CS, self.probe_bias_C
        )
        some_B1 = torch.stack([presence[m] for m in self.projections], dim=1).any(1, keepdim=True)
        return torch.where(some_B1, logits_BC, self.prior_C)

    @torch.no_grad()
    def set_probe(self, *, weight_CS: Tensor, bias_C: Tensor, prior_C: Tensor) -> None:
        """Take over a fitted linear probe, and the log shares of the classes."""
        self.probe_weight_CS.copy_(weight_CS)
        self.probe_bias_C.copy_(bias_C)
        self.prior_C.copy_(prior_C)
