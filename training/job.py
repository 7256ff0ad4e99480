"""The Ray Train job: one worker group that fits all that a pipeline has to fit and is not done.

Every worker loads the snapshot once, and goes from round to round (`training.rounds`). Small
candidates of one architecture are fitted in one pass, the others in turn. The first worker writes a
candidate into the store when it is done, so a killed job goes on with the next one; within a
candidate it goes on from the last checkpoint, which Ray keeps under `train-runs/` in the store
until the job is done.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
from ray.exceptions import GetTimeoutError, RayActorError

from features.actors import SCALES_TO
from features.job import beside_driver, machines
from features.storage import open_storage
from features.store import Store
from training.agenda import Agenda, Standing
from training.mailbox import Mailbox
from training.passes import RUNS_FOLDER
from training.progress import FitProgress, RoundProgress, received
from training.rounds import fit_on_worker
from training.tuning.payloads import PayloadSource

RETRIES = 3
"""How often the worker group is started again after a worker has died."""
POLL_SECONDS = 0.3
LOST_SECONDS = 180.0
"""How long a job waits for another machine in the place of one that was lost."""
MAILBOX_SECONDS = 10.0
"""How long the driver waits for what its mailbox holds."""
HEALTH_CHECK = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
"""How often Ray looks at its workers; a checkpoint takes as long, and by default that is 2 s."""
NO_WATCHER = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
"""Where there is one machine: an actor that takes seconds to start, and looks for machines that are
about to be taken away."""


class TrainingError(ValueError):
    """The training cannot run as it is configured; the message is for the one who did."""


def fit(
    *,
    store_root: str,
    snapshot_id: str,
    agenda: Agenda,
    payloads: PayloadSource | None = None,
    on_round: Callable[[RoundProgress], None] | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Standing:
    """Fit what an agenda holds and the store does not; where that leaves it.

    Give the whole of it, done or not: it names the run that a killed job continues. Ray must be
    connected. A candidate whose loss is not finite, or which its data do not allow, is recorded as
    failed, and the others go on. TrainingError if the cluster is too small or no candidate can be
    trained on the data; and, after the others, if a candidate's own code raises: it is not
    recorded, so that it is tried again once the code is mended. Besides, the errors of
    `Agenda.standing`. `payloads` is for candidates whose encoders are tuned; `on_wait`
    is told what is waited for where the cluster has lost machines.
    """
    store = Store(open_storage(store_root))
    snapshot = store.read_snapshot(snapshot_id)
    name = agenda.name(snapshot=snapshot)
    look = partial(agenda.standing, store, snapshot=snapshot, keep=True)
    standing = look()
    if standing.next() is None:
        # A job that was killed after its last candidate has left its checkpoints.
        _forget_run(store, name=name)
        return standing
    gpu = _check_resources(agenda.training.workers, on_wait=on_wait)
    with _mailbox(on_round, on_progress) as mailbox:
        _run(
            name,
            config={
                "store_root": store.storage.root,
                "snapshot_id": snapshot_id,
                "agenda": agenda.to_json(),
                "mailbox": mailbox,
                "payloads": payloads,
            },
            store=store,
            workers=agenda.training.workers,
            gpu=gpu,
            is_done=lambda: look().next() is None,
        )
    standing = look()
    left = standing.next()
    if left is not None:
        names = ", ".join(candidate.spec.name for candidate in left.missing())
        raise RuntimeError(f"the training job ended without an error, but left out: {names}")
    return standing


def _check_resources(workers: int, *, on_wait: Callable[[str], None] | None = None) -> bool:
    """Whether every worker can have a GPU; TrainingError if it cannot even have a CPU.

    Ray would wait for resources that never come, without a word. A cluster that has lost machines
    may be about to get others, and is given LOST_SECONDS for it.
    """
    end, told = time.monotonic() + LOST_SECONDS, False
    while True:
        resources = machines()
        cpus = int(sum(machine.get("CPU", 0) for machine in resources))
        if workers <= cpus:
            break
        lost = sum(not node["Alive"] for node in ray.nodes())
        if not lost or time.monotonic() > end:
            after = f", {LOST_SECONDS:.0f} s after it has lost {lost}" if lost else ""
            raise TrainingError(
                f"training.workers: {workers} workers need a CPU each, and the Ray cluster has "
                f"{cpus}{after}; lower it, or add nodes (a cluster that grows says so in "
                f"{SCALES_TO})"
            )
        if not told and on_wait is not None:
            on_wait(
                f"waiting for another machine in the place of one that was lost: {workers} workers "
                f"need a CPU each, and there are {cpus} (for {LOST_SECONDS:.0f} s at most)"
            )
        told = True
        time.sleep(POLL_SECONDS)
    return int(sum(machine.get("GPU", 0) for machine in resources)) >= workers


def _run(
    name: str,
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
    if len(machines()) == 1:
        os.environ.setdefault(*NO_WATCHER)
    filesystem, root = store.storage.filesystem()
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


@contextmanager
def _mailbox(
    on_round: Callable[[RoundProgress], None] | None,
    on_progress: Callable[[FitProgress], None] | None,
) -> Iterator[Any]:
    """A mailbox whose items are passed on, in a thread, for the time of a block.

    It is on the driver's machine, which the job does not outlive.
    """
    if on_round is None and on_progress is None:
        yield None
        return
    placed = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=beside_driver())
    mailbox: Any = placed.remote()
    over = threading.Event()

    def pass_on() -> None:
        # What is told of progress must not hold up the end of a job that was interrupted, nor end
        # one that goes on.
        with suppress(GetTimeoutError, RayActorError):
            for item in ray.get(mailbox.take.remote(), timeout=MAILBOX_SECONDS):
                told = received(item)
                if isinstance(told, RoundProgress):
                    if on_round is not None:
                        on_round(told)
                elif on_progress is not None:
                    on_progress(told)

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
