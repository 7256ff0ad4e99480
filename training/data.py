"""A snapshot in memory, and the plan of which rows are in which step on which worker.

The embeddings are read once, in the snapshot's row order, and never moved: a batch is an index
into them. All draws are functions of (seed, epoch, step), so every worker knows the whole plan
before the first step, and the number of workers changes no batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from features.shard import Embeddings
from features.snapshot import Snapshot
from features.spec import SPLITS
from features.store import Store
from training.batch import Batch
from training.spec import InputSpec
from training.targets import ABSENT, Column, Untrainable, is_labelled
from training.task import ClassificationSpec, TaskSpec
from training.tasks import Task, read_targets

CONSTANT = 1e-4
"""A dimension whose deviation is below this share of the modality's largest is left unscaled."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """The samples of a snapshot in their common row order, all in memory."""

    sample_ids: pa.Array
    """Text `[N]`."""
    embeddings: Mapping[str, torch.Tensor]
    """Per modality float32 `[P, D]`: the rows that are present, and no others."""
    index: Mapping[str, torch.Tensor]
    """Per modality int64 `[N]`: where a row's embedding stands, -1 if it has none."""
    targets: torch.Tensor
    """As the task takes them: class indices int64 `[N]`, -1 for an unlabelled row, or numbers
    float32 `[N, O]`, NaN for it."""
    split: Mapping[str, torch.Tensor]
    """Row numbers of each split, int64, ascending; labelled and unlabelled."""
    task: Task

    @property
    def rows(self) -> int:
        return len(self.targets)

    @property
    def classes(self) -> tuple[Any, ...]:
        """What the task's outputs stand for: classes or labels, or columns of numbers."""
        return self.task.names

    def labelled(self, split: str) -> torch.Tensor:
        """Numbers of a split's labelled rows, ascending."""
        rows = self.split[split]
        return rows[is_labelled(self.targets[rows])]

    def with_modalities(self, split: str, *, modalities: Sequence[str], least: int) -> torch.Tensor:
        """Numbers of a split's rows that have at least so many of the modalities, ascending."""
        rows = self.split[split]
        present = sum((self.index[m][rows] != ABSENT).long() for m in modalities)
        return rows[torch.as_tensor(present >= least)]

    def select(self, modalities: Sequence[str]) -> EmbeddingTable:
        """The same rows with some of the modalities, nothing copied."""
        return replace(
            self,
            embeddings={m: self.embeddings[m] for m in modalities},
            index={m: self.index[m] for m in modalities},
        )

    def batch(
        self,
        rows: torch.Tensor,
        *,
        modalities: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """The rows of some numbers `[B]`, in that order; all modalities if none are named."""
        embeddings, presence = {}, {}
        for modality in self.embeddings if modalities is None else modalities:
            place = self.index[modality][rows]
            values = self.embeddings[modality]
            if len(values):
                embeddings[modality] = values[place.clamp(min=0)].to(device)
            else:
                embeddings[modality] = values.new_empty(len(rows), values.shape[1], device=device)
            presence[modality] = (place != ABSENT).to(device)
        return Batch(
            embeddings=embeddings, presence=presence, targets=self.targets[rows].to(device)
        )

    def inputs(self, modalities: Sequence[str]) -> dict[str, InputSpec]:
        """Per modality the width, mean and deviation of the present training rows.

        Untrainable for a modality that no training row has, or with values that are not finite.
        """
        return {modality: self._input(modality) for modality in modalities}

    def _input(self, modality: str) -> InputSpec:
        place = self.index[modality][self.split["train"]]
        values = self.embeddings[modality][place[place != ABSENT]].double()
        if not len(values):
            raise Untrainable(
                f"modality {modality!r}: none of the {len(place)} training rows has an embedding; "
                "take it out of the candidates, or see the quarantine"
            )
        std, mean = torch.std_mean(values, dim=0, correction=0)
        if not (std.isfinite().all() and mean.isfinite().all()):
            raise Untrainable(
                f"modality {modality!r}: an embedding of the training rows is not finite; "
                "its encoder is at fault"
            )
        scale = torch.where(std > CONSTANT * std.max(), std, torch.ones_like(std))
        return InputSpec(dim=values.shape[1], mean=mean.float(), std=scale.float())


def load_table(
    store: Store, snapshot: Snapshot, *, task: TaskSpec, modalities: Sequence[str]
) -> EmbeddingTable:
    """Read a snapshot's samples and the embeddings of some modalities, once.

    Untrainable if a split has no labelled row, or the labels leave nothing to learn.
    """
    columns = [f"target.{name}" for name in task.targets]
    samples = store.read_samples(snapshot, columns=["sample_id", "split", *columns])
    return table_of(
        sample_ids=samples["sample_id"],
        split=samples["split"],
        labels={name: samples[f"target.{name}"] for name in task.targets},
        embeddings={
            modality: store.read_embeddings(snapshot, modality=modality) for modality in modalities
        },
        task=task,
    )


def table_of(
    *,
    sample_ids: pa.ChunkedArray | pa.Array,
    split: pa.ChunkedArray | pa.Array,
    labels: Column | Mapping[str, Column],
    embeddings: Mapping[str, Embeddings],
    task: TaskSpec | None = None,
) -> EmbeddingTable:
    """A table of columns in row order and embeddings with their row numbers.

    `labels` are the columns of the task's targets by name; one column alone is that of a
    classification, unless `task` says otherwise.
    """
    task = task or ClassificationSpec(target="label")
    if not isinstance(labels, Mapping):
        labels = {task.targets[0]: labels}
    names = np.asarray(split.to_pylist(), dtype=object)
    splits = {name: torch.from_numpy(np.flatnonzero(names == name)) for name in SPLITS}
    targets = read_targets(task, labels, split=splits, rows=len(names))
    index = {}
    values = {}
    for modality, part in embeddings.items():
        place = np.full(len(names), ABSENT, np.int64)
        place[part.rows] = np.arange(len(part.rows))
        index[modality] = torch.from_numpy(place)
        values[modality] = torch.from_numpy(part.values.astype(np.float32))
    return EmbeddingTable(
        sample_ids=sample_ids.combine_chunks()
        if isinstance(sample_ids, pa.ChunkedArray)
        else sample_ids,
        embeddings=values,
        index=index,
        targets=targets.values,
        split=splits,
        task=targets.task,
    )


def step_count(rows: int, *, batch_size: int) -> int:
    """Number of global batches in which all the rows are taken once."""
    return math.ceil(rows / batch_size)


def step_rows(rows: torch.Tensor, *, step: int, steps: int) -> torch.Tensor:
    """The rows of one global batch out of `steps`, whose sizes differ by one at most."""
    start, stop = step * len(rows) // steps, (step + 1) * len(rows) // steps
    return rows[start:stop]


def worker_slice(rows: int, *, rank: int, workers: int) -> slice:
    """A worker's contiguous part of a global batch; the parts' sizes differ by one at most."""
    return slice(rank * rows // workers, (rank + 1) * rows // workers)


def epoch_order(rows: torch.Tensor, *, seed: int, epoch: int) -> torch.Tensor:
    """The rows in the order of an epoch: a permutation drawn from (seed, epoch)."""
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return rows[torch.from_numpy(order)]


def kept_modalities(
    *, modalities: Sequence[str], rows: int, probability: float, seed: int, epoch: int, step: int
) -> dict[str, torch.Tensor]:
    """Per modality bool `[rows]` over a global batch: False where modality dropout takes it away.

    ModDrop: Neverova et al. 2015, https://arxiv.org/abs/1501.00102, section 3.3.
    """
    drawn = np.random.default_rng([seed, epoch, step, 1]).random((len(modalities), rows))
    return {m: torch.from_numpy(row >= probability) for m, row in zip(modalities, drawn)}
