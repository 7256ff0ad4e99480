"""One space of unit vectors for all modalities, with a linear probe on top.

Suffixes of tensors: B rows, M modalities, S width of the shared space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.batch import Tensors
from training.models.probed import Probed


class SharedSpace(Probed):
    """Base of the models that align modalities.

    The order of the modalities is that of M. The probe is fitted on the mean of a row's present
    embeddings.
    """

    def embed(
        self, modality: str, *, x: Tensor, present_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        """One modality's unit vectors `[B, S]` of its embeddings, zero where it is missing."""
        raise NotImplementedError

    def embed_all(
        self, embeddings: Tensors, presence: Tensors, masks: Tensors
    ) -> tuple[Tensor, Tensor]:
        """All modalities' unit vectors `[B, M, S]`, zero where one is missing, and presence."""
        vectors = [
            self.embed(m, x=embeddings[m], present_B=presence[m], mask_BT=masks.get(m))
            for m in self.modalities
        ]
        return torch.stack(vectors, dim=1), torch.stack([presence[m] for m in self.modalities], 1)

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """Mean of a row's present unit vectors `[B, S]`; zero where none is present."""
        aligned_BMS, present_BM = self.embed_all(embeddings, presence, masks)
        return aligned_BMS.sum(dim=1) / present_BM.sum(dim=1, keepdim=True).clamp(min=1)
