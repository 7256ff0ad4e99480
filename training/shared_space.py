"""One space of unit vectors for all modalities, with a linear probe on top.

Suffixes of tensors: B rows, M modalities, S width of the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedSpace(nn.Module):
    """Base of the models that align modalities; the probe makes them classifiers too.

    The probe is fitted afterwards, on the mean of a row's present embeddings; where none is
    present the answer is the prior of the classes.
    """

    probe_weight_CS: Tensor
    probe_bias_C: Tensor
    prior_C: Tensor

    def __init__(self, modalities: Iterable[str], *, outputs: int, dim: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        """Their order is that of M."""
        self.register_buffer("probe_weight_CS", torch.zeros(outputs, dim))
        self.register_buffer("probe_bias_C", torch.zeros(outputs))
        self.register_buffer("prior_C", torch.zeros(outputs))

    def embed(
        self, modality: str, *, x: Tensor, present_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        """One modality's unit vectors `[B, S]` of its embeddings, zero where it is missing."""
        raise NotImplementedError

    def embed_all(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """All modalities' unit vectors `[B, M, S]`, zero where one is missing, and presence."""
        vectors = [
            self.embed(m, x=embeddings[m], present_B=presence[m], mask_BT=masks.get(m))
            for m in self.modalities
        ]
        return torch.stack(vectors, dim=1), torch.stack([presence[m] for m in self.modalities], 1)

    def fuse(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """Mean of a row's present unit vectors `[B, S]`; zero where none is present."""
        aligned_BMS, present_BM = self.embed_all(embeddings, presence, masks)
        return aligned_BMS.sum(dim=1) / present_BM.sum(dim=1, keepdim=True).clamp(min=1)

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> Tensor:
        """The probe's outputs `[B, C]`."""
        logits_BC = F.linear(
            self.fuse(embeddings, presence, masks), self.probe_weight_CS, self.probe_bias_C
        )
        some_B1 = torch.stack([presence[m] for m in self.modalities], dim=1).any(1, keepdim=True)
        return torch.where(some_B1, logits_BC, self.prior_C)

    @torch.no_grad()
    def set_probe(self, *, weight_CS: Tensor, bias_C: Tensor, prior_C: Tensor) -> None:
        """Take over a fitted linear probe, and the log shares of the classes."""
        self.probe_weight_CS.copy_(weight_CS)
        self.probe_bias_C.copy_(bias_C)
        self.prior_C.copy_(prior_C)
