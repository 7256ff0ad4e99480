"""The Ray Train job: one worker group that fits all candidates that are not done.

Every worker loads the snapshot once. Small candidates of one architecture are fitted in one pass,
the others in turn. The first worker writes a candidate into the store when
it is done, so a killed job goes on with the next one; within a candidate it goes on from the
last checkpoint, which Ray keeps under `train-runs/` in the store until the job is done.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import GetTimeoutError

from features.fingerprint import fingerprint
from features.sources import SourceError
from features.storage import open_storage
from features.store import Store
from training.allocator import keep_freed_memory
from training.built_in import parse_candidate
from training.candidate import (
    CandidateRecord,
    PlannedCandidate,
    plan_candidates,
)
from training.checkpoint import FitState, read_about, read_checkpoints, write_checkpoint
from training.data import load_table
from training.faults import CandidateFault, agreement_group, all_workers_agree
from training.grouping import group
from training.live_data import table_for
from training.live_payloads import PayloadSource
from training.loop import Epoch
from training.memory import memory_bytes
from training.produce import produce_together
from training.reading import MemoryTooSmall
from training.spec import CandidateSpec
from training.targets import Untrainable
from training.task import TaskSpec, parse_task
from training.training_spec import TrainingSpec
from training.workers import of_first_worker, worker_rank

RUNS_FOLDER = "train-runs"
RETRIES = 3
"""How often the worker group is started again after a worker has died."""
POLL_SECONDS = 0.3
MAILBOX_SECONDS = 10.0
"""How long the driver waits for what its mailbox holds."""
HEALTH_CHECK = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
"""How often Ray looks at its workers; a checkpoint takes as long, and by default that is 2 s."""


class TrainingError(ValueError):
    """The training cannot run as it is configured; the message is for the one who did."""


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """A candidate's epoch, or its end."""

    candidate: str
    number: int
    """Which of the candidates to fit it is, counted from 1."""
    of: int
    epoch: int
    max_epochs: int
    validation_loss: float | None
    validation_accuracy: float | None
    done: bool
    failure: str | None
    process: int
    """The first worker's process id."""


def fit(
    *,
    store_root: str,
    snapshot_id: str,
    task: TaskSpec,
    candidates: Sequence[CandidateSpec],
    training: TrainingSpec,
    payloads: PayloadSource | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
) -> list[CandidateRecord]:
    """Fit the candidates that are not in the store yet; returns all their records, in order.

    Give all candidates of a pipeline, done or not: they name the run that a killed job continues.
    Ray must be connected. A candidate whose loss is not finite, or which its data do not allow,
    is recorded as failed, and the others go on. TrainingError if the cluster is too small or
    no candidate can be trained on the data; and, after the others, if a candidate's own code
    raises: it is not recorded, so that it is tried again once the code is mended. `payloads` is
    for candidates whose encoders are tuned.
    """
    store = Store(open_storage(store_root))
    snapshot = store.read_snapshot(snapshot_id)

    def plan() -> list[PlannedCandidate]:
        return plan_candidates(
            store, snapshot=snapshot, task=task, candidates=candidates, training=training
        )

    planned = plan()
    if all(candidate.record for candidate in planned):
        # A job that was killed after its last candidate has left its checkpoints.
        _forget_run(store, name=run_name(planned))
    else:
        gpu = _check_resources(training.workers)
        with _mailbox(on_progress) as mailbox:
            _run(
                planned,
                config={
                    "store_root": store.storage.root,
                    "snapshot_id": snapshot_id,
                    "task": task.model_dump(mode="json"),
                    "training": training.model_dump(mode="json"),
                    "candidates": [c.spec.model_dump(mode="json") for c in planned],
                    "mailbox": mailbox,
                    "payloads": payloads,
                },
                store=store,
                workers=training.workers,
                gpu=gpu,
                is_done=lambda: all(candidate.record for candidate in plan()),
            )
        planned = plan()
    records = [candidate.record for candidate in planned if candidate.record is not None]
    if len(records) < len(planned):
        left = ", ".join(c.spec.name for c in planned if c.record is None)
        raise RuntimeError(f"the training job ended without an error, but left out: {left}")
    return records


def _check_resources(workers: int) -> bool:
    """Whether every worker can have a GPU; TrainingError if it cannot even have a CPU.

    Ray would wait for resources that never come, without a word.
    """
    resources = ray.cluster_resources()
    cpus = int(resources.get("CPU", 0))
    if workers > cpus:
        raise TrainingError(
            f"training.workers: {workers} workers need a CPU each, and the Ray cluster has "
            f"{cpus}; lower it, or add nodes"
        )
    return int(resources.get("GPU", 0)) >= workers


