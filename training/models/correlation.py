"""Canonical correlation: linear maps of all modalities into one space, in closed form.

Hotelling 1936, https://doi.org/10.1093/biomet/28.3-4.321; for more than two modalities the sum
of their correlations under a constraint on their mean variance (Kettenring 1971,
https://doi.org/10.1093/biomet/58.3.433), of which two are the special case. Regularised by a
ridge (Vinod 1976, https://doi.org/10.1016/0304-4076(76)90010-5).

Suffixes of tensors: B rows, M modalities, D width of a modality, X their widths together,
S width of the shared space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from training.batch import Batch
from training.models.layers import Input, PerModality, pooled
from training.models.shared_space import SharedSpace
from training.workers import sum_over_workers, worker_count

NO_CORRELATION = 1e-9
"""A direction that is correlated less than this is none, and is left at zero."""


class CanonicalCorrelation(SharedSpace):
    """A linear map a modality, such that what one sample's modalities are mapped to correlates."""

    def __init__(
        self, inputs: Mapping[str, Input], *, outputs: int, dim: int, regularisation: float
    ) -> None:
        super().__init__(inputs, outputs=outputs, dim=dim)
        self.maps = {m: _Map(source, dim=dim) for m, source in inputs.items()}
        self.of_modalities = PerModality(self.maps)
        self.regularisation = regularisation
        self.register_buffer("correlations_S", torch.zeros(dim))

    correlations_S: Tensor
    """Of the training rows, regularised: the mean over the pairs of modalities, descending."""

    def embed(
        self, modality: str, *, x: Tensor, present_B: Tensor, mask_BT: Tensor | None = None
    ) -> Tensor:
        layer = self.maps[modality]
        return F.normalize(pooled(layer, x, present_B, mask_BT) @ layer.weight_DS, dim=-1)

    def loss_share(self, batch: Batch) -> Tensor:
        """This worker's share of 1 − the mean correlation of the variates, over pairs and S.

        As half the mean squared difference, which it is for variates of variance one.
        """
        inputs, present_BM = self._standardised(batch)
        variates = [x_BD @ self.maps[m].weight_DS for m, x_BD in inputs.items()]
        pairs = list(combinations(range(len(self.modalities)), 2))
        sums, counts = [], []
        for a, b in pairs:
            both_B = present_BM[:, a] & present_BM[:, b]
            distance_B = (variates[a] - variates[b]).square().mean(dim=1) / 2
            sums.append(torch.where(both_B, distance_B, 0.0).sum())
            counts.append(both_B.sum())
        count = sum_over_workers(torch.stack(counts))
        return (torch.stack(sums) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)

    @torch.no_grad()
    def solve(self, batches: Iterable[Batch]) -> None:
        """Fit the maps to the training rows, of which each worker gives its own part.

        With C the covariances between modalities a and b, over the rows that have both, and R
        those within each, with the ridge added: the leading eigenvectors of R^-½ C R^-½, which
        for two modalities are the singular vectors of Hotelling's matrix.
        """
        moments = self._moments(batches)
        covariance_XX, widths = moments.covariance(), moments.widths
        starts = [sum(widths[:i]) for i in range(len(widths) + 1)]
        parts = [slice(a, b) for a, b in pairwise(starts)]
        factors = [self._factor(covariance_XX[part, part]) for part in parts]
        between_XX = torch.zeros_like(covariance_XX)
        for a, b in combinations(range(len(parts)), 2):
            half = torch.linalg.solve_triangular(
                factors[a], covariance_XX[parts[a], parts[b]], upper=False
            )
            whole = torch.linalg.solve_triangular(factors[b], half.T, upper=False).T
            between_XX[parts[a], parts[b]] = whole
            between_XX[parts[b], parts[a]] = whole.T
        values, vectors = torch.linalg.eigh(between_XX)
        found = min(len(self.correlations_S), int((values > NO_CORRELATION).sum()))
        leading_XS = vectors.flip(1)[:, :found]
        # An eigenvector's sign is chance: its largest entry is made positive.
        largest_S = leading_XS.gather(0, leading_XS.abs().argmax(dim=0, keepdim=True))
        leading_XS = leading_XS * largest_S.sign() * len(parts) ** 0.5
        self.correlations_S[:found] = values.flip(0)[:found] / (len(parts) - 1)
        for layer, factor, part in zip(self.maps.values(), factors, parts, strict=True):
            weight_DS = torch.linalg.solve_triangular(factor.T, leading_XS[part], upper=True)
            layer.weight_DS.zero_()[:, :found] = weight_DS
        if worker_count() > 1:
            for value in self.state_dict().values():
                dist.broadcast(value, src=0)

    def _standardised(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs per modality `[B, D]`, zero where one is missing, and presence `[B, M]`."""
        embeddings, presence, masks = batch.inputs
        inputs = {
            m: pooled(layer, embeddings[m], presence[m], masks.get(m))
            for m, layer in self.maps.items()
        }
        return inputs, torch.stack([presence[m] for m in self.modalities], dim=1)

    def _moments(self, batches: Iterable[Batch]) -> _Moments:
        widths = [layer.weight_DS.shape[0] for layer in self.maps.values()]
        moments = _Moments(widths=widths, device=self.correlations_S.device)
        for batch in batches:
            inputs, present_BM = self._standardised(batch)
            moments.add(torch.cat(list(inputs.values()), dim=1), present_BM=present_BM)
        moments.sum_over_workers()
        return moments

    def _factor(self, covariance_DD: Tensor) -> Tensor:
        """The lower Cholesky factor of a modality's own covariance with the ridge added."""
        variances_D = covariance_DD.diagonal()
        ridge = self.regularisation * variances_D.mean().clamp(min=torch.finfo(torch.float32).tiny)
        return torch.linalg.cholesky(covariance_DD + ridge * torch.eye(len(variances_D)).to(ridge))


class _Map(nn.Module):
    """One modality's mean, deviation and map."""

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, source: Input, *, dim: int) -> None:
        super().__init__()
        mean = torch.zeros(source.dim) if source.mean is None else source.mean
        std = torch.ones(source.dim) if source.std is None else source.std
        self.register_buffer("mean_D", mean.clone())
        self.register_buffer("std_D", std.clone())
        self.weight_DS = nn.Parameter(torch.zeros(source.dim, dim), requires_grad=False)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Standardised, and zero where it is not there."""
        return torch.where(there.unsqueeze(-1), (x - self.mean_D) / self.std_D, 0.0)


class _Moments:
    """Sums over rows, from which covariances between any two modalities follow, in float64."""

    def __init__(self, *, widths: list[int], device: torch.device) -> None:
        width, count = sum(widths), len(widths)
        self.widths = widths
        self.products_XX = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.sums_XM = torch.zeros(width, count, dtype=torch.float64, device=device)
        """Of a dimension over the rows that have another modality as well."""
        self.counts_MM = torch.zeros(count, count, dtype=torch.float64, device=device)

    def add(self, x_BX: Tensor, *, present_BM: Tensor) -> None:
        """Add rows that are zero where a modality is missing."""
        there_BM = present_BM.to(x_BX.dtype)
        self.products_XX += x_BX.T @ x_BX
        self.sums_XM += x_BX.T @ there_BM
        self.counts_MM += there_BM.T @ there_BM

    def sum_over_workers(self) -> None:
        """Join what the workers have each added."""
        for value in (self.products_XX, self.sums_XM, self.counts_MM):
            value.copy_(sum_over_workers(value))

    def covariance(self) -> Tensor:
        """`[X, X]`; each block over the rows that have both of its modalities."""
        of_X = torch.repeat_interleave(
            torch.arange(len(self.widths)), torch.tensor(self.widths)
        ).to(self.counts_MM.device)
        counts_XX = self.counts_MM[of_X][:, of_X].clamp(min=1)
        means_XX = self.sums_XM[:, of_X] / counts_XX
        return self.products_XX / counts_XX - means_XX * means_XX.T
