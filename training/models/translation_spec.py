"""The candidate that maps modalities onto one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import pydantic

from training.spec import CandidateSpec, InputSpec, NotNegative, Objective, Width

if TYPE_CHECKING:
    from torch import nn


class TranslationSpec(CandidateSpec):
    """A generator from each modality to each other, which fills in those that are missing.

    Judged by whether a translation finds its true counterpart, and by what a linear probe on
    what is filled in gains over one that sees the missing as missing.
    """

    objective: ClassVar[Objective] = "own"
    least_modalities: ClassVar[int] = 2
    untunable: ClassVar[str | None] = (
        "whose loss is least where the encoders say the same of everything, which would be learned"
    )

    type: Literal["translation"] = "translation"
    adversary: Literal["none", "hinge", "wgan-gp"] = "hinge"
    """What judges the generated embeddings beside the regression: nothing, which is the plain
    baseline, or a discriminator of pairs with the hinge loss or as Wasserstein GAN with gradient
    penalty."""
    regression_weight: NotNegative = 1.0
    """Weight of the mean squared error from the true counterpart."""
    adversary_weight: NotNegative = 0.1
    """Weight of what the discriminator says in the generator's loss."""
    cycle_weight: NotNegative = 0.1
    """Weight of the mean absolute error between what went in and what came back."""
    noise: Width = 16
    """Random numbers that a generator is given while training."""
    dropout: Literal[0] = 0
    """There is none."""
    modality_dropout: Literal[0] = 0
    """There is none: pairs are what is learned from."""

    @pydantic.model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.adversary == "none" and self.regression_weight == 0:
            raise ValueError(
                "with `adversary: none` and `regression_weight: 0` there is nothing to learn from; "
                "set one of them"
            )
        return self

    def build(self, *, inputs: Mapping[str, InputSpec], outputs: int) -> nn.Module:
        from training.models.translation import Translation

        return Translation(
            inputs,
            outputs=outputs,
            width=self.width,
            noise=self.noise,
            adversary=self.adversary,
            regression_weight=self.regression_weight,
            adversary_weight=self.adversary_weight,
            cycle_weight=self.cycle_weight,
        )
