"""A model's answers to embeddings that are noisy, or that belong to other rows.

What is drawn depends on a row's place in the sample alone: it is the same on any number of workers.
Suffixes of tensors: B rows of a batch, R rows of the sample, D width of an embedding, T steps,
V variants, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from training.batch import ABSENT
from training.data.table import EmbeddingTable
from training.evaluation.answers import map_blocks

NOISE_LEVELS = (0.25, 0.5, 1.0, 2.0)
"""Standard deviations of the noise, those of the embedding's dimensions being 1."""
SWAPPED_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Of the rows that have a modality, how many are given that of another row."""
SEED = 0
BLOCK = 256
"""Rows that are impaired at once: noise takes as much memory as what it is added to."""


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Answers with one modality impaired, the more the higher the level."""

    modality: str
    kind: str
    """`noise` or `swapped`."""
    levels: tuple[float, ...]
    answers: tuple[np.ndarray, ...]
    """One `[R, O]` for each level."""


def perturbed_answers(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    rows: Tensor,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> list[Perturbed]:
    """A model's answers to some rows `[R]`, with each modality in turn noisy, then swapped.

    Noise is Gaussian, on the embedding standardised by the training rows; of a row the same at all
    levels, but for its size. A swapped embedding is that of another of the rows, never one's own.
    A modality that a row lacks stays missing. All workers take part.
    """
    spread = {m: _spread(table, modality=m, rows=rows) for m in modalities}
    there = {m: table.index[m][rows] != ABSENT for m in modalities}
    donors = {m: donors_of(there[m], key=place) for place, m in enumerate(modalities)}

    def answer(numbers_B: Tensor) -> Tensor:
        batch = table.batch(rows[numbers_B], modalities=modalities, device=device)
        found = [table.task.answers(model(*batch.inputs))]
        for place, m in enumerate(modalities):
            x = batch.embeddings[m]
            noise = _noise(x, numbers=numbers_B, key=place) * spread[m].to(x)
            for level in NOISE_LEVELS:
                noisy = {**batch.embeddings, m: x + level * noise}
                found.append(table.task.answers(model(noisy, batch.presence, batch.masks)))
            other = table.batch(rows[donors[m][numbers_B]], modalities=[m], device=device)
            swapped = replace(
                batch,
                embeddings={**batch.embeddings, m: other.embeddings[m]},
                masks={**batch.masks, **other.masks},
            )
            found.append(table.task.answers(model(*swapped.inputs)))
        return torch.stack(found, dim=1)

    answers_RVO = map_blocks(answer, count=len(rows), model=model, block=BLOCK).cpu().numpy()
    whole, variants = answers_RVO[:, 0], iter(np.moveaxis(answers_RVO[:, 1:], 1, 0))
    result = []
    for place, m in enumerate(modalities):
        noisy = tuple(next(variants) for _ in NOISE_LEVELS)
        result.append(Perturbed(modality=m, kind="noise", levels=NOISE_LEVELS, answers=noisy))
        other, swaps = next(variants), []
        for share in SWAPPED_SHARES:
            chosen = _chosen(there[m], share=share, key=place)
            swaps.append(np.where(chosen[:, None], other, whole))
        result.append(
            Perturbed(modality=m, kind="swapped", levels=SWAPPED_SHARES, answers=tuple(swaps))
        )
    return result


def donors_of(present_R: Tensor, *, key: int) -> Tensor:
    """For each row that has a modality another one that has it, int64 `[R]`, each once; for the
    others, and for one that is alone, itself.
    """
    there = np.flatnonzero(present_R.numpy())
    donors = np.arange(len(present_R))
    order = np.random.default_rng([SEED, 1, key]).permutation(there)
    donors[order] = np.roll(order, 1)
    return torch.from_numpy(donors)


def _chosen(present_R: Tensor, *, share: float, key: int) -> np.ndarray:
    """The rows of a share of those that have the modality, bool `[R]`; those of a lower share are
    among those of a higher one.
    """
    there = np.flatnonzero(present_R.numpy())
    order = np.random.default_rng([SEED, 2, key]).permutation(there)
    chosen = np.zeros(len(present_R), bool)
    chosen[order[: round(share * len(order))]] = True
    return chosen


def _noise(x: Tensor, *, numbers: Tensor, key: int) -> Tensor:
    """Standard normal noise of the shape of x, `[B, D]` or `[B, T, D]`; by row of the sample."""
    drawn = [
        np.random.default_rng([SEED, 3, key, number]).standard_normal(x.shape[1:], np.float32)
        for number in numbers.tolist()
    ]
    return torch.from_numpy(np.stack(drawn) if drawn else np.empty(x.shape, np.float32)).to(x)


def _spread(table: EmbeddingTable, *, modality: str, rows: Tensor) -> Tensor:
    """The deviation `[D]` of each dimension, as models standardise by it; over the rows themselves
    where the training rows are not embedded, as those of tuned encoders are not.
    """
    place = table.index[modality]
    some = [taken for taken in (table.split["train"], rows) if bool((place[taken] != ABSENT).any())]
    if not some:
        return torch.zeros(())  # there is nothing to make noisy
    if some[0] is rows:
        given = {f.name: getattr(table, f.name) for f in fields(EmbeddingTable) if f.init}
        table = EmbeddingTable(**{**given, "split": {**table.split, "train": rows}})
    found = table.inputs((modality,))[modality].std
    assert found is not None, "a table knows its statistics"
    return found
