"""The fit of a model that has a closed form: one pass over the training rows, no gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from training.batch import Batch
from training.data.table import EmbeddingTable, step_count, step_rows
from training.fitting.step import worker_batch
from training.workers import sum_over_workers


def has_closed_form(model: nn.Module) -> bool:
    """Whether a model is solved by its `solve(batches)`, and not by steps of an optimizer."""
    return hasattr(model, "solve")


@torch.no_grad()
def solve(
    model: nn.Module,
    *,
    table: EmbeddingTable,
    rows: Tensor,
    modalities: tuple[str, ...],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> float:
    """Fit a model to the rows by `model.solve(batches)`; its mean loss over them afterwards.

    Each worker gives the model its own part of every global batch; all workers take part.
    """
    steps = step_count(len(rows), batch_size=batch_size)

    def batches() -> Iterator[tuple[int, Batch]]:
        for step in range(steps):
            part = step_rows(rows, step=step, steps=steps)
            yield (
                len(part),
                worker_batch(table, rows=part, modalities=modalities, device=device),
            )

    model.eval()
    model.solve(batch for _, batch in batches())  # type: ignore[operator]
    shares = [count * model.loss_share(batch) for count, batch in batches()]  # type: ignore[operator]
    return float(sum_over_workers(torch.stack(shares).sum())) / len(rows)
