"""What every worker of the training job runs: one round of its agenda after another.

The first worker looks what is to be fitted next, and the others do as it says; so a search goes on
from round to round in the same worker group, over the same loaded table. What follows the looks is
the same on every worker. A round costs a look (see `training.agenda`) beside its fits.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch

from features.snapshot import Snapshot
from features.sources import SourceError
from features.storage import open_storage
from features.store import Store
from training.agenda import Agenda, Due
from training.allocator import keep_freed_memory
from training.candidate import PlannedCandidate
from training.data.loaded import LoadedTable
from training.data.reading import MemoryTooSmall
from training.data.table import EmbeddingTable, load_table
from training.data.targets import Untrainable
from training.faults import CandidateFault, agreement_group, all_workers_agree
from training.fitting.checkpoint import FitState, read_about, read_checkpoints, write_checkpoint
from training.fitting.loop import Epoch
from training.memory import memory_bytes
from training.pass_progress import PassProgress
from training.passes import RUNS_FOLDER, Passes, divide, settled
from training.produce import produce_together
from training.progress import Reporter, post_round
from training.search.proposals import NothingToPropose
from training.training_spec import TrainingSpec
from training.tuning.payloads import PayloadSource
from training.tuning.table import table_for
from training.workers import alone, from_all_workers, of_first_worker, worker_count, worker_rank


def fit_on_worker(config: dict[str, Any]) -> str | None:
    """Fit what is not done; what kept candidates from being fitted, or None.

    An error that would come again is returned, not raised, since Ray tries again what is raised.
    """
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    store = Store(open_storage(config["store_root"]))
    rounds = _Rounds(
        agenda=Agenda.from_json(config["agenda"]),
        store=store,
        snapshot=store.read_snapshot(config["snapshot_id"]),
        device=device,
        mailbox=config["mailbox"],
        payloads=config["payloads"],
    )
    try:
        return rounds.fit()
    except (ImportError, NothingToPropose, Untrainable, MemoryTooSmall) as error:
        return str(error)


class _Rounds:
    """The rounds of a job on this worker, and the table that they are fitted to."""

    def __init__(
        self,
        *,
        agenda: Agenda,
        store: Store,
        snapshot: Snapshot,
        device: torch.device,
        mailbox: Any,
        payloads: PayloadSource | None,
    ) -> None:
        self._agenda = agenda
        self._store = store
        self._snapshot = snapshot
        self._device = device
        self._mailbox = mailbox
        self._payloads = payloads
        self._folder = f"{RUNS_FOLDER}/{agenda.name(snapshot=snapshot)}"
        self._interrupted = _Interrupted.found()
        self._agreement = agreement_group()
        self._tried: set[str] = set()
        self._faults: list[str] = []
        self._table = LoadedTable(self._load)

    def fit(self) -> str | None:
        """Fit what is not done; what kept candidates from being fitted, or None."""
        try:
            while (due := self._next()) is not None:
                self._fit_round(due, table=self._table_of(due.missing()))
        finally:
            self._table.close()
        return "; ".join(self._faults) or None

    def _next(self) -> Due | None:
        """The round that is to be fitted next, as the first worker sees it."""
        due: Due | Exception | None = None
        if worker_rank() == 0:
            try:
                standing = self._agenda.standing(self._store, snapshot=self._snapshot, keep=True)
                due = standing.next(without=self._tried)
            except (ImportError, NothingToPropose) as error:
                due = error  # the others wait for what it has to say
        due = of_first_worker(due)
        if isinstance(due, Exception):
            raise due
        return due

    def _table_of(self, pending: Sequence[PlannedCandidate]) -> EmbeddingTable:
        """The table for some candidates."""
        modalities = {m for candidate in pending for m in candidate.modalities}
        # A task's loss has no use for them, and their keys are read from every sample shard.
        numbered = {m for c in pending if c.spec.objective == "own" for m in c.modalities}
        return self._table.holding(modalities, numbered=numbered)

    def _load(self, *, modalities: list[str], numbered: list[str]) -> EmbeddingTable:
        training = self._agenda.training
        return load_table(
            self._store,
            self._snapshot,
            task=self._agenda.task,
            modalities=modalities,
            numbered=numbered,
            memory=memory_bytes(training.memory, processes=_workers_here()),
            window=training.shuffle_buffer,
            device=self._device,
        )

    def _fit_round(self, due: Due, *, table: EmbeddingTable) -> None:
        """Fit a round: what each worker does by itself, side by side, and then what all do."""
        pending = [c for c in due.missing() if c.fingerprint not in self._tried]
        passes = self._passes(due, pending=pending, in_memory=table.stackable)
        post_round(self._mailbox, due=due, passes=passes)
        numbers = {candidate.fingerprint: number for number, candidate in enumerate(pending, 1)}
        fit = partial(self._fit_groups, training=due.training, table=table, numbers=numbers)
        if passes.apart:
            own = passes.of_worker(worker_rank(), workers=worker_count())
            with alone():
                faults = fit(own, apart=True)
            for found in from_all_workers(faults, group=self._agreement):
                self._faults += found
            self._tried.update(c.fingerprint for group in passes.apart for c in group)
        self._faults += fit(passes.together)

    def _passes(self, due: Due, *, pending: Sequence[PlannedCandidate], in_memory: bool) -> Passes:
        """What is fitted in one pass: first the group that was interrupted, as it was.

        Some of it may be in the store by now; the others end in the same bits only beside them.
        """
        first: list[Sequence[PlannedCandidate]] = []
        if self._interrupted is not None:
            first = self._interrupted.group_of(due, pending=pending)
        taken = {candidate.fingerprint for group in first for candidate in group}
        rest = [candidate for candidate in pending if candidate.fingerprint not in taken]
        training = due.training
        if not in_memory:
            training = training.model_copy(update={"together": 1})
        passes = divide(rest, training=training, in_memory=in_memory)
        if in_memory and worker_rank() == 0:
            passes = settled(
                self._store.storage, folder=self._folder, due=due, pending=rest, passes=passes
            )
        passes = of_first_worker(passes)
        return Passes(apart=passes.apart, together=[*first, *passes.together])

    def _fit_groups(
        self,
        groups: Sequence[Sequence[PlannedCandidate]],
        *,
        training: TrainingSpec,
        table: EmbeddingTable,
        numbers: Mapping[str, int],
        apart: bool = False,
    ) -> list[str]:
        """Fit groups one after another; of each candidate with a fault in its code, what it is."""
        faults: list[str] = []
        waiting = deque(groups)
        while waiting:
            together = waiting.popleft()
            reporters = [
                Reporter(
                    mailbox=self._mailbox,
                    candidate=candidate,
                    number=numbers.get(candidate.fingerprint, 0),
                    of=len(numbers),
                    training=training,
                )
                for candidate in together
            ]
            try:
                failures = self._fit_group(
                    together, training=training, table=table, reporters=reporters, apart=apart
                )
            except (CandidateFault, SourceError) as fault:
                if not all_workers_agree(self._agreement):
                    raise
                if len(together) > 1:
                    # It may be that they cannot be fitted in one pass.
                    waiting.extendleft([candidate] for candidate in reversed(together))
                    continue
                (candidate,) = together
                faults.append(f"candidate {candidate.spec.name!r} cannot be fitted: {fault}")
                failures = [str(fault)]
            self._tried.update(candidate.fingerprint for candidate in together)
            for reporter, failure in zip(reporters, failures, strict=True):
                reporter.end(failure)
        return faults

    def _fit_group(
        self,
        together: Sequence[PlannedCandidate],
        *,
        training: TrainingSpec,
        table: EmbeddingTable,
        reporters: Sequence[Reporter],
        apart: bool,
    ) -> list[str | None]:
        """Fit candidates in one pass; of each, why its fit failed, if it did."""
        states: Sequence[FitState] | None = None
        save: Callable[[Sequence[FitState]], None] = partial(_save, candidates=together)
        if apart:
            progress = PassProgress(self._store.storage, folder=self._folder, group=together)
            states, save = progress.read(), progress.save
        elif self._interrupted is not None:
            states = self._interrupted.states_of(together)
        # A table of payloads is of one candidate, which is fitted by itself.
        with table_for(
            together[0].spec,
            table=table,
            store=self._store,
            snapshot=self._snapshot,
            payloads=self._payloads,
        ) as own:
            records = produce_together(
                together,
                store=self._store,
                snapshot=self._snapshot,
                task=self._agenda.task,
                training=training,
                table=own,
                device=self._device,
                resume=states,
                on_epoch=partial(_report_epoch, reporters),
                save=save,
            )
        return [record.failure["reason"] if record.failure else None for record in records]


def _workers_here() -> int:
    """Workers on this one's machine, which share its memory."""
    return int(ray.train.get_context().get_local_world_size())


