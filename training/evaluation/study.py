"""What a model is worth when inputs are missing, noisy or wrong, and what its answers lean on.

Over the labelled test rows, or a sample of them. Of a retrieval, which has no answer to a row by
itself, there is nothing of this: its recall from each modality to each other says what can be said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from training.data.table import EmbeddingTable
from training.evaluation.answers import lists, map_blocks
from training.evaluation.bootstrap import metric_intervals
from training.evaluation.coalitions import (
    MOST_MODALITIES,
    Subset,
    answers_of_subsets,
    every_subset,
    shapley_values,
    tried_subsets,
)
from training.evaluation.metrics import Metric, metrics_of
from training.evaluation.perturbations import (
    NOISE_LEVELS,
    Perturbed,
    perturbed_answers,
)
from training.evaluation.resampling import Resamples
from training.tasks import Classification, Retrieval

MOST_ROWS = 5000
"""Test rows that are taken of a larger split, for subsets and Shapley values."""
MOST_PERTURBED = 2000
"""Test rows that are taken of a larger split, for what is noisy or swapped."""
MOST_NUMBERS = 2**25
"""Answers that are held at once, of all rows, variants and outputs."""
MOST_AREAS = 20
"""Of more classes or labels, areas under curves are left out, unless one is the first metric."""
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was found, as the record and the store keep it."""

    found: dict[str, Any]
    """`rows` and `of` (how many of the test rows); `subsets`, each with `modalities`, `metrics`
    and `intervals`; `perturbed_rows`, `clean` (metrics of these rows as they are) and `perturbed`,
    each with `modality`, `kind` (`noise` or `swapped`), `levels` and, by metric, `values`."""
    shapley: pa.Table | None
    """`row`, `answer` (of one class a row: its index), `prediction`, `baseline` and for each
    modality `shapley.<modality>`: of the class that is answered, or lists, of each output. None of
    one modality, and of more than can be tried."""


