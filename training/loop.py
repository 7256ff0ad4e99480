"""A candidate's whole fit, on PyTorch-Ignite's engines: epochs, validation, early stopping.

Runs on one worker or on all workers of torch's process group, with no Ray and no file. Every
worker takes the same steps and comes to the same decisions, since all that decides is summed
over the workers first.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Metric
from ignite.metrics.metric import sync_all_reduce
from torch import Tensor, nn

from training.checkpoint import FitState, load_optimizer, optimizer_tensors
from training.closed_form import has_closed_form, solve
from training.data import EmbeddingTable, epoch_order, step_count, step_rows, worker_rows
from training.faults import own_code
from training.spec import CandidateSpec, Objective
from training.step import (
    learning_rate,
    loss_share,
    make_model,
    make_optimizer,
    seed_step,
    train_batch,
    train_step,
    worker_batch,
)
from training.targets import Untrainable
from training.training_spec import TrainingSpec
from training.workers import sum_over_workers, worker_count, worker_rank


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training rows came to."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the rows as they were met, with dropout."""
    validation_loss: float
    validation_accuracy: float | None
    """None for an alignment, whose classifier is fitted afterwards."""
    learning_rate: float
    """Of the last step."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Where and why a fit was given up."""

    reason: str
    epoch: int
    step: int
    """Counted from 1, from the start of the fit."""
    learning_rate: float
    sample_ids: list[str]
    """The global batch's samples; none if it failed in validation."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished fit: the model with its best epoch's weights, or the failure."""

    model: nn.Module
    epochs: list[Epoch]
    best_epoch: int | None
    """The epoch with the lowest validation loss."""
    failure: Failure | None

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


class RowMean(Metric):
    """Mean over the rows of all workers, of outputs (sum over this worker's rows, rows)."""

    def reset(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)

    def update(self, output: tuple[float, int]) -> None:
        self._sums += torch.tensor(output, dtype=torch.float64)

    @sync_all_reduce("_sums")
    def compute(self) -> float:
        total, rows = self._sums.tolist()
        return total / rows


@dataclass(kw_only=True)
class _Fitting:
    """A fit under way."""

    spec: CandidateSpec
    training: TrainingSpec
    table: EmbeddingTable
    modalities: tuple[str, ...]
    device: torch.device | str
    train_rows: Tensor
    validation_rows: Tensor
    model: nn.Module
    optimizer: torch.optim.Optimizer
    order: Tensor
    """The training rows in the order of this epoch."""
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int | None = None
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    failure: Failure | None = None
    epoch_started: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return step_count(len(self.train_rows), batch_size=self.training.batch_size)

    @property
    def validation_steps(self) -> int:
        return step_count(len(self.validation_rows), batch_size=self.training.batch_size)


def fit_candidate(
    spec: CandidateSpec,
    *,
    table: EmbeddingTable,
    training: TrainingSpec,
    device: torch.device | str = "cpu",
    resume: FitState | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    save: Callable[[FitState], None] | None = None,
) -> Fit:
    """Fit one candidate on the modalities that it names, or on all of the table.

    Every worker calls it with equal arguments. `on_epoch` and `save` are called on every worker;
    `save` every `checkpoint_every` epochs, with a state that as `resume` leads to the same end,
    bit for bit on like hardware. A loss that is not finite ends the fit with a `Failure`.
    Untrainable, on every worker, if there are no rows to learn from; CandidateFault if the
    candidate's own code raises.
    """
    modalities = spec.resolved_modalities(tuple(table.embeddings))
    rows = {
        split: objective_rows(table, split=split, objective=spec.objective, modalities=modalities)
        for split in ("train", "validation")
    }
    with own_code():
        model = make_model(spec, table=table, modalities=modalities, device=device)
        optimizer = make_optimizer(model, spec=spec)
    fitting = _Fitting(
        spec=spec,
        training=training,
        table=table,
        modalities=modalities,
        device=device,
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        model=model,
        order=rows["train"],
        optimizer=optimizer,
    )
    if has_closed_form(model):
        return _solved(fitting, on_epoch=on_epoch)
    trainer = Engine(lambda engine, _: _take_step(fitting, engine=engine))
    RowMean().attach(trainer, "loss")
    evaluator = _evaluator(fitting)
    stopping = EarlyStopping(
        patience=training.patience,
        score_function=lambda engine: -engine.state.metrics["loss"],
        trainer=trainer,
    )
    stopping.logger.setLevel(logging.WARNING)
    evaluator.add_event_handler(Events.COMPLETED, stopping)

    def finish_epoch(engine: Engine) -> None:
        if fitting.failure:
            return
        _expect(fitting, fitting.validation_rows, steps=fitting.validation_steps)
        evaluator.run(range(fitting.validation_steps))
        if not _note_epoch(fitting, trainer=engine, evaluator=evaluator):
            engine.terminate()
            return
        if on_epoch:
            on_epoch(fitting.epochs[-1])
        if save and len(fitting.epochs) % training.checkpoint_every == 0:
            save(_state(fitting, stopping=stopping))

    def start_epoch(engine: Engine) -> None:
        fitting.order = epoch_order(
            rows["train"],
            seed=spec.seed,
            epoch=engine.state.epoch,
            shards=table.shards,
            window=training.shuffle_buffer,
        )
        _expect(fitting, fitting.order, steps=fitting.steps)
        fitting.epoch_started = time.perf_counter()

    trainer.add_event_handler(Events.EPOCH_STARTED, start_epoch)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, finish_epoch)
    if resume is not None:
        with own_code():
            _restore(fitting, resume, stopping=stopping)
        trainer.load_state_dict(
            {
                "epoch": resume.epoch,
                "max_epochs": training.max_epochs,
                "epoch_length": fitting.steps,
            }
        )
    if len(fitting.epochs) < training.max_epochs and stopping.counter < training.patience:
        with torch.random.fork_rng(devices=[]):
            trainer.run(range(fitting.steps), max_epochs=training.max_epochs)
    if fitting.best:
        model.load_state_dict(fitting.best)
    return Fit(
        model=model.eval(),
        epochs=fitting.epochs,
        best_epoch=fitting.best_epoch,
        failure=fitting.failure,
    )


