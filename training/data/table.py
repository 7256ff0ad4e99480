"""The rows that are trained on, and the plan of which are in which step on which worker.

The embeddings keep the snapshot's row order: a batch is an index into them. All draws are
functions of (seed, epoch, step), so every worker knows the whole plan before the first step, and
neither the number of workers nor the memory they have changes a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from features.samples import groups_of
from features.shard import Embeddings
from features.snapshot import Snapshot
from features.spec import SPLITS
from features.store import Store
from training.batch import ABSENT, Batch
from training.data.payload_numbers import read_payload_numbers
from training.data.reading import read_vectors
from training.data.targets import Column, Untrainable, is_labelled
from training.data.vectors import HeldVectors, PlacedVectors, VectorReader, placed_vectors
from training.spec import InputSpec
from training.task import ClassificationSpec, TaskSpec
from training.tasks import Task, read_targets

CONSTANT = 1e-4
"""A dimension whose deviation is below this share of the modality's largest is left unscaled."""
BLOCK_VECTORS = 256
"""Vectors that the statistics take at once; their sum is float32, and that of all float64."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """The samples of a snapshot in their common row order.

    All that is known of a row is in memory, but for its embeddings, which may be read as they
    are needed.
    """

    sample_ids: pa.Array
    """Text `[N]`."""
    embeddings: Mapping[str, VectorReader]
    """Per modality the vectors `[V, D]` of the rows that are present, and no others."""
    index: Mapping[str, torch.Tensor]
    """Per modality int64 `[N]`: the place of a row's embedding, -1 if it has none."""
    starts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Of the modalities that are sequences, int64 `[P + 1]`: the embedding at place p is vectors
    `starts[p]` to `starts[p + 1]`. Of the others it is vector p."""
    targets: torch.Tensor
    """As the task takes them: class indices int64 `[N]`, -1 for an unlabelled row, or numbers
    float32 `[N, O]`, NaN for it."""
    split: Mapping[str, torch.Tensor]
    """Row numbers of each split, int64, ascending; labelled and unlabelled."""
    task: Task
    shards: torch.Tensor | None = None
    """int64 `[S + 1]`: the first row of each shard, and the number of rows; if they come from a
    store."""
    payloads: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Per modality int64 `[N]`, if payloads are told apart: equal numbers for rows that hold the
    same payload, -1 for those without one."""
    groups: np.ndarray | None = None
    """int64 `[N]`: equal for rows of one group of the split, if there are such."""
    _known: dict[str, InputSpec] = field(default_factory=dict, init=False, repr=False)
    """The inputs that have been computed; of these very vectors, rows and splits."""

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
        selected = replace(
            self,
            embeddings={m: self.embeddings[m] for m in modalities},
            index={m: self.index[m] for m in modalities},
            starts={m: self.starts[m] for m in modalities if m in self.starts},
            payloads={m: x for m, x in self.payloads.items() if m in modalities},
        )
        object.__setattr__(selected, "_known", self._known)
        return selected

    def with_temperature(self, temperature: float) -> EmbeddingTable:
        """The same rows, with answers by that temperature, nothing copied."""
        found = replace(self, task=replace(self.task, temperature=temperature))
        object.__setattr__(found, "_known", self._known)
        return found

    def expect(self, rows: torch.Tensor, *, modalities: Sequence[str] | None = None) -> None:
        """Say which rows `[K]` batches will be of, in that order, so that they are read ahead.

        A matter of speed alone: any rows may be taken at any time.
        """
        for modality in self.embeddings if modalities is None else modalities:
            if isinstance(self.embeddings[modality], HeldVectors):
                continue
            numbers = self.index[modality][rows]
            if modality in self.starts:
                first, lengths = self._steps(modality, place=numbers)
                numbers = first.repeat_interleave(lengths) + _counted(lengths)
            self.embeddings[modality].expect(numbers)

    @property
    def stackable(self) -> bool:
        """Whether several candidates can be fitted on it in one pass, each in its own order.

        Not where embeddings are streamed, which is in one order at a time, nor of sequences.
        """
        held = all(isinstance(reader, HeldVectors) for reader in self.embeddings.values())
        return held and not self.starts

    def close(self) -> None:
        """End what is read ahead."""
        for reader in self.embeddings.values():
            reader.close()

    def batch(
        self,
        rows: torch.Tensor,
        *,
        modalities: Sequence[str] | None = None,
        padded_as: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """The rows of some numbers `[B]`, in that order; all modalities if none are named.

        A sequence is as long as the longest of these rows, or of those that it is `padded_as`.
        """
        embeddings, presence, masks, payloads = {}, {}, {}, {}
        for modality in self.embeddings if modalities is None else modalities:
            place = self.index[modality][rows]
            presence[modality] = (place != ABSENT).to(device)
            if modality in self.payloads:
                payloads[modality] = self.payloads[modality][rows].to(device)
            if modality not in self.starts:
                embeddings[modality] = self._take(modality, place, device=device)
                continue
            first, lengths = self._steps(modality, place=place)
            all_lengths = lengths
            if padded_as is not None:
                _, all_lengths = self._steps(modality, place=self.index[modality][padded_as])
            step = torch.arange(max(1, int(all_lengths.max()) if len(all_lengths) else 0))
            mask = step < lengths[:, None]
            numbers = torch.where(mask, first[:, None] + step, ABSENT)
            found = self._take(modality, numbers.reshape(-1), device=device)
            embeddings[modality] = found.view(*mask.shape, found.shape[1])
            masks[modality] = mask.to(device)
        return Batch(
            embeddings=embeddings,
            presence=presence,
            masks=masks,
            targets=self.targets[rows].to(device),
            payloads=payloads,
        )

    def _take(
        self, modality: str, numbers: torch.Tensor, *, device: torch.device | str
    ) -> torch.Tensor:
        """float32 `[K, D]`, on a device; moved there as it is stored."""
        reader = self.embeddings[modality]
        if not len(reader):
            return torch.zeros(len(numbers), reader.dim, device=device)
        return reader.take(numbers).to(device).float()

    def _steps(self, modality: str, *, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of embeddings at places `[B]`: their first vectors, and how many they have `[B]`."""
        starts = self.starts[modality]
        known = place.clamp(min=0)
        if len(starts) == 1:
            return known, torch.zeros_like(known)
        first = starts[known]
        return first, torch.where(place != ABSENT, starts[known + 1] - first, 0)

    def inputs(self, modalities: Sequence[str]) -> dict[str, InputSpec]:
        """Per modality the width, mean and deviation of the present training rows.

        Of sequences, over all their steps. Computed once for each modality. Untrainable for a
        modality that no training row has, or with values that are not finite.
        """
        for modality in modalities:
            if modality not in self._known:
                self._known[modality] = self._input(modality)
        return {modality: self._known[modality] for modality in modalities}

    def _input(self, modality: str) -> InputSpec:
        rows = self.split["train"]
        reader, place = self.embeddings[modality], self.index[modality][rows]
        numbers = place[place != ABSENT]
        if modality in self.starts:
            first, lengths = self._steps(modality, place=numbers)
            numbers = first.repeat_interleave(lengths) + _counted(lengths)
        if not len(numbers):
            raise Untrainable(
                f"modality {modality!r}: none of the {len(place)} training rows has an embedding; "
                "take it out of the candidates, or see the quarantine"
            )
        reader.expect(numbers)
        # Around the first vector: the deviation of what lies far from zero keeps its digits.
        origin = reader.take(numbers[:1])[0].float()
        total = torch.zeros(reader.dim, dtype=torch.float64, device=origin.device)
        square = torch.zeros_like(total)
        for some in numbers.split(BLOCK_VECTORS):
            values = reader.take(some).float() - origin
            total += values.sum(dim=0)
            square += values.square_().sum(dim=0)
        mean = total / len(numbers)
        std = (square / len(numbers) - mean.square()).clamp(min=0).sqrt()
        mean = mean + origin
        if not (std.isfinite().all() and mean.isfinite().all()):
            raise Untrainable(
                f"modality {modality!r}: an embedding of the training rows is not finite; "
                "its encoder is at fault"
            )
        scale = torch.where(std > CONSTANT * std.max(), std, torch.ones_like(std))
        return InputSpec(
            dim=reader.dim,
            mean=mean.float().cpu(),
            std=scale.float().cpu(),
            sequence=modality in self.starts,
        )


def _counted(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, … within each of some runs, one after another: of 2 and 3, `[0, 1, 0, 1, 2]`."""
    stops = lengths.cumsum(0)
    return torch.arange(int(lengths.sum())) - (stops - lengths).repeat_interleave(lengths)


def load_table(
    store: Store,
    snapshot: Snapshot,
    *,
    task: TaskSpec,
    modalities: Sequence[str],
    numbered: Sequence[str] | None = None,
    memory: int | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> EmbeddingTable:
    """A snapshot's samples, and the embeddings of some modalities: held if they fit `memory` bytes.

    If they do not, they are read as they are needed, in an order drawn among `window` rows: see
    `training.data.reading.read_vectors`. `numbered` are the modalities whose payloads are told
    apart; all, if it is not given. Untrainable if a split has no labelled row, or the labels leave
    nothing to learn.
    """
    columns = [f"target.{name}" for name in task.targets]
    samples = store.read_samples(snapshot, columns=["sample_id", "split", "group", *columns])
    return table_of(
        payloads=read_payload_numbers(
            store, snapshot, modalities=modalities if numbered is None else numbered
        ),
        sample_ids=samples["sample_id"],
        split=samples["split"],
        groups=groups_of(samples),
        labels={name: samples[f"target.{name}"] for name in task.targets},
        embeddings=read_vectors(
            store, snapshot, modalities=modalities, memory=memory, window=window, device=device
        ),
        task=task,
        shards=[*snapshot.first_rows, snapshot.rows],
    )


def table_of(
    *,
    payloads: Mapping[str, torch.Tensor] | None = None,
    sample_ids: pa.ChunkedArray | pa.Array,
    split: pa.ChunkedArray | pa.Array,
    labels: Column | Mapping[str, Column],
    embeddings: Mapping[str, Embeddings | PlacedVectors],
    task: TaskSpec | None = None,
    shards: Sequence[int] | None = None,
    groups: np.ndarray | None = None,
) -> EmbeddingTable:
    """A table of columns in row order and embeddings with their row numbers.

    `labels` are the columns of the task's targets by name; one column alone is that of a
    classification, unless `task` says otherwise. Untrainable if a split has no labelled row, or
    the labels leave nothing to learn.
    """
    task = task or ClassificationSpec(target="label")
    if not isinstance(labels, Mapping):
        labels = {task.targets[0]: labels}
    # By column: a Python object a row would be many times what the rest of a row takes.
    splits = {
        name: torch.from_numpy(np.flatnonzero(pc.fill_null(pc.equal(split, name), False)))
        for name in SPLITS
    }
    targets = read_targets(task, labels, split=splits, rows=len(split))
    placed = {
        m: placed_vectors(part) if isinstance(part, Embeddings) else part
        for m, part in embeddings.items()
    }
    return EmbeddingTable(
        payloads=payloads or {},
        sample_ids=sample_ids.combine_chunks()
        if isinstance(sample_ids, pa.ChunkedArray)
        else sample_ids,
        embeddings={m: part.vectors for m, part in placed.items()},
        index={m: part.index(rows=len(split)) for m, part in placed.items()},
        starts={m: part.starts for m, part in placed.items() if part.starts is not None},
        targets=targets.values,
        split=splits,
        task=targets.task,
        shards=None if shards is None else torch.as_tensor(shards),
        groups=groups,
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


def worker_rows(
    order: torch.Tensor, *, steps: int, rank: int, workers: int, first_step: int = 0
) -> torch.Tensor:
    """A worker's rows of an epoch's steps, from one of them on, in the order it takes them."""
    taken = []
    for step in range(first_step, steps):
        batch = step_rows(order, step=step, steps=steps)
        taken.append(batch[worker_slice(len(batch), rank=rank, workers=workers)])
    return torch.cat(taken) if taken else order[:0]


def epoch_order(
    rows: torch.Tensor,
    *,
    seed: int,
    epoch: int,
    shards: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """The rows in the order of an epoch, drawn from (seed, epoch): a permutation.

    Of a table of more rows than `window`, whole shards are put in a drawn order, and a row is
    taken among some `window` rows of the table that come before and after it. `shards` are the
    first rows of all shards and the number of rows; without them any row may come anywhere.
    """
    draw = np.random.default_rng([seed, epoch])
    if shards is None or window is None or int(shards[-1]) <= window:
        return rows[torch.from_numpy(draw.permutation(len(rows)))]
    firsts, numbers = shards.numpy(), rows.numpy()
    order = draw.permutation(len(firsts) - 1)
    begins = np.empty(len(order), np.int64)
    begins[order] = np.cumsum(np.diff(firsts)[order]) - np.diff(firsts)[order]
    shard = np.searchsorted(firsts, numbers, side="right") - 1
    arrival = begins[shard] + numbers - firsts[shard]
    moment = arrival + draw.random(len(rows)) * window
    return rows[torch.from_numpy(np.argsort(moment, kind="stable"))]


def kept_modalities(
    *, modalities: Sequence[str], rows: int, probability: float, seed: int, epoch: int, step: int
) -> dict[str, torch.Tensor]:
    """Per modality bool `[rows]` over a global batch: False where modality dropout takes it away.

    ModDrop: Neverova et al. 2015, https://arxiv.org/abs/1501.00102, section 3.3.
    """
    drawn = np.random.default_rng([seed, epoch, step, 1]).random((len(modalities), rows))
    return {m: torch.from_numpy(row >= probability) for m, row in zip(modalities, drawn)}
