"""What a fitted model answers for the evaluation rows, whole and with each modality taken away.

Every worker takes its part of the rows and all get all answers. Suffixes of tensors: R rows,
C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from training.batch import ABSENT, Batch
from training.data.table import EmbeddingTable, worker_slice
from training.evaluation.bootstrap import metric_intervals
from training.evaluation.metrics import Metric, metrics_of
from training.evaluation.ranks import ranks_of
from training.tasks import Retrieval, Task
from training.workers import gather_at_first, gather_rows, worker_count, worker_rank

EVALUATION_SPLITS = ("validation", "test")
BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's answers for the labelled validation and test rows, in that order."""

    task: Task
    rows: np.ndarray
    """int64 `[R]`: row numbers within the snapshot, ascending in each split."""
    splits: np.ndarray
    """Text `[R]`."""
    targets: np.ndarray
    """Class indices int32 `[R]`, labels bool `[R, K]`, or numbers float64 `[R, K]`."""
    answers: np.ndarray
    """Probabilities float32 `[R, C]` or `[R, K]`, or numbers float64 `[R, K]`."""
    without: Mapping[str, np.ndarray]
    """Per modality, if there are several: answers with it taken away from every row."""
    groups: np.ndarray | None = None
    """int64 `[R]`: equal for rows of one group of the split, if there are such."""

    def table(self) -> pa.Table:
        """The predictions as they are stored; see `training.candidate.read_predictions`."""
        columns = {
            "row": pa.array(self.rows, pa.int64()),
            "split": pa.array(self.splits.tolist(), pa.string()),
            "target": pa.array(self.targets) if self.targets.ndim == 1 else lists(self.targets),
            self.task.spec.answer_column: lists(self.answers),
        }
        for modality, answers in self.without.items():
            columns[f"without.{modality}"] = lists(answers)
        return pa.table(columns)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Per split all metrics of the task that its rows define, and `rows`, their number."""
        return {split: self._metrics(self.splits == split) for split in EVALUATION_SPLITS}

    def _metrics(self, chosen: np.ndarray) -> dict[str, float]:
        targets, answers = self.targets[chosen], self.answers[chosen]
        found = {name: m.value(targets, answers) for name, m in self._applying().items()}
        known = {name: value for name, value in found.items() if math.isfinite(value)}
        return {**known, "rows": int(chosen.sum())}

    def intervals(self) -> dict[str, dict[str, list[float]]]:
        """Per split and metric the ends of its interval at 95 % confidence."""
        return {split: self._intervals(self.splits == split) for split in EVALUATION_SPLITS}

    def _intervals(self, chosen: np.ndarray) -> dict[str, list[float]]:
        targets, answers = self.targets[chosen], self.answers[chosen]
        applying = self._applying()
        found = metric_intervals(
            list(applying.values()),
            targets=targets,
            answers=answers,
            groups=None if self.groups is None else self.groups[chosen],
        )
        return {
            name: [interval.low, interval.high]
            for name, interval in zip(applying, found, strict=True)
            if math.isfinite(interval.mean) and math.isfinite(interval.low)
        }

    def _applying(self) -> dict[str, Metric]:
        known = metrics_of(self.task.spec)
        return {name: m for name, m in known.items() if m.applies(self.task.outputs)}


def evaluate(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> Predictions:
    """Answers for all labelled validation and test rows; all workers take part.

    A retrieval's are ranks, of all rows: see `training.evaluation.ranks`.
    """
    if isinstance(table.task, Retrieval):
        return _evaluate_ranks(model, table=table, modalities=modalities, device=device)
    parts = [table.labelled(split) for split in EVALUATION_SPLITS]
    rows = torch.cat(parts)

    def answer(masked: str | None = None) -> np.ndarray:
        def answer_batch(batch: Batch) -> Tensor:
            presence = {
                m: torch.zeros_like(present) if m == masked else present
                for m, present in batch.presence.items()
            }
            return table.task.answers(model(batch.embeddings, presence, batch.masks))

        answers = map_rows(
            answer_batch, model=model, table=table, rows=rows, modalities=modalities, device=device
        )
        return answers.cpu().numpy()

    return Predictions(
        task=table.task,
        rows=rows.numpy(),
        splits=np.repeat(EVALUATION_SPLITS, [len(part) for part in parts]),
        targets=table.task.truths(table.targets[rows]).numpy(),
        answers=answer(),
        without={m: answer(m) for m in modalities} if len(modalities) > 1 else {},
        groups=None if table.groups is None else table.groups[rows.numpy()],
    )


def _evaluate_ranks(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str,
) -> Predictions:
    """The ranks within each evaluation split of all its rows."""
    names: tuple[str, ...] = model.modalities  # type: ignore[assignment]
    parts, ranks = [table.split[split] for split in EVALUATION_SPLITS], []
    for rows in parts:
        vectors = map_rows(
            lambda batch: model.embed_all(*batch.inputs)[0],  # type: ignore[operator]
            model=model,
            table=table,
            rows=rows,
            modalities=modalities,
            device=device,
        )
        present = torch.stack([table.index[m][rows] >= 0 for m in names], dim=1)
        none = torch.full_like(rows, ABSENT)
        numbers = [table.payloads[m][rows] if m in table.payloads else none for m in names]
        own = ranks_of(
            vectors,
            presence_NM=present.to(vectors.device),
            payloads_NM=torch.stack(numbers, dim=1),
            asking=worker_slice(len(rows), rank=worker_rank(), workers=worker_count()),
        )
        ranks.append(gather_rows(own.to(vectors.device)).rows.cpu())
    rows = torch.cat(parts)
    return Predictions(
        task=table.task,
        rows=rows.numpy(),
        splits=np.repeat(EVALUATION_SPLITS, [len(part) for part in parts]),
        targets=table.task.truths(rows).numpy(),
        answers=torch.cat(ranks).numpy(),
        without={},
        groups=None if table.groups is None else table.groups[rows.numpy()],
    )


@torch.inference_mode()
def map_rows(
    function: Callable[[Batch], Tensor],
    *,
    model: nn.Module,
    table: EmbeddingTable,
    rows: Tensor,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
    at_first: bool = False,
) -> Tensor:
    """What a function of a batch `[B]` → `[B, ...]` gives for the rows, divided over the workers.

    No row is left out or counted twice; every worker gets all `[R, ...]`, or, `at_first`, the first
    worker does and the others get none.
    """
    own = rows[worker_slice(len(rows), rank=worker_rank(), workers=worker_count())]
    table.expect(own, modalities=modalities)
    return map_blocks(
        lambda numbers: function(table.batch(rows[numbers], modalities=modalities, device=device)),
        count=len(rows),
        model=model,
        at_first=at_first,
    )


@torch.inference_mode()
def map_blocks(
    function: Callable[[Tensor], Tensor],
    *,
    count: int,
    model: nn.Module,
    block: int | None = None,
    at_first: bool = False,
) -> Tensor:
    """What a function of numbers int64 `[B]` → `[B, ...]` gives for those below `count`.

    `block` at a time; divided over the workers as by `map_rows`.
    """
    model.eval()
    own = torch.arange(count)[worker_slice(count, rank=worker_rank(), workers=worker_count())]
    # An empty part still runs once, for the shape of what it gives.
    blocks = own.split(block or BATCH_ROWS) if len(own) else (own,)
    found = torch.cat([function(numbers) for numbers in blocks])
    return gather_at_first(found) if at_first else gather_rows(found).rows


def lists(values: np.ndarray) -> pa.Array:
    """The rows of an array `[R, K]` as fixed-size lists."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
