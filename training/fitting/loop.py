"""The loop of a fit: steps, epochs, validation, early stopping, of one candidate or several.

Runs on one worker or on all workers of torch's process group, with no Ray and no file. Every worker
takes the same steps and comes to the same decisions, since all that decides is summed over the
workers first. What is done at a step is told in `training.fitting.step`, of several candidates at
once in `training.fitting.stack`; what is known of each candidate in `training.fitting.member`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.batch import Batch
from training.data.table import EmbeddingTable, step_count, step_rows, worker_rows
from training.data.targets import Untrainable
from training.faults import own_code
from training.fitting.alone import Alone
from training.fitting.checkpoint import FitState
from training.fitting.closed_form import has_closed_form, solve
from training.fitting.member import Epoch, Failure, Member, Stopwatch
from training.fitting.monitor import validation_metrics
from training.fitting.stack import Stack
from training.fitting.step import Step, worker_batch
from training.spec import CandidateSpec, Objective
from training.training_spec import TrainingSpec
from training.workers import gather_rows, worker_count, worker_rank

__all__ = ["Epoch", "Failure", "Fit", "fit_candidate", "fit_together", "objective_rows"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished fit: the model with its best epoch's weights, or the failure."""

    model: nn.Module
    epochs: list[Epoch]
    best_epoch: int | None
    """The epoch with the best `training.monitor`, as a rule the lowest validation loss."""
    failure: Failure | None

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.epochs)