def study(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> Study | None:
    """Study a fitted model over the test rows; None of a retrieval. All workers take part."""
    if isinstance(table.task, Retrieval):
        return None
    test = table.labelled("test")
    metrics = _metrics(table)
    options: dict[str, Any] = {"table": table, "modalities": modalities, "device": device}
    found: dict[str, Any] = {"of": len(test), "subsets": []}
    shapley = None
    if len(modalities) > 1:
        whole = len(modalities) <= MOST_MODALITIES
        subsets = every_subset(modalities) if whole else tried_subsets(modalities)
        rows = sampled(test, most=_most(MOST_ROWS, variants=len(subsets), table=table))
        answers_RSO = subset_answers(model, rows=rows, subsets=subsets, **options)
        targets = table.task.truths(table.targets[rows]).numpy()
        groups = None if table.groups is None else table.groups[rows.numpy()]
        found["rows"] = len(rows)
        found["subsets"] = [
            _of_subset(subset, metrics=metrics, targets=targets, answers=answers, groups=groups)
            for subset, answers in zip(subsets, answers_RSO.unbind(dim=1), strict=True)
            if subset
        ]
        if whole:
            shapley = _shapley_table(
                answers_RSO, rows=rows, subsets=subsets, modalities=modalities, table=table
            )
    variants = len(modalities) * (len(NOISE_LEVELS) + 1) + 1
    rows = sampled(test, most=_most(MOST_PERTURBED, variants=variants, table=table))
    targets = table.task.truths(table.targets[rows]).numpy()
    clean = subset_answers(model, rows=rows, subsets=[tuple(modalities)], **options)
    perturbed = perturbed_answers(model, rows=rows, **options)
    return Study(
        found={
            **found,
            "perturbed_rows": len(rows),
            "clean": _values(metrics, targets=targets, answers=clean[:, 0].numpy()),
            "perturbed": [_of_curve(item, metrics=metrics, targets=targets) for item in perturbed],
        },
        shapley=shapley,
    )


def sampled(rows: Tensor, *, most: int, seed: int = 0) -> Tensor:
    """Some of the rows, ascending, drawn without replacement; all if they are no more than that."""
    if len(rows) <= most:
        return rows
    chosen = np.random.default_rng(seed).choice(len(rows), most, replace=False)
    return rows[torch.from_numpy(np.sort(chosen))]


def subset_answers(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    rows: Tensor,
    subsets: Sequence[Subset],
    modalities: Sequence[str],
    device: torch.device | str = "cpu",
) -> Tensor:
    """A model's answers `[R, S, O]` to some rows with each subset of modalities present.

    All workers take part, and have all of them.
    """

    def answer(numbers_B: Tensor) -> Tensor:
        batch = table.batch(rows[numbers_B], modalities=modalities, device=device)
        return answers_of_subsets(model, task=table.task, subsets=subsets, inputs=batch.inputs)

    return map_blocks(answer, count=len(rows), model=model).cpu()


def _most(rows: int, *, variants: int, table: EmbeddingTable) -> int:
    return max(1, min(rows, MOST_NUMBERS // (variants * table.task.outputs)))


def _metrics(table: EmbeddingTable) -> list[Metric]:
    """Those of the task, but for what would cost more than all the rest."""
    outputs = table.task.outputs
    first, *others = (m for m in metrics_of(table.task.spec).values() if m.applies(outputs))
    return [
        first,
        *(m for m in others if m.name not in ("auroc", "auprc") or outputs <= MOST_AREAS),
    ]


def _values(
    metrics: Sequence[Metric], *, targets: np.ndarray, answers: np.ndarray
) -> dict[str, float]:
    if not np.isfinite(answers).all():
        return {}
    # As the libraries' in a tenth of their time: there are dozens of these.
    whole = Resamples(targets=targets, answers=answers, counts_RN=np.ones((1, len(targets))))
    found = {
        metric.name: float(metric.resampled(whole)[0])
        if metric.resampled
        else metric.value(targets, answers)
        for metric in metrics
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _of_subset(
    subset: Subset,
    *,
    metrics: Sequence[Metric],
    targets: np.ndarray,
    answers: Tensor,
    groups: np.ndarray | None,
) -> dict[str, Any]:
    """Of the first metric and of means over rows with intervals; those of others cost more."""
    some = [metric for metric in metrics if metric is metrics[0] or metric.rows is not None]
    if not bool(answers.isfinite().all()):
        some = []
    intervals = metric_intervals(
        some, targets=targets, answers=answers.numpy(), resamples=RESAMPLES, groups=groups
    )
    return {
        "modalities": list(subset),
        "metrics": _values(metrics, targets=targets, answers=answers.numpy()),
        "intervals": {
            metric.name: [interval.low, interval.high]
            for metric, interval in zip(some, intervals, strict=True)
            if math.isfinite(interval.mean) and math.isfinite(interval.low)
        },
    }


def _of_curve(item: Perturbed, *, metrics: Sequence[Metric], targets: np.ndarray) -> dict[str, Any]:
    levels = [_values(metrics, targets=targets, answers=answers) for answers in item.answers]
    return {
        "modality": item.modality,
        "kind": item.kind,
        "levels": list(item.levels),
        "values": {
            metric.name: [values[metric.name] for values in levels]
            for metric in metrics
            if all(metric.name in values for values in levels)
        },
    }


def _shapley_table(
    answers_RSO: Tensor,
    *,
    rows: Tensor,
    subsets: Sequence[Subset],
    modalities: Sequence[str],
    table: EmbeddingTable,
) -> pa.Table:
    """Of one class a row, of the one that is answered; else of every output."""
    found = shapley_values(answers_RSO, subsets=subsets, modalities=modalities)
    none_RO, all_RO = answers_RSO[:, 0], answers_RSO[:, -1]
    named: dict[str, Tensor] = {
        "prediction": all_RO,
        "baseline": none_RO,
        **{f"shapley.{m}": values for m, values in found.items()},
    }
    columns: dict[str, pa.Array] = {"row": pa.array(rows.numpy(), pa.int64())}
    if isinstance(table.task, Classification):
        answer_R1 = all_RO.argmax(dim=1, keepdim=True)
        columns["answer"] = pa.array(answer_R1[:, 0].int().numpy())
        for name, values in named.items():
            columns[name] = pa.array(values.gather(1, answer_R1)[:, 0].float().numpy())
    else:
        for name, values in named.items():
            columns[name] = lists(values.numpy().astype(np.float32))
    return pa.table(columns)