def _solved(fitting: _Fitting, *, on_epoch: Callable[[Epoch], None] | None) -> Fit:
    """The fit of a model that has a closed form, told as a single epoch."""
    begun = time.perf_counter()
    with own_code():
        train_loss = solve(
            fitting.model,
            table=fitting.table,
            rows=fitting.train_rows,
            modalities=fitting.modalities,
            batch_size=fitting.training.batch_size,
            device=fitting.device,
        )
    validated = _evaluator(fitting).run(range(fitting.validation_steps))
    loss = validated.metrics["loss"]
    if not math.isfinite(train_loss + loss):
        fitting.failure = Failure(
            reason="the loss is not finite", epoch=1, step=1, learning_rate=0.0, sample_ids=[]
        )
        return Fit(model=fitting.model, epochs=[], best_epoch=None, failure=fitting.failure)
    epoch = Epoch(
        epoch=1,
        train_loss=train_loss,
        validation_loss=loss,
        validation_accuracy=None,
        learning_rate=0.0,
        seconds=time.perf_counter() - begun,
    )
    if on_epoch:
        on_epoch(epoch)
    return Fit(model=fitting.model.eval(), epochs=[epoch], best_epoch=1, failure=None)


def objective_rows(
    table: EmbeddingTable, *, split: str, objective: Objective, modalities: tuple[str, ...]
) -> Tensor:
    """Rows of a split that an objective learns from: labelled ones, or those with a pair."""
    if objective == "task":
        return table.labelled(split)
    rows = table.with_modalities(split, modalities=modalities, least=2)
    if len(rows) < 2:
        raise Untrainable(
            f"an alignment of {', '.join(modalities)} learns from samples that have two of them; "
            f"the {split} split has {len(rows)}"
        )
    return rows


def _expect(fitting: _Fitting, order: Tensor, *, steps: int) -> None:
    """Let this worker's part of some steps be read ahead."""
    own = worker_rows(order, steps=steps, rank=worker_rank(), workers=worker_count())
    fitting.table.expect(own, modalities=fitting.modalities)


