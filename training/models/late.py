"""Late fusion: one classifier a modality, whose outputs are joined.

Suffixes of tensors: B rows, W hidden width, M modalities, C outputs of the task, F features of
the meta-head, K coins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.fusion import FusionModel
from training.models.layers import Input, PerModality, RowDropout, project_all, projections

COINS = 16
"""Binary draws that make one uniform number."""


class LateFusion(FusionModel):
    """A classifier a modality; the mean of the present ones' logits, equal or by learned weights.

    The weights of the present modalities sum to one; the prior of the classes is added, and
    stands alone where all are missing.
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        outputs: int,
        width: int,
        dropout: float,
        combine: Literal["mean", "learned"] = "learned",
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.heads = PerModality({m: nn.Linear(width, outputs, bias=False) for m in inputs})
        self.weight_M = nn.Parameter(torch.zeros(len(inputs))) if combine == "learned" else None
        self.prior_C = nn.Parameter(torch.zeros(outputs))

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, share_BM = self._shares(embeddings, presence, masks)
        return (share_BM[:, :, None] * hidden_BMW).sum(dim=1)

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, share_BM = self._shares(embeddings, presence, masks)
        answers_BMC = _answers(self.heads, hidden_BMW)
        return self.prior_C + (share_BM[:, :, None] * answers_BMC).sum(dim=1)

    def _shares(
        self, embeddings: Tensors, presence: Tensors, masks: Tensors
    ) -> tuple[Tensor, Tensor]:
        """The projections `[B, M, W]`, and the weights of the present ones `[B, M]`."""
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        if self.weight_M is None:
            return hidden_BMW, _equal_shares(present_BM, like=hidden_BMW)
        # A finite floor: with -inf, a row without any modality would be 0 / 0.
        floor = torch.finfo(hidden_BMW.dtype).min
        weight_BM = self.weight_M.expand_as(present_BM).masked_fill(~present_BM, floor)
        return hidden_BMW, weight_BM.softmax(dim=1).masked_fill(~present_BM, 0.0)


class RowCoins(RowDropout):
    """Coins `[B, K]` that are tossed anew at every step, and belong to rows as dropout does.

    They are as fair whatever the candidate's dropout.
    """

    of_candidate: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(0.5)

    def toss(self, present_BM: Tensor) -> Tensor:
        """bool `[B, K]` for the rows of `present_BM`."""
        heads_BK: Tensor = self(torch.ones(len(present_BM), COINS, device=present_BM.device)) > 0
        return heads_BK


class StackedFusion(FusionModel):
    """A classifier a modality, and a linear meta-head that answers from their logits.

    Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1, with the linear level-1 model of
    Ting and Witten 1999, https://arxiv.org/abs/1105.5466. It takes the present classifiers'
    logits, divided by their number, and which of them are present; at first it is their mean.

    A classifier learns to answer alone, the meta-head what to make of the answers: no gradient
    passes from the meta-head to the classifiers. Both learn from one loss, for while training
    about half of the rows, drawn at random, are answered by one of their present classifiers
    alone, the others by the meta-head.
    """

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.projections = projections(inputs, width=width, dropout=dropout)
        self.heads = PerModality({m: nn.Linear(width, outputs) for m in inputs})
        self.meta = nn.Linear(len(inputs) * outputs + len(inputs), outputs)
        with torch.no_grad():
            mean_CF = torch.eye(outputs).repeat(1, len(inputs))
            self.meta.weight.copy_(torch.cat([mean_CF, torch.zeros(outputs, len(inputs))], dim=1))
            self.meta.bias.zero_()
        self.coins = RowCoins()

    @property
    def prior_C(self) -> Tensor:
        """The answer where all modalities are missing."""
        return self.meta.bias

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        return (_equal_shares(present_BM, like=hidden_BMW)[:, :, None] * hidden_BMW).sum(dim=1)

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        hidden_BMW, present_BM = project_all(self.projections, embeddings, presence, masks)
        answers_BMC = _answers(self.heads, hidden_BMW)
        share_BM = _equal_shares(present_BM, like=hidden_BMW)
        logits_BF = (share_BM[:, :, None] * answers_BMC.detach()).flatten(1)
        stacked_BC: Tensor = self.meta(torch.cat([logits_BF, present_BM.to(logits_BF)], dim=1))
        if not self.training:
            return stacked_BC
        alone_BM = self._answering_alone(present_BM)
        alone_BC = torch.where(alone_BM[:, :, None], answers_BMC, 0.0).sum(dim=1)
        return torch.where(alone_BM.any(dim=1, keepdim=True), alone_BC, stacked_BC)

    def _answering_alone(self, present_BM: Tensor) -> Tensor:
        """bool `[B, M]`: in half of the rows one of the present, each as likely; else none."""
        place_K = torch.arange(1, COINS + 1, device=present_BM.device)
        uniform_B1 = (self.coins.toss(present_BM) * 0.5**place_K).sum(dim=1, keepdim=True)
        count_B1 = present_BM.sum(dim=1, keepdim=True)
        # From a half on, there is no modality of that number.
        number_B1 = (2 * uniform_B1 * count_B1).floor().long()
        return present_BM & (present_BM.cumsum(dim=1) - 1 == number_B1)


def _answers(heads: PerModality, hidden_BMW: Tensor) -> Tensor:
    """The logits of each modality's classifier, `[B, M, C]`."""
    return torch.stack([heads[m](hidden_BMW[:, i]) for i, m in enumerate(heads)], dim=1)


def _equal_shares(present_BM: Tensor, *, like: Tensor) -> Tensor:
    """Weights `[B, M]` that are equal for the present modalities, and sum to one."""
    count_B1 = present_BM.sum(dim=1, keepdim=True).clamp(min=1)
    return present_BM.to(like.dtype) / count_B1
