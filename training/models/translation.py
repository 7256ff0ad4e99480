"""Mapping between modalities: from the embedding of one to that of another, forward and back.

For every ordered pair of modalities a generator draws the target's embedding from the source's
and from noise. It is fitted by regression, or against a discriminator that sees a pair and says
whether it is one of a sample: a conditional adversarial network (Mirza and Osindero 2014,
https://arxiv.org/abs/1411.1784, equation 2). What comes back from the way there and back may be
held to what went in (CycleGAN, Zhu et al. 2017, https://arxiv.org/abs/1703.10593, equation 2).

Suffixes of tensors: B rows, D width of an embedding, W hidden width, N width of the noise,
S widths of all modalities together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from training.batch import Batch, Tensors
from training.models.layers import CLAMP, Input, PerModality, RowDropout
from training.models.probed import Probed
from training.workers import mean_share

PLACES = 16
"""Binary places of a number drawn from 0..1."""

Adversary = Literal["none", "hinge", "wgan-gp"]


class Standardised(nn.Module):
    """One modality's embeddings `[B, D]` or, of sequences, their mean, as deviations `[B, D]`."""

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, source: Input) -> None:
        super().__init__()
        mean = torch.zeros(source.dim) if source.mean is None else source.mean
        std = torch.ones(source.dim) if source.std is None else source.std
        self.register_buffer("mean_D", mean.clone())
        self.register_buffer("std_D", std.clone())
        self.dim = source.dim

    def forward(self, x: Tensor, present_B: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Zero, which is the mean, where the modality is missing."""
        if mask_BT is not None:
            steps_BT1 = (mask_BT & present_B[:, None]).unsqueeze(-1)
            x = torch.where(steps_BT1, x, 0.0).sum(dim=1) / steps_BT1.sum(dim=1).clamp(min=1)
        scaled = (x - self.mean_D) / self.std_D
        return torch.where(present_B[:, None], scaled, 0.0).clamp(-CLAMP, CLAMP)

    def restore(self, x_BD: Tensor) -> Tensor:
        """Deviations as embeddings again."""
        return x_BD * self.std_D + self.mean_D


class Coins(nn.Module):
    """Numbers that are 1 or -1 by chance while training, and 0 otherwise: `[B, N]`.

    They belong to rows of the global batch, as the draws of `RowDropout` do.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.draws = RowDropout(0.5)

    def forward(self, like_BX: Tensor) -> Tensor:
        coins_BN: Tensor = self.draws(like_BX.new_ones(like_BX.shape[0], self.count)) - 1
        return coins_BN


class Generator(nn.Module):
    """A target's deviations from a source's and noise; without noise where it does not train."""

    def __init__(self, *, source: int, target: int, width: int, noise: int) -> None:
        super().__init__()
        self.noise = Coins(noise)
        self.layers = nn.Sequential(
            nn.Linear(source + noise, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, target),
        )  # fmt: skip

    def forward(self, source_BD: Tensor) -> Tensor:
        made_BD: Tensor = self.layers(torch.cat([source_BD, self.noise(source_BD)], dim=1))
        return made_BD


class Discriminator(nn.Module):
    """How much a pair looks like one of a sample: a score `[B]`."""

    def __init__(self, *, source: int, target: int, width: int) -> None:
        super().__init__()
        # No norm over the batch, which would make a row's penalty one of other rows: Gulrajani
        # et al. 2017, section 4.
        self.layers = nn.Sequential(
            nn.Linear(source + target, width), nn.LayerNorm(width), nn.LeakyReLU(0.2),
            nn.Linear(width, width), nn.LayerNorm(width), nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )  # fmt: skip
        self.coins = Coins(PLACES)

    def forward(self, source_BD: Tensor, target_BD: Tensor) -> Tensor:
        score_B1: Tensor = self.layers(torch.cat([source_BD, target_BD], dim=1))
        return score_B1.squeeze(1)


class Translation(Probed):
    """A generator for each ordered pair of modalities, and a probe over what is filled in.

    The probe makes it a classifier: it sees the deviations of all modalities side by side, those
    that are missing as they are generated from the mean of what is there. `fill=False` leaves
    them at zero, so that what the generation gains can be told.
    """

    def __init__(
        self,
        inputs: Mapping[str, Input],
        *,
        outputs: int,
        width: int,
        noise: int,
        adversary: Adversary,
        regression_weight: float,
        adversary_weight: float,
        cycle_weight: float,
    ) -> None:
        total = sum(source.dim for source in inputs.values())
        super().__init__(inputs, outputs=outputs, dim=total)
        self.adversary = adversary
        self.regression_weight = regression_weight
        self.adversary_weight, self.cycle_weight = adversary_weight, cycle_weight
        self.scales = PerModality({m: Standardised(source) for m, source in inputs.items()})
        pairs = list(permutations(self.modalities, 2))
        self.generators = PerModality(
            {
                _pair(a, b): Generator(
                    source=inputs[a].dim, target=inputs[b].dim, width=width, noise=noise
                )
                for a, b in pairs
            }
        )
        self.discriminators = PerModality(
            {
                _pair(a, b): Discriminator(source=inputs[a].dim, target=inputs[b].dim, width=width)
                for a, b in pairs
            }
            if adversary != "none"
            else {}
        )
        self.fill = True

    def standardised(
        self, embeddings: Tensors, presence: Tensors, masks: Tensors
    ) -> dict[str, Tensor]:
        """Per modality the deviations `[B, D]`, zero where it is missing."""
        return {
            m: layer(embeddings[m], presence[m], masks.get(m)) for m, layer in self.scales.items()
        }

    def translate(self, source_BD: Tensor, *, source: str, target: str) -> Tensor:
        """The target's deviations `[B, D]` for the source's."""
        made_BD: Tensor = self.generators[_pair(source, target)](source_BD)
        return made_BD

    def compared(
        self,
        embeddings: Tensors,
        presence: Tensors,
        masks: Tensors,
        *,
        query: str,
        target: str,
    ) -> Tensor:
        """A translation and what it should be, `[B, 2, D]`: unit vectors of the deviations."""
        given = self.standardised(embeddings, presence, masks)
        made_BD = self.translate(given[query], source=query, target=target)
        return F.normalize(torch.stack([made_BD, given[target]], dim=1), dim=2)

    def filled(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> dict[str, Tensor]:
        """Per modality the deviations `[B, D]`; a missing one is the mean of its translations.

        Where nothing is present, there is nothing to translate, and it stays zero.
        """
        given = self.standardised(embeddings, presence, masks)
        if not self.fill:
            return given
        result = {}
        for target in self.modalities:
            total, count = torch.zeros_like(given[target]), presence[target].new_zeros(()).float()
            for source in self.modalities:
                if source != target:
                    there_B1 = presence[source][:, None]
                    made = self.translate(given[source], source=source, target=target)
                    total, count = total + torch.where(there_B1, made, 0.0), count + there_B1
            made_BD = total / count.clamp(min=1)
            result[target] = torch.where(presence[target][:, None], given[target], made_BD)
        return result

    def restored(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> dict[str, Tensor]:
        """Per modality an embedding `[B, D]`, of a missing one as it is filled in.

        Of what is given it is the input again, but for what lies far out and is clamped; of
        sequences the mean.
        """
        found = self.filled(embeddings, presence, masks)
        result = {}
        for m, layer in self.scales.items():
            assert isinstance(layer, Standardised)
            result[m] = layer.restore(found[m])
        return result

    def fuse(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """All deviations side by side `[B, S]`, given or filled in."""
        found = self.filled(embeddings, presence, masks)
        return torch.cat([found[m] for m in self.modalities], dim=1)

    def loss_share(self, batch: Batch) -> Tensor:
        """This worker's share of the losses of all pairs, over the rows that have both.

        Both sides of an adversarial loss are in it at once: the discriminator's with the
        generated rows held fixed, the generator's with the discriminator's weights held fixed. A
        step is one of simultaneous gradient descent (Mescheder, Nowozin and Geiger 2017,
        https://arxiv.org/abs/1705.10461, equation 3). In evaluation it is the squared error alone,
        since what the two sides say of one another does not fall as they get better.
        """
        given = self.standardised(*batch.inputs)
        shares: list[Tensor] = []
        for a, b in permutations(self.modalities, 2):
            both_B = batch.presence[a] & batch.presence[b]
            shares += self._pair_shares(given[a], given[b], source=a, target=b, both_B=both_B)
        return torch.stack(shares).sum() / (len(self.modalities) * (len(self.modalities) - 1))

    def _pair_shares(
        self, x_BD: Tensor, y_BD: Tensor, *, source: str, target: str, both_B: Tensor
    ) -> Iterator[Tensor]:
        made_BD = self.translate(x_BD, source=source, target=target)
        error_B = (made_BD - y_BD).pow(2).mean(dim=1)
        if not self.training:
            yield mean_share(error_B, rows_B=both_B)
            return
        if self.regression_weight:
            yield self.regression_weight * mean_share(error_B, rows_B=both_B)
        if self.cycle_weight:
            back_BD = self.translate(made_BD, source=target, target=source)
            yield self.cycle_weight * mean_share((back_BD - x_BD).abs().mean(dim=1), rows_B=both_B)
        if self.adversary == "none":
            return
        judge = self.discriminators[_pair(source, target)]
        assert isinstance(judge, Discriminator)
        fixed = {name: value.detach() for name, value in judge.named_parameters()}
        yield self.adversary_weight * mean_share(
            -functional_call(judge, fixed, (x_BD, made_BD)), rows_B=both_B
        )
        real_B, fake_B = judge(x_BD, y_BD), judge(x_BD, made_BD.detach())
        if self.adversary == "hinge":  # Lim and Ye 2017, https://arxiv.org/abs/1705.02894
            yield mean_share(F.relu(1 - real_B) + F.relu(1 + fake_B), rows_B=both_B)
            return
        # Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, equation 3.
        yield mean_share(fake_B - real_B, rows_B=both_B)
        yield mean_share(self._penalty(judge, x_BD, y_BD, made_BD.detach()), rows_B=both_B)

    def _penalty(self, judge: Discriminator, x_BD: Tensor, y_BD: Tensor, made_BD: Tensor) -> Tensor:
        """10 (‖∂score/∂target‖ − 1)² of each row, between the true and the generated target."""
        places = 0.5 ** torch.arange(1, PLACES + 1, device=y_BD.device, dtype=y_BD.dtype)
        share_B1 = ((judge.coins(y_BD) + 1) / 2 * places).sum(dim=1, keepdim=True)
        mixed_BD = (share_B1 * y_BD + (1 - share_B1) * made_BD).requires_grad_()
        score = judge(x_BD, mixed_BD).sum()
        (slope_BD,) = torch.autograd.grad(score, mixed_BD, create_graph=True)
        return 10 * ((slope_BD.pow(2).sum(dim=1) + 1e-12).sqrt() - 1).pow(2)


def _pair(source: str, target: str) -> str:
    return f"{source}->{target}".replace(".", "·")