class Weights(Protocol):
    """The weights and optimizers of the candidates that a loop fits, K of which are not over."""

    numbers: list[int]
    """Which of the candidates are still fitted, ascending."""

    def step(
        self, members: Sequence[Member], *, rows: Sequence[Tensor], calls: float
    ) -> list[Step]:
        """A step of each on a global batch of its own rows."""

    def outputs(self, batch: Batch) -> Tensor:
        """Each one's answers `[K, B, C]` for the rows of one batch."""

    def own_losses(self, batch: Batch) -> Tensor:
        """Each one's own loss `[K]` over one global batch."""

    def validated(self, number: int) -> dict[str, Tensor]:
        """A copy of one's tensors that are validated."""

    def state(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Copies of `model`, `optimizer` and `average`, as `FitState` has them."""

    def restore(self, number: int, state: FitState) -> None:
        """Let one go on from a state."""

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with some of them alone."""

    def fitted(self, number: int, *, tensors: Mapping[str, Tensor]) -> nn.Module:
        """One's model with these tensors."""


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

    As `fit_together` does several; for whoever tries a model in Python, with neither store nor Ray.
    """
    (fit,) = fit_together(
        [spec],
        table=table,
        training=training,
        device=device,
        resume=None if resume is None else [resume],
        on_epoch=None if on_epoch is None else lambda _, epoch: on_epoch(epoch),
        save=None if save is None else lambda states: save(states[0]),
    )
    return fit


def fit_together(
    specs: Sequence[CandidateSpec],
    *,
    table: EmbeddingTable,
    training: TrainingSpec,
    device: torch.device | str = "cpu",
    resume: Sequence[FitState] | None = None,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    save: Callable[[Sequence[FitState]], None] | None = None,
) -> list[Fit]:
    """Fit candidates of one architecture in one pass, each as if it were alone, up to rounding.

    One alone may be of any kind; several must have one `training.fitting.grouping.architecture`.

    Every worker calls it with equal arguments. `on_epoch` (with the candidate's place) and `save`
    are called on every worker; `save` as the spec's `checkpoint_` fields say, with a state of each
    candidate that as `resume` lead to the same end, bit for bit on like hardware. A loss that is
    not finite ends a candidate's fit with a `Failure`, and no other's. Untrainable, on every
    worker, if there are no rows to learn from, or a candidate is not for the task; CandidateFault
    if a candidate's own code raises.
    """
    modalities = specs[0].resolved_modalities(tuple(table.embeddings))
    for spec in specs:
        for where, text in spec.check_task(table.task.spec):
            raise Untrainable(f"`{'.'.join(map(str, where))}`: {text}")
    objective = specs[0].objective
    rows, validation_rows = (
        objective_rows(table, split=split, objective=objective, modalities=modalities)
        for split in ("train", "validation")
    )
    steps = step_count(len(rows), batch_size=training.batch_size)
    members = [
        Member(spec, training=training, rows=rows, steps=steps, shards=table.shards)
        for spec in specs
    ]
    with _surroundings(training), own_code():
        options: dict[str, Any] = {
            "table": table, "modalities": modalities, "training": training, "device": device
        }  # fmt: skip
        weights: Weights = Stack(specs, **options) if len(specs) > 1 else Alone(specs[0], **options)
        for number, state in enumerate(resume or ()):
            members[number].restore(state)
            weights.restore(number, state)
    fitting = _Fitting(
        members=members,
        weights=weights,
        table=table,
        modalities=modalities,
        training=training,
        device=device,
        validation_rows=validation_rows,
        objective=objective,
        on_epoch=on_epoch,
        save=save,
    )
    with _surroundings(training):
        if isinstance(weights, Alone) and has_closed_form(weights.model):
            fitting.solve(weights.model)
        else:
            fitting.run()
    return [
        Fit(
            model=weights.fitted(number, tensors=member.best),
            epochs=member.epochs,
            best_epoch=member.monitor.best_epoch,
            failure=member.failure,
        )
        for number, member in enumerate(members)
    ]


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


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    """Fits under way, all at the same step."""

    members: Sequence[Member]
    weights: Weights
    table: EmbeddingTable
    modalities: tuple[str, ...]
    training: TrainingSpec
    device: torch.device | str
    validation_rows: Tensor
    objective: Objective
    on_epoch: Callable[[int, Epoch], None] | None
    save: Callable[[Sequence[FitState]], None] | None
    expected: list[int] = field(default_factory=list)
    """Epochs whose rows were named for reading ahead."""

    def run(self) -> None:
        """Take steps until all are over."""
        self._keep_active()
        watch, since_save = Stopwatch(), Stopwatch()
        while numbers := list(self.weights.numbers):
            active = [self.members[number] for number in numbers]
            late = worker_rank() == 0 and since_save.passed > self._minutes * 60
            called = self._step(active, calls=float(late))
            seconds = watch.read() / len(active)
            for member in active:
                member.sums.seconds += seconds
            going = [number for number in numbers if not self.members[number].over]
            first = self.members[going[0]] if going else None
            ended = first is not None and first.step == first.steps
            if ended:
                self._end_epoch(going, watch=watch)
                first = next((m for m in active if m.failure is None), None)
            if self.save and first is not None and self._is_due(first, ended=ended, called=called):
                self.save(self._states())
                since_save.read()
            self._keep_active()
        if self.save and len(self.members) > 1:
            # Before any of them is written: what is found of them is found of all.
            self.save(self._states())

    def solve(self, model: nn.Module) -> None:
        """Fit a model that has a closed form, which is told as a single epoch."""
        (member,) = self.members
        watch = Stopwatch()
        with own_code():
            loss = solve(
                model,
                table=self.table,
                rows=member.rows,
                modalities=self.modalities,
                batch_size=self.training.batch_size,
                device=self.device,
            )
        member.note_solved(loss)
        if member.failure is None:
            self._end_epoch([0], watch=watch)

    @property
    def _minutes(self) -> float:
        return self.training.checkpoint_minutes or float("inf")

    def _keep_active(self) -> None:
        numbers = [n for n in self.weights.numbers if not self.members[n].over]
        if numbers != self.weights.numbers:
            self.weights.keep(numbers)

    def _step(self, active: Sequence[Member], *, calls: float) -> bool:
        """One step of all; whether a worker has called for a checkpoint."""
        rows = [member.next_rows() for member in active]
        if len(active) == 1:
            self._expect_epoch(active[0])
        with own_code():
            outcomes = self.weights.step(active, rows=rows, calls=calls)
        for member, own, outcome in zip(active, rows, outcomes, strict=True):
            ids: list[str] = []
            if not outcome.finite:
                ids = self.table.sample_ids.take(own.numpy()).to_pylist()
            member.note_step(outcome, rows=len(own), sample_ids=ids)
        return any(outcome.calls > 0 for outcome in outcomes)

    def _expect_epoch(self, member: Member) -> None:
        """Let this worker's part of what is left of an epoch be read ahead, once."""
        if self.expected and self.expected[-1] == member.epoch:
            return
        self.expected.append(member.epoch)
        self._expect(member.order, steps=member.steps, first_step=member.step)

    def _expect(self, order: Tensor, *, steps: int, first_step: int = 0) -> None:
        own = worker_rows(
            order, steps=steps, rank=worker_rank(), workers=worker_count(), first_step=first_step
        )
        self.table.expect(own, modalities=self.modalities)

    def _end_epoch(self, numbers: Sequence[int], *, watch: Stopwatch) -> None:
        found = dict(zip(self.weights.numbers, self._validate(), strict=True))
        seconds = watch.read() / len(numbers)
        for number in numbers:
            member = self.members[number]
            member.sums.seconds += seconds
            if member.note_epoch(found[number]):
                member.best = self.weights.validated(number)
            if self.on_epoch and member.failure is None:
                self.on_epoch(number, member.epochs[-1])

    @torch.no_grad()
    def _validate(self) -> list[dict[str, float]]:
        """Each candidate's metrics over the validation rows, none left out or counted twice.

        Global batches in row order, each divided among the workers.
        """
        rows = self.validation_rows
        steps = step_count(len(rows), batch_size=self.training.batch_size)
        self._expect(rows, steps=steps)
        outputs, targets = [], []
        losses = torch.zeros(len(self.weights.numbers), dtype=torch.float64)
        for step in range(steps):
            taken = step_rows(rows, step=step, steps=steps)
            batch = worker_batch(
                self.table, rows=taken, modalities=self.modalities, device=self.device
            )
            with own_code():
                if self.objective == "own":
                    losses += self.weights.own_losses(batch).cpu().double() * len(taken)
                else:
                    outputs.append(self.weights.outputs(batch))
                    targets.append(batch.targets)
        if self.objective == "own":
            return [{"loss": loss} for loss in (losses / len(rows)).tolist()]
        answers_RKC = gather_rows(torch.cat(outputs, dim=1).transpose(0, 1).contiguous()).rows
        targets_R = gather_rows(torch.cat(targets)).rows
        return [
            validation_metrics(
                self.table.task,
                answers_RC,
                targets_R=targets_R,
                monitor=self.training.monitor,
            )
            for answers_RC in answers_RKC.unbind(dim=1)
        ]

    def _is_due(self, member: Member, *, ended: bool, called: bool) -> bool:
        """Whether a checkpoint is to be made after a step, or the end of an epoch."""
        if ended and len(member.epochs) % self.training.checkpoint_every == 0:
            return True
        every = self.training.checkpoint_steps
        return called or (every is not None and member.steps_taken % every == 0)

    def _states(self) -> list[FitState]:
        """The state of each candidate; of one that is over, what is kept of it."""
        empty: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        return [
            member.state(
                **(self.weights.state(number) if number in self.weights.numbers else empty)
            )
            for number, member in enumerate(self.members)
        ]


@contextmanager
def _surroundings(training: TrainingSpec) -> Iterator[None]:
    """A block with a random state of its own, and with deterministic operations if asked for."""
    with torch.random.fork_rng(devices=[]):
        if not training.deterministic:
            yield
            return
        before = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        # Asked for by cuBLAS: https://docs.nvidia.com/cuda/cublas, "Results reproducibility".
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
