"""One training step of one candidate: batch, loss, gradients, update. No engine, no file, no Ray.

A batch is a global one, of which each worker of torch's process group takes its part. Gradients
are summed over the workers, so the step is that of one worker on the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.batch import Batch
from training.data.table import EmbeddingTable, kept_modalities, worker_slice
from training.fitting.adamw import AdamW
from training.fitting.precision import autocast
from training.losses.task import LossSum, cross_entropy_sum
from training.models.layers import dropout_layers, seed_dropout
from training.spec import CandidateSpec, InputSpec, Objective
from training.training_spec import Precision
from training.workers import sum_over_workers, worker_count, worker_rank


class TaskLoss(Protocol):
    """What a step asks of a task: see `training.tasks.Task`. It knows of no other worker."""

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        """The loss of labelled rows, as a sum and its weight."""

    def weight(self, targets_B: Tensor) -> Tensor:
        """The weight that `loss` gives, from the targets alone."""


class CrossEntropy:
    """The loss of a plain classification."""

    def loss(self, outputs_BO: Tensor, targets_B: Tensor) -> LossSum:
        return cross_entropy_sum(outputs_BO, targets_B=targets_B)

    def weight(self, targets_B: Tensor) -> Tensor:
        return torch.ones_like(targets_B, dtype=torch.float32).sum()


PLAIN = CrossEntropy()


@dataclass(frozen=True, kw_only=True)
class Step:
    """The outcome of a step; if it is not finite, the weights were left as they were."""

    loss: float
    """Over the global batch."""
    gradient_norm: float
    """Of the global batch's gradient, before clipping."""
    calls: float = 0.0
    """How many workers have called for a checkpoint."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


def train_step(
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | AdamW,
    batch: Batch,
    objective: Objective = "task",
    task: TaskLoss = PLAIN,
    gradient_clip: float = 1.0,
    accumulate: int = 1,
    precision: Precision = "float32",
    scale: float = 1.0,
    calls: float = 0.0,
) -> Step:
    """One optimizer step on this worker's part of a global batch; all workers take it together.

    If the loss or the gradient is not finite, nothing is changed, on any worker. `accumulate`,
    `precision` as in `TrainingSpec`; the loss is multiplied by `scale` for the backward pass
    alone. `calls` is summed over the workers, so that they can agree on something by the way.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    shares = []
    parts = accumulate if objective == "task" else 1
    dropouts = dropout_layers(model) if parts > 1 else []
    draws = [layer.draw for layer in dropouts]
    weight = total_weight(task.weight(batch.targets)) if objective == "task" else None
    for part in divide(batch, parts=parts):
        for layer, draw in zip(dropouts, draws, strict=True):
            layer.draw = draw and replace(draw, first=draw.first + part.first)
        with autocast(precision, device=batch.targets.device):
            share = loss_share(model, batch=part.batch, task=task, weight=weight)
        (share if scale == 1 else share * scale).backward()
        shares.append(share.detach())
    gradients = _gradients(model)
    totals = torch.stack([torch.stack(shares).sum(), shares[0].new_tensor(calls)])
    totals = sum_all(totals, gradients=gradients)
    if scale != 1:
        torch._foreach_mul_(gradients, 1 / scale)
    norm = clip_norm(gradients, longest=gradient_clip)
    loss, calls, norm = torch.stack([*totals, norm]).tolist()
    step = Step(loss=loss, gradient_norm=norm, calls=calls)
    if step.finite:
        optimizer.step()
        after_step = getattr(model, "after_step", None)
        if after_step is not None:
            after_step()
    return step


def clip_norm(gradients: list[Tensor], *, longest: float) -> Tensor:
    """The norm of all gradients together, which are then scaled to have `longest` at most."""
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))
    return norm


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of this worker's rows of a global batch."""

    batch: Batch
    first: int
    """Which of the worker's rows is the first."""