def _report_epoch(reporters: Sequence[Reporter], number: int, epoch: Epoch) -> None:
    reporters[number].epoch(epoch)


@dataclass(frozen=True, kw_only=True)
class _Interrupted:
    """The checkpoint of candidates that were fitted in one pass when the job was interrupted."""

    candidates: tuple[str, ...]
    states: Sequence[FitState]

    @classmethod
    def found(cls) -> _Interrupted | None:
        """What Ray has kept, if it has."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            candidates = tuple(read_about(folder)["candidates"])
            return cls(candidates=candidates, states=read_checkpoints(folder))

    def group_of(
        self, due: Due, *, pending: Sequence[PlannedCandidate]
    ) -> list[Sequence[PlannedCandidate]]:
        """The candidates that were interrupted, as one group, if they are of a round and some are
        still to be fitted.
        """
        by_name = {c.fingerprint: c for c in reversed(due.candidates)}
        whole = all(name in by_name for name in self.candidates)
        if not whole or not {c.fingerprint for c in pending} & set(self.candidates):
            return []
        return [[by_name[name] for name in self.candidates]]

    def states_of(self, together: Sequence[PlannedCandidate]) -> Sequence[FitState] | None:
        """The states of these candidates, if it is these that were interrupted."""
        same = tuple(candidate.fingerprint for candidate in together) == self.candidates
        return self.states if same else None


def _save(states: Sequence[FitState], *, candidates: Sequence[PlannedCandidate]) -> None:
    """Hand a checkpoint of the first worker to Ray; all workers must call it."""
    names = ", ".join(candidate.spec.name for candidate in candidates)
    metrics = {"candidates": names, "epoch": max(state.epoch for state in states)}
    if worker_rank() != 0:
        ray.train.report(metrics)
        return
    about = {"candidates": [candidate.fingerprint for candidate in candidates]}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(*states, folder=folder, about=about)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
