"""What a fitted model answers for the evaluation rows, whole and with each modality taken away.

Every worker takes its part of the rows and all get all answers. Suffixes of tensors: R rows,
C classes, S width of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.alignment import Alignment
from training.batch import Batch
from training.data import EmbeddingTable, worker_slice
from training.metrics import (
    accuracy,
    negative_log_likelihood,
    retrieval_recall,
    top_k_accuracy,
)
from training.workers import gather_rows, worker_count, worker_rank

EVALUATION_SPLITS = ("validation", "test")
BATCH_ROWS = 1024
PROBE_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Inverse regularisation of the linear probe; the one with the best validation loss is taken."""
RECALL_AT = (1, 5, 10)
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


def fit_probe(
    model: Alignment,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> None:
    """Fit the linear probe of an alignment on its training rows, and put it into the model.

    Logistic regression on the mean of a row's present unit vectors, as CLIP's linear probe
    (Radford et al. 2021, appendix A.3). Where these rows are not of two classes there is nothing
    to tell apart, and the probe answers the prior. All workers take part; the first one fits.
    """
    joint = {}
    for split in ("train", "validation"):
        rows = table.labelled(split)
        some = table.with_modalities(split, modalities=modalities, least=1)
        rows = rows[torch.isin(rows, some)]
        vectors = map_rows(
            lambda batch: model.fuse(*batch.inputs),
            model=model,
            table=table,
            rows=rows,
            modalities=modalities,
            device=device,
        )
        joint[split] = (vectors.cpu().double().numpy(), table.targets[rows].numpy())
    counts = torch.bincount(table.targets[table.labelled("train")], minlength=len(table.classes))
    prior_C = ((counts + 1) / (counts + 1).sum()).log()
    if len(np.unique(joint["train"][1])) < 2:
        model.set_probe(
            weight_CS=torch.zeros_like(model.probe_weight_CS), bias_C=prior_C, prior_C=prior_C
        )
        return
    if worker_rank() == 0:
        weight, bias = _best_probe(**joint, classes=len(table.classes))
        model.set_probe(
            weight_CS=torch.from_numpy(weight), bias_C=torch.from_numpy(bias), prior_C=prior_C
        )
    if worker_count() > 1:
        for value in (model.probe_weight_CS, model.probe_bias_C, model.prior_C):
            dist.broadcast(value, src=0)


def retrieval(
    model: Alignment,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Recall@1, 5 and 10 from every modality to every other, over the test rows that have both."""
    rows = table.split["test"]
    vectors = map_rows(
        lambda batch: model.embed_all(*batch.inputs)[0],
        model=model,
        table=table,
        rows=rows,
        modalities=modalities,
        device=device,
    )
    names = list(model.projections)
    found = []
    for query, target in permutations(range(len(names)), 2):
        both = torch.stack([table.index[names[i]][rows] >= 0 for i in (query, target)]).all(dim=0)
        if not both.any():
            continue
        place = both.to(vectors.device)
        recall = retrieval_recall(
            vectors[place, query],
            gallery_NS=vectors[place, target],
            classes_N=table.targets[rows][both].to(vectors.device),
            ks=RECALL_AT,
        )
        found.append(
            {
                "query": names[query],
                "target": names[target],
                "split": "test",
                "rows": recall.queries,
                "gallery": recall.gallery,
                "recall": _by_text(recall.recall),
                "chance": _by_text(recall.chance),
                "class_rows": recall.class_queries,
                "class_recall": _by_text(recall.class_recall),
                "class_chance": _by_text(recall.class_chance),
            }
        )
    return found


def _best_probe(
    *,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[C, S]` and biases `[C]` of the probe with the lowest validation loss."""
    from sklearn.linear_model import LogisticRegression

    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for strength in PROBE_STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(*train)
        weight, bias = _all_classes(fitted, classes=classes)
        logits = torch.from_numpy(validation[0] @ weight.T + bias)
        loss = math.inf
        if len(logits):
            loss = negative_log_likelihood(
                logits.softmax(dim=1), targets_N=torch.from_numpy(validation[1])
            )
        if best is None or loss < best[0]:
            best = (loss, weight, bias)
    assert best is not None
    return best[1], best[2]


def _all_classes(fitted: Any, *, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Softmax weights for all classes, of a fit that has met some; of two classes it keeps one."""
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((classes, coefficients.shape[1]))
    # A class that was never met is never answered.
    bias = np.full(classes, -50.0)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    return weight, bias


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in values.items()}


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
