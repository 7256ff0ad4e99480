"""What a fitted model answers for the evaluation rows, whole and with each modality taken away.

Every worker takes its part of the rows and all get all answers. Suffixes of tensors: R rows,
C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from training.batch import Batch
from training.data import EmbeddingTable, worker_slice
from training.metrics import (
    accuracy,
    negative_log_likelihood,
    top_k_accuracy,
)
from training.workers import gather_rows, worker_count, worker_rank

EVALUATION_SPLITS = ("validation", "test")
BATCH_ROWS = 1024
TOP_K = 3


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A classifier's answers for the labelled validation and test rows, in that order."""

    rows: np.ndarray
    """int64 `[R]`: row numbers within the snapshot, ascending in each split."""
    splits: np.ndarray
    """Text `[R]`."""
    targets: np.ndarray
    """int32 `[R]`: class indices."""
    probabilities: np.ndarray
    """float32 `[R, C]`."""
    without: Mapping[str, np.ndarray]
    """Per modality, if there are several: float32 `[R, C]` with it taken away from every row."""

    def table(self) -> pa.Table:
        """The predictions as they are stored; see `training.candidate.read_predictions`."""
        columns = {
            "row": pa.array(self.rows, pa.int64()),
            "split": pa.array(self.splits.tolist(), pa.string()),
            "target": pa.array(self.targets, pa.int32()),
            "probabilities": _lists(self.probabilities),
        }
        for modality, probabilities in self.without.items():
            columns[f"without.{modality}"] = _lists(probabilities)
        return pa.table(columns)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Per split: accuracy, loss (negative log likelihood), top-3 accuracy, and rows."""
        return {split: self._metrics(self.splits == split) for split in EVALUATION_SPLITS}

    def _metrics(self, chosen: np.ndarray) -> dict[str, float]:
        scores = torch.from_numpy(self.probabilities[chosen])
        targets = torch.from_numpy(self.targets[chosen]).long()
        metrics = {
            "accuracy": accuracy(scores, targets_N=targets),
            "loss": negative_log_likelihood(scores, targets_N=targets),
            "rows": int(chosen.sum()),
        }
        if scores.shape[1] > TOP_K:
            metrics[f"top_{TOP_K}_accuracy"] = top_k_accuracy(scores, targets_N=targets, k=TOP_K)
        return metrics


def evaluate(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> Predictions:
    """Answers for all labelled validation and test rows; all workers take part."""
    parts = [table.labelled(split) for split in EVALUATION_SPLITS]
    rows = torch.cat(parts)

    def answer(masked: str | None = None) -> np.ndarray:
        def probabilities(batch: Batch) -> Tensor:
            presence = {
                m: torch.zeros_like(present) if m == masked else present
                for m, present in batch.presence.items()
            }
            return model(batch.embeddings, presence, batch.masks).float().softmax(dim=1)

        answers = map_rows(
            probabilities, model=model, table=table, rows=rows, modalities=modalities, device=device
        )
        return answers.cpu().numpy()

    return Predictions(
        rows=rows.numpy(),
        splits=np.repeat(EVALUATION_SPLITS, [len(part) for part in parts]),
        targets=table.targets[rows].numpy().astype(np.int32),
        probabilities=answer(),
        without={m: answer(m) for m in modalities} if len(modalities) > 1 else {},
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
) -> Tensor:
    """What a function of a batch `[B]` → `[B, ...]` gives for the rows, divided over the workers.

    No row is left out or counted twice; every worker gets all `[R, ...]`.
    """
    model.eval()
    own = rows[worker_slice(len(rows), rank=worker_rank(), workers=worker_count())]
    table.expect(own, modalities=modalities)
    # An empty part still runs once, for the shape of what it gives.
    blocks = own.split(BATCH_ROWS) if len(own) else (own,)
    answers = [
        function(table.batch(block, modalities=modalities, device=device)) for block in blocks
    ]
    return gather_rows(torch.cat(answers)).rows


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