def _take_step(fitting: _Fitting, *, engine: Engine) -> tuple[float, int]:
    """One training step; (loss times this worker's rows, rows)."""
    spec, training = fitting.spec, fitting.training
    epoch, step = engine.state.epoch, (engine.state.iteration - 1) % fitting.steps
    rate = learning_rate(
        engine.state.iteration - 1,
        steps=fitting.steps * training.max_epochs,
        warmup=training.warmup,
        highest=spec.learning_rate,
    )
    for group in fitting.optimizer.param_groups:
        group["lr"] = rate
    rows = step_rows(fitting.order, step=step, steps=fitting.steps)
    batch = train_batch(
        spec,
        table=fitting.table,
        rows=rows,
        modalities=fitting.modalities,
        epoch=epoch,
        step=step,
        device=fitting.device,
    )
    seed_step(fitting.model, seed=spec.seed, epoch=epoch, step=step, rows=len(rows))
    with own_code():
        outcome = train_step(
            fitting.model,
            optimizer=fitting.optimizer,
            batch=batch,
            objective=spec.objective,
            gradient_clip=training.gradient_clip,
        )
    if not outcome.finite:
        what = "gradient" if math.isfinite(outcome.loss) else "loss"
        fitting.failure = Failure(
            reason=f"the {what} is not finite",
            epoch=epoch,
            step=engine.state.iteration,
            learning_rate=rate,
            sample_ids=fitting.table.sample_ids.take(rows.numpy()).to_pylist(),
        )
        engine.terminate()
    return outcome.loss * batch.rows, batch.rows


def _evaluator(fitting: _Fitting) -> Engine:
    """An engine over the validation rows, with the metrics `loss` and `accuracy`.

    Global batches in row order, each divided among the workers: no row is left out or counted
    twice. The accuracy is that of a classifier; an alignment has none yet.
    """
    spec = fitting.spec

    @torch.no_grad()
    @own_code()
    def evaluate(_: Engine, step: int) -> dict[str, tuple[float, int]]:
        rows = step_rows(fitting.validation_rows, step=step, steps=fitting.validation_steps)
        batch = worker_batch(
            fitting.table, rows=rows, modalities=fitting.modalities, device=fitting.device
        )
        fitting.model.eval()
        if spec.objective == "own":
            share = loss_share(fitting.model, batch=batch, objective=spec.objective)
            return {"loss": (float(sum_over_workers(share)) * batch.rows, batch.rows)}
        logits = fitting.model(*batch.inputs)
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        right = (logits.argmax(dim=1) == batch.targets).sum()
        return {"loss": (float(loss), batch.rows), "accuracy": (int(right), batch.rows)}

    engine = Engine(evaluate)
    names = ("loss", "accuracy") if spec.objective == "task" else ("loss",)
    for name in names:
        RowMean(lambda output, name=name: output[name]).attach(engine, name)
    return engine


def _note_epoch(fitting: _Fitting, *, trainer: Engine, evaluator: Engine) -> bool:
    """Add an epoch's results, and keep its weights if they are the best; False if it failed."""
    metrics = evaluator.state.metrics
    epoch = Epoch(
        epoch=trainer.state.epoch,
        train_loss=trainer.state.metrics["loss"],
        validation_loss=metrics["loss"],
        validation_accuracy=metrics.get("accuracy"),
        learning_rate=fitting.optimizer.param_groups[0]["lr"],
        seconds=time.perf_counter() - fitting.epoch_started,
    )
    if not math.isfinite(epoch.validation_loss):
        fitting.failure = Failure(
            reason="the validation loss is not finite",
            epoch=epoch.epoch,
            step=trainer.state.iteration,
            learning_rate=epoch.learning_rate,
            sample_ids=[],
        )
        return False
    fitting.epochs.append(epoch)
    if epoch.validation_loss < fitting.best_loss:
        fitting.best_epoch, fitting.best_loss = epoch.epoch, epoch.validation_loss
        fitting.best = _copied(fitting.model.state_dict())
    return True


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, whatever becomes of the originals."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def _state(fitting: _Fitting, *, stopping: EarlyStopping) -> FitState:
    progress: dict[str, Any] = {
        "epochs": [dataclasses.asdict(epoch) for epoch in fitting.epochs],
        "best_epoch": fitting.best_epoch,
        "best_loss": fitting.best_loss,
        "early_stopping": dict(stopping.state_dict()),
    }
    return FitState(
        epoch=fitting.epochs[-1].epoch,
        model=_copied(fitting.model.state_dict()),
        optimizer=_copied(optimizer_tensors(fitting.optimizer)),
        best=fitting.best,
        progress=progress,
    )


def _restore(fitting: _Fitting, state: FitState, *, stopping: EarlyStopping) -> None:
    fitting.model.load_state_dict(dict(state.model))
    load_optimizer(fitting.optimizer, tensors=state.optimizer)
    stopping.load_state_dict(state.progress["early_stopping"])
    fitting.epochs = [Epoch(**epoch) for epoch in state.progress["epochs"]]
    fitting.best_epoch = state.progress["best_epoch"]
    fitting.best_loss = state.progress["best_loss"]
    fitting.best = {name: value.to(fitting.device) for name, value in state.best.items()}