def _run(
    planned: Sequence[PlannedCandidate],
    *,
    config: Mapping[str, Any],
    store: Store,
    workers: int,
    gpu: bool,
    is_done: Callable[[], bool],
) -> None:
    """One Ray Train run over the candidates; the same ones again continue it.

    Two jobs over the same candidates at once share their checkpoints, which either can go on
    from. The first to end deletes them, and what the other was fitting is in the store by then.
    """
    os.environ.setdefault(*HEALTH_CHECK)
    filesystem, root = store.storage.filesystem()
    name = run_name(planned)
    trainer = ray.train.torch.TorchTrainer(
        cast(Any, fit_on_worker),
        train_loop_config=dict(config),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=f"{root}/{RUNS_FOLDER}",
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=RETRIES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        result: Any = _fit_apart(trainer)
    except ray.train.TrainingFailedError:
        if not is_done():
            raise
        return  # Another job has done it all, and taken this one's folder away.
    _forget_run(store, name=name)
    if result.return_value:
        raise TrainingError(result.return_value)


def run_name(planned: Sequence[PlannedCandidate]) -> str:
    """The run over these candidates: the same in any order, and however many are done."""
    return fingerprint(sorted({candidate.fingerprint for candidate in planned}))


def _forget_run(store: Store, *, name: str) -> None:
    """Delete what a run of this name would continue from, if there is any."""
    filesystem, root = store.storage.filesystem()
    # Another job over the same candidates may have deleted it, or be doing so now.
    with suppress(FileNotFoundError):
        filesystem.delete_dir(f"{root}/{RUNS_FOLDER}/{name}")


def _fit_apart(trainer: ray.train.torch.TorchTrainer) -> Any:
    """What `trainer.fit()` returns or raises, from a thread of its own.

    In the main thread Ray would take an interrupt for itself, and end the process with the code
    of a failure. The wait ends now and then, since a signal that another thread was given does
    not wake this one, and Python raises KeyboardInterrupt in no other.
    """
    outcome: Future[Any] = Future()
    over = threading.Event()

    def run() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            over.set()

    threading.Thread(target=run, name="training", daemon=True).start()
    while not over.wait(POLL_SECONDS):
        pass
    return outcome.result()


def fit_on_worker(config: dict[str, Any]) -> str | None:
    """What every worker runs. Returns what kept candidates from being fitted, or None.

    An error that would come again is returned, not raised, since Ray tries again what is raised.
    """
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    store = Store(open_storage(config["store_root"]))
    snapshot = store.read_snapshot(config["snapshot_id"])
    task = parse_task(config["task"])
    training = TrainingSpec.model_validate(config["training"])
    planned = plan_candidates(
        store,
        snapshot=snapshot,
        task=task,
        candidates=[parse_candidate(spec) for spec in config["candidates"]],
        training=training,
    )
    pending = _agree_on_pending(planned)
    modalities = sorted({m for candidate in pending for m in candidate.modalities})
    try:
        table = load_table(
            store,
            snapshot,
            task=task,
            modalities=modalities,
            # A task's loss has no use for them, and their keys are read from every sample shard.
            numbered=sorted(
                {m for c in pending if c.spec.objective == "own" for m in c.modalities}
            ),
            memory=memory_bytes(training.memory, processes=_workers_here()),
            window=training.shuffle_buffer,
            device=device,
        )
    except (Untrainable, MemoryTooSmall) as error:
        return str(error)
    agreement = agreement_group()
    faults = []
    interrupted = _Interrupted.found()
    grouping = training if table.stackable else training.model_copy(update={"together": 1})
    groups = deque(_groups(pending, planned=planned, training=grouping, interrupted=interrupted))
    numbers = {candidate.fingerprint: number for number, candidate in enumerate(pending, 1)}
    while groups:
        together = groups.popleft()
        reporters = [
            _Reporter(
                mailbox=config["mailbox"],
                candidate=candidate,
                number=numbers.get(candidate.fingerprint, 0),
                of=len(pending),
                training=training,
            )
            for candidate in together
        ]
        try:
            # A table of payloads is of one candidate, which is fitted by itself.
            with table_for(
                together[0].spec,
                table=table,
                store=store,
                snapshot=snapshot,
                payloads=config.get("payloads"),
            ) as own:
                records = produce_together(
                    together,
                    store=store,
                    snapshot=snapshot,
                    task=task,
                    training=training,
                    table=own,
                    device=device,
                    resume=None if interrupted is None else interrupted.states_of(together),
                    on_epoch=partial(_report_epoch, reporters),
                    save=partial(_save, candidates=together),
                )
        except (CandidateFault, SourceError) as fault:
            if not all_workers_agree(agreement):
                raise
            if len(together) > 1:
                # It may be that they cannot be fitted in one pass.
                groups.extendleft([candidate] for candidate in reversed(together))
                continue
            faults.append(f"candidate {together[0].spec.name!r} cannot be fitted: {fault}")
            reporters[0].end(str(fault))
            continue
        for reporter, record in zip(reporters, records, strict=True):
            reporter.end(record.failure["reason"] if record.failure else None)
    return "; ".join(faults) or None


def _workers_here() -> int:
    """Workers on this one's machine, which share its memory."""
    return int(ray.train.get_context().get_local_world_size())


def _report_epoch(reporters: Sequence[_Reporter], number: int, epoch: Epoch) -> None:
    reporters[number].epoch(epoch)


def _agree_on_pending(planned: Sequence[PlannedCandidate]) -> list[PlannedCandidate]:
    """The candidates without a record, each once, as the first worker sees them."""
    names = [c.fingerprint for c in {c.fingerprint: c for c in planned}.values() if not c.record]
    by_name = {c.fingerprint: c for c in reversed(planned)}
    return [by_name[name] for name in of_first_worker(names)]


def _groups(
    pending: Sequence[PlannedCandidate],
    *,
    planned: Sequence[PlannedCandidate],
    training: TrainingSpec,
    interrupted: _Interrupted | None,
) -> list[list[PlannedCandidate]]:
    """What is fitted in one pass: first the group that was interrupted, as it was.

    Some of it may be in the store by now; the others end in the same bits only beside them.
    """
    first: list[list[PlannedCandidate]] = []
    if interrupted is not None:
        by_name = {c.fingerprint: c for c in reversed(planned)}
        whole = all(name in by_name for name in interrupted.candidates)
        if whole and {c.fingerprint for c in pending} & set(interrupted.candidates):
            first = [[by_name[name] for name in interrupted.candidates]]
            pending = [c for c in pending if c.fingerprint not in interrupted.candidates]
    return first + group(
        pending,
        specs=[candidate.spec for candidate in pending],
        modalities=[candidate.modalities for candidate in pending],
        training=training,
    )


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


class Mailbox:
    """An actor that holds what the workers report until the driver takes it."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []

    def post(self, item: dict[str, Any]) -> None:
        self._items.append(item)

    def take(self) -> list[dict[str, Any]]:
        items, self._items = self._items, []
        return items


@dataclass(frozen=True, kw_only=True)
class _Reporter:
    """Tells the driver of a candidate's epochs, from the first worker."""

    mailbox: Any
    candidate: PlannedCandidate
    number: int
    of: int
    training: TrainingSpec

    def epoch(self, epoch: Epoch) -> None:
        self._post(
            epoch=epoch.epoch,
            validation_loss=epoch.validation_loss,
            validation_accuracy=epoch.validation_accuracy,
        )

    def end(self, failure: str | None) -> None:
        self._post(done=True, failure=failure)

    def _post(self, **values: Any) -> None:
        if self.mailbox is None or worker_rank() != 0:
            return
        item = {
            "candidate": self.candidate.spec.name,
            "number": self.number,
            "of": self.of,
            "epoch": 0,
            "max_epochs": self.training.max_epochs,
            "validation_loss": None,
            "validation_accuracy": None,
            "done": False,
            "failure": None,
            "process": os.getpid(),
        }
        self.mailbox.post.remote({**item, **values})


@contextmanager
def _mailbox(on_progress: Callable[[FitProgress], None] | None) -> Iterator[Any]:
    """A mailbox whose items are passed on, in a thread, for the time of a block."""
    if on_progress is None:
        yield None
        return
    mailbox: Any = ray.remote(num_cpus=0)(Mailbox).remote()
    over = threading.Event()

    def pass_on() -> None:
        # What is told of progress must not hold up the end of a job that was interrupted.
        with suppress(GetTimeoutError):
            for item in ray.get(mailbox.take.remote(), timeout=MAILBOX_SECONDS):
                on_progress(FitProgress(**item))

    def poll() -> None:
        while not over.wait(POLL_SECONDS):
            pass_on()

    thread = threading.Thread(target=poll, name="training-progress", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        over.set()
        thread.join()
        pass_on()
        ray.kill(mailbox)
