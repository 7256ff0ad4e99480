"""One training step of one candidate: batch, loss, gradients, update. No engine, no file, no Ray.

A batch is a global one, of which each worker of torch's process group takes its part. Gradients
are summed over the workers, so the step is that of one worker on the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batch import Batch
from training.data import EmbeddingTable, kept_modalities, worker_slice
from training.layers import seed_dropout
from training.losses import cross_entropy
from training.spec import CandidateSpec, Objective
from training.workers import sum_over_workers, worker_count, worker_rank


@dataclass(frozen=True, kw_only=True)
class Step:
    """The outcome of a step; if it is not finite, the weights were left as they were."""

    loss: float
    """Over the global batch."""
    gradient_norm: float
    """Of the global batch's gradient, before clipping."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def train_step(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective = "task",
    gradient_clip: float = 1.0,
) -> Step:
    """One optimizer step on this worker's part of a global batch; all workers take it together.

    If the loss or the gradient is not finite, nothing is changed, on any worker.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    share = loss_share(model, batch=batch, objective=objective)
    share.backward()
    loss = sum_gradients(model, share=share)
    norm = nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
    step = Step(loss=loss, gradient_norm=float(norm))
    if step.finite:
        optimizer.step()
        after_step = getattr(model, "after_step", None)
        if after_step is not None:
            after_step()
    return step


def loss_share(model: nn.Module, *, batch: Batch, objective: Objective) -> Tensor:
    """This worker's share of the loss over the global batch: the shares sum to it."""
    if objective == "own":
        own: Tensor = model.loss_share(batch)  # type: ignore[operator]
        return own
    return cross_entropy(model(*batch.inputs), targets_B=batch.targets)


def sum_gradients(model: nn.Module, *, share: Tensor) -> float:
    """Replace every gradient by its sum over the workers; returns the loss of the global batch.

    One collective for all. A parameter that no row has reached gets a gradient of zero, so that
    it is treated alike whichever worker's rows might have reached it.
    """
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    flat = torch.cat([share.detach().reshape(1), *(g.reshape(-1) for g in gradients)])
    loss, *pieces = sum_over_workers(flat).split([1, *(g.numel() for g in gradients)])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return float(loss)


def learning_rate(step: int, *, steps: int, warmup: float, highest: float) -> float:
    """Learning rate of a step counted from 0: a linear rise, then half a cosine down to zero.

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts.
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return highest * (step + 1) / rising
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizer(model: nn.Module, *, spec: CandidateSpec) -> torch.optim.AdamW:
    """AdamW, in which matrices alone decay.

    Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=spec.learning_rate,
    )


def make_model(
    spec: CandidateSpec,
    *,
    table: EmbeddingTable,
    modalities: tuple[str, ...],
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A new model with first weights drawn from the spec's seed, equal on all workers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = spec.build(inputs=table.inputs(modalities), outputs=len(table.classes))
    model = model.to(device)
    if worker_count() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)
    return model


def worker_batch(
    table: EmbeddingTable,
    *,
    rows: Tensor,
    modalities: tuple[str, ...],
    device: torch.device | str = "cpu",
) -> Batch:
    """This worker's part of a global batch of rows; it may be empty."""
    part = worker_slice(len(rows), rank=worker_rank(), workers=worker_count())
    return table.batch(rows[part], modalities=modalities, device=device)


def train_batch(
    spec: CandidateSpec,
    *,
    table: EmbeddingTable,
    rows: Tensor,
    modalities: tuple[str, ...],
    epoch: int,
    step: int,
    device: torch.device | str = "cpu",
) -> Batch:
    """As `worker_batch`, with modalities taken away at random as the spec says."""
    batch = worker_batch(table, rows=rows, modalities=modalities, device=device)
    if spec.modality_dropout == 0:
        return batch
    kept = kept_modalities(
        modalities=modalities,
        rows=len(rows),
        probability=spec.modality_dropout,
        seed=spec.seed,
        epoch=epoch,
        step=step,
    )
    part = worker_slice(len(rows), rank=worker_rank(), workers=worker_count())
    presence: Mapping[str, Tensor] = {
        m: present & kept[m][part].to(device) for m, present in batch.presence.items()
    }
    return replace(batch, presence=presence)


def seed_step(model: nn.Module, *, seed: int, epoch: int, step: int, rows: int) -> None:
    """Make all that a step draws a function of (seed, epoch, step).

    Dropout draws for the global batch of `rows`; what else draws from torch's global generator
    (a model of the user's) is seeded by the worker's number too.
    """
    state = np.random.SeedSequence([seed, epoch, step, 2]).generate_state(2, np.uint32)
    number = int(state[0]) << 31 | int(state[1]) >> 1
    first = worker_slice(rows, rank=worker_rank(), workers=worker_count()).start
    seed_dropout(model, seed=number, rows=rows, first=first)
    torch.manual_seed(number + worker_rank())
