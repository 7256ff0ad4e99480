"""One candidate's fit as it stands: which step is next, how its epochs went, whether it is over.

What is known here of several candidates that are fitted at once is only each one's own.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from training.data.table import epoch_order, step_rows
from training.fitting.checkpoint import FitState
from training.fitting.monitor import Monitor
from training.fitting.precision import LossScale
from training.fitting.step import Step, learning_rate
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training rows came to."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the rows as they were met, with dropout."""
    gradient_norm: float
    """Mean over the steps, before clipping."""
    validation_loss: float
    validation_accuracy: float | None
    """None for an alignment, whose classifier is fitted afterwards, and for tasks without one."""
    validation_metrics: Mapping[str, float] = field(default_factory=dict)
    """All metrics of the validation, the loss among them."""
    learning_rate: float
    """Of the last step."""
    seconds: float
    """Of all candidates that were fitted in the same pass, their equal share."""


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


@dataclass(kw_only=True)
class Sums:
    """What has been added up in the epoch under way."""

    loss: float = 0.0
    rows: int = 0
    norm: float = 0.0
    finite: int = 0
    """Steps whose gradient was finite."""
    seconds: float = 0.0


class Member:
    """A fit under way, but for its weights."""

    def __init__(
        self,
        spec: CandidateSpec,
        *,
        training: TrainingSpec,
        rows: Tensor,
        steps: int,
        shards: Tensor | None = None,
    ) -> None:
        self.spec = spec
        self.training = training
        self.shards = shards
        """Where the table's shards begin, if it comes from a store; see `epoch_order`."""
        self.rows = rows
        """The training rows."""
        self.steps = steps
        """Of an epoch."""
        self.step = 0
        """Steps that are taken of the epoch under way."""
        self.epochs: list[Epoch] = []
        self.monitor = Monitor(training=training)
        self.scale = LossScale.of(training.precision)
        self.best: dict[str, Tensor] = {}
        """The weights after the best epoch."""
        self.failure: Failure | None = None
        self.sums = Sums()
        self._order: tuple[int, Tensor] | None = None

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return len(self.epochs) + 1

    @property
    def steps_taken(self) -> int:
        """Since the start of the fit."""
        return len(self.epochs) * self.steps + self.step

    @property
    def over(self) -> bool:
        return (
            self.failure is not None
            or len(self.epochs) >= self.training.max_epochs
            or self.monitor.out_of_patience
        )

    @property
    def order(self) -> Tensor:
        """The training rows in the order of the epoch under way."""
        if self._order is None or self._order[0] != self.epoch:
            order = epoch_order(
                self.rows,
                seed=self.spec.seed,
                epoch=self.epoch,
                shards=self.shards,
                window=self.training.shuffle_buffer,
            )
            self._order = (self.epoch, order)
        return self._order[1]

    def next_rows(self) -> Tensor:
        """The global batch of the next step."""
        return step_rows(self.order, step=self.step, steps=self.steps)

    def rate(self, *, steps_taken: int) -> float:
        """The learning rate of the step after so many."""
        return learning_rate(
            steps_taken,
            steps=self.steps * self.training.max_epochs,
            warmup=self.training.warmup,
            highest=self.spec.learning_rate,
        )

    def note_step(self, outcome: Step, *, rows: int, sample_ids: Sequence[str]) -> None:
        """Take account of a step on a global batch of `rows`; it may be the end of the fit."""
        finite = math.isfinite(outcome.gradient_norm)
        skipped = math.isfinite(outcome.loss) and not finite and self.scale.value > 1
        if not outcome.finite and not skipped:
            self.failure = Failure(
                reason=f"the {'gradient' if math.isfinite(outcome.loss) else 'loss'} is not finite",
                epoch=self.epoch,
                step=self.steps_taken + 1,
                learning_rate=self.rate(steps_taken=self.steps_taken),
                sample_ids=list(sample_ids),
            )
            return
        if self.training.precision == "float16":
            self.scale.note(finite=finite)
        self.sums.loss += outcome.loss * rows
        self.sums.rows += rows
        if finite:
            self.sums.norm += outcome.gradient_norm
            self.sums.finite += 1
        self.step += 1

    def note_solved(self, loss: float) -> None:
        """Take account of a fit in closed form, with its mean loss over the training rows."""
        if not math.isfinite(loss):
            self.failure = Failure(
                reason="the loss is not finite", epoch=1, step=1, learning_rate=0.0, sample_ids=[]
            )
        self.sums.loss, self.sums.rows = loss * len(self.rows), len(self.rows)

    def note_epoch(self, metrics: Mapping[str, float]) -> bool:
        """Take account of an epoch's validation; whether the weights are the best so far."""
        epoch = Epoch(
            epoch=self.epoch,
            train_loss=self.sums.loss / max(1, self.sums.rows),
            gradient_norm=self.sums.norm / max(1, self.sums.finite),
            validation_loss=metrics["loss"],
            validation_accuracy=metrics.get("accuracy"),
            validation_metrics=dict(metrics),
            learning_rate=self.rate(steps_taken=self.steps_taken - 1),
            seconds=self.sums.seconds,
        )
        if not math.isfinite(epoch.validation_loss):
            self.failure = Failure(
                reason="the validation loss is not finite",
                epoch=epoch.epoch,
                step=self.steps_taken,
                learning_rate=epoch.learning_rate,
                sample_ids=[],
            )
            return False
        self.epochs.append(epoch)
        self.step, self.sums = 0, Sums()
        best = self.monitor.is_best(metrics, epoch=epoch.epoch, objective=self.spec.objective)
        if self.over and self.monitor.best_epoch is None:
            self.failure = Failure(
                reason=f"in none of its epochs did the answers define {self.training.monitor!r} "
                "(training.monitor), as answers that are all alike do not",
                epoch=epoch.epoch,
                step=self.steps_taken,
                learning_rate=epoch.learning_rate,
                sample_ids=[],
            )
        return best

    def state(
        self,
        *,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        average: Mapping[str, Tensor],
    ) -> FitState:
        """All of it, with the weights as they are now."""
        progress: dict[str, Any] = {
            "epochs": [dataclasses.asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.monitor.best_epoch,
            "best": self.monitor.best,
            "waited": self.monitor.waited,
            "failure": self.failure and dataclasses.asdict(self.failure),
            "sums": dataclasses.asdict(self.sums),
            "scale": dataclasses.asdict(self.scale),
        }
        return FitState(
            epoch=len(self.epochs),
            step=self.step,
            model=model,
            optimizer=optimizer,
            average=average,
            best=self.best,
            progress=progress,
        )

    def restore(self, state: FitState) -> None:
        """Go on from a state, with the weights as another restores them."""
        progress = state.progress
        self.epochs = [Epoch(**epoch) for epoch in progress["epochs"]]
        self.step = state.step
        self.monitor = Monitor(
            training=self.training,
            best_epoch=progress["best_epoch"],
            best=progress["best"],
            waited=progress["waited"],
        )
        self.failure = Failure(**progress["failure"]) if progress["failure"] else None
        self.sums = Sums(**progress["sums"])
        self.scale = LossScale(**progress["scale"])
        self.best = dict(state.best)


class Stopwatch:
    """The time that has passed since it was last read."""

    def __init__(self) -> None:
        self._read = time.perf_counter()

    @property
    def passed(self) -> float:
        """Seconds since it was last read."""
        return time.perf_counter() - self._read

    def read(self) -> float:
        """Seconds since the last reading, or since it was made."""
        before, self._read = self._read, time.perf_counter()
        return self._read - before