def divide(batch: Batch, *, parts: int, dim: int = 0) -> list[Part]:
    """A worker's part of a global batch in parts; the rows are along `dim`."""
    if parts == 1:
        return [Part(batch=batch, first=0)]
    own = [worker_slice(batch.targets.shape[dim], rank=i, workers=parts) for i in range(parts)]

    def cut(tensors: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
        return {m: x.narrow(dim, rows.start, rows.stop - rows.start) for m, x in tensors.items()}

    return [
        Part(
            batch=Batch(
                embeddings=cut(batch.embeddings, rows),
                presence=cut(batch.presence, rows),
                targets=batch.targets.narrow(dim, rows.start, rows.stop - rows.start),
                masks=cut(batch.masks, rows),
                payloads=cut(batch.payloads, rows),
            ),
            first=rows.start,
        )
        for rows in own
    ]


def loss_share(
    model: nn.Module, *, batch: Batch, task: TaskLoss = PLAIN, weight: Tensor | None
) -> Tensor:
    """This worker's share of the loss over the global batch: the shares sum to it.

    Of the model's own loss, or, if there is the `total_weight` of the global batch, of the task's.
    """
    if weight is None:
        own: Tensor = model.loss_share(batch)  # type: ignore[operator]
        return own
    return task.loss(model(*batch.inputs), batch.targets).total / weight


def total_weight(weight: Tensor) -> Tensor:
    """What this worker's rows weigh, summed over the workers; 1 where it would be 0."""
    total = sum_over_workers(weight)
    return torch.where(total > 0, total, 1.0)


def _gradients(model: nn.Module) -> list[Tensor]:
    """The gradients of a model's parameters; zero where there is none.

    So a parameter that no row has reached is treated alike whichever worker's rows might have.
    """
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    return gradients


def sum_all(values: Tensor, *, gradients: Sequence[Tensor]) -> Tensor:
    """Sums over the workers of values `[N]`, and in their place of gradients: one collective."""
    if worker_count() == 1:
        return values
    flat = sum_over_workers(torch.cat([values, *(g.reshape(-1) for g in gradients)]))
    total, *pieces = flat.split([len(values), *(g.numel() for g in gradients)])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return total


def learning_rate(step: int, *, steps: int, warmup: float, highest: float) -> float:
    """Learning rate of a step counted from 0: a linear rise, then half a cosine down to zero.

    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts.
    """
    rising = max(1, round(steps * warmup))
    if step < rising:
        return highest * (step + 1) / rising
    return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizer(model: nn.Module, *, spec: CandidateSpec) -> AdamW:
    """AdamW, in which matrices alone decay.

    A model may say by `parameter_groups(spec)` which of its parameters learn at which `scale` of
    the rate.
    """
    if hasattr(model, "parameter_groups"):
        return AdamW(model.parameter_groups(spec), lr=spec.learning_rate)  # type: ignore[operator]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return adamw(
        matrices=[p for p in parameters if p.ndim >= 2],
        vectors=[p for p in parameters if p.ndim < 2],
        spec=spec,
    )


def adamw(*, matrices: Sequence[Tensor], vectors: Sequence[Tensor], spec: CandidateSpec) -> AdamW:
    """AdamW over what decays and what does not."""
    return AdamW(
        [
            {"params": list(matrices), "weight_decay": spec.weight_decay},
            {"params": list(vectors), "weight_decay": 0.0},
        ],
        lr=spec.learning_rate,
    )


def make_model(
    spec: CandidateSpec,
    *,
    table: EmbeddingTable,
    modalities: tuple[str, ...],
    device: torch.device | str = "cpu",
    inputs: Mapping[str, InputSpec] | None = None,
) -> nn.Module:
    """A new model with first weights drawn from the spec's seed, equal on all workers.

    `inputs` are the table's, if they are known already.
    """
    inputs = table.inputs(modalities) if inputs is None else inputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = spec.build(inputs=inputs, outputs=table.task.outputs)
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
    # Sequences are padded alike on all workers: what is dropped is drawn for the whole batch.
    return table.batch(rows[part], modalities=modalities, padded_as=rows, device=device)


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
    number = step_seed(seed, epoch=epoch, step=step)
    first = worker_slice(rows, rank=worker_rank(), workers=worker_count()).start
    seed_dropout(model, seed=number, rows=rows, first=first)
    torch.manual_seed(number + worker_rank())


def step_seed(seed: int, *, epoch: int, step: int) -> int:
    """The number that all which a step draws is a function of."""
    state = np.random.SeedSequence([seed, epoch, step, 2]).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1
