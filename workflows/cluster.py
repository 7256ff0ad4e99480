"""The connection to Ray: an existing cluster if `RAY_ADDRESS` names one, else one made here."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

A = TypeVar("A")
ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Ray's own bars would mix with ours, and nothing is sent anywhere unless asked for."""
LOGGERS = ("ray.data", "ray.train", "ray._private.authentication")
STARTS = 3
"""How often a Ray of this machine's own is tried to be started."""
LIMITS = ("timed out during startup", "Timed out waiting for file", "Failed to start GCS")
"""What Ray says where one of its processes has not come up in time."""
METERS = {
    "rows": ("Payloads embedded, copied or found bad.", ("pipeline", "modality", "kind")),
    "shards": ("Shards written.", ("pipeline", "modality")),
    "candidates": ("Candidates fitted, or failed in their fit.", ("pipeline", "kind")),
    "seconds": ("Wall time of stages.", ("pipeline", "stage")),
    "failures": ("Stages that ended by an error.", ("pipeline", "stage")),
}
"""The counters: what they count, and their tags."""
NOISE = (b"has constructor arguments in the object store and max_restarts > 0",)
"""What Ray's C++ says of every actor pool of Ray Data, past all logging (its issue 53727)."""


class Connection:
    """Ray, connected when it is first needed and disconnected at the end of a `with` block.

    Stages that follow one another share it, and one that has nothing to do starts nothing.
    Without `RAY_ADDRESS`, a cluster of this machine alone is started, and ended with the block.
    A Ray that was connected before is used, and left connected.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self) -> None:
        """Connect, unless that is done. Ray's own answer to SIGTERM is not taken on."""
        import ray

        if ray.is_initialized():
            return
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _quieten()
        self._stack.enter_context(_without_noise())
        local = not os.environ.get("RAY_ADDRESS")
        with _own_signals():
            start_ray(
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        self._stack.callback(ray.shutdown)


def start_ray(**options: Any) -> None:
    """`ray.init`, again where a Ray of this machine's own has not come up within Ray's 30 seconds.

    A machine that is busy takes as long now and then, and Ray's limit is fixed. StageError after
    STARTS of them.
    """
    import ray

    from workflows.console import make_console
    from workflows.pipeline import StageError

    for start in range(1, STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # a bare one, of all that may go wrong
            _end_what_has_started(error)
            if not any(limit in str(error) for limit in LIMITS):
                raise
            if start == STARTS:
                raise StageError(
                    f"Ray has not come up on this machine within 30 s, {STARTS} times: it is too "
                    "busy. Run again when it is less so, or name a cluster in RAY_ADDRESS"
                ) from error
        make_console(stderr=True).print(
            f"Ray has not come up within 30 s; starting it again ({start + 1} of {STARTS})"
        )


def _end_what_has_started(error: BaseException) -> None:
    """End the processes of a node that Ray has given up on: it forgets them, and they run on."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)


def _quieten() -> None:
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def in_actors(
    worker: Callable[[A], Callable[[str], str]], argument: A, items: Sequence[str]
) -> Iterator[str]:
    """`map` over texts by actors on all CPUs of the cluster, in no order; Ray is connected.

    `worker(argument)` is made once an actor, and lives as long. An actor that dies is made again,
    and its item given to another.
    """
    import pyarrow as pa
    import ray
    import ray.data

    if not items:
        return
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    held = ray.put(argument)

    class Actor:
        def __init__(self) -> None:
            self._work = worker(ray.get(held))

        def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[str]]:
            return {"result": [self._work(item) for item in batch["item"]]}

    _quieten()  # again: the first import of ray.data sets its loggers anew
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`ray_remote_args")
        results = ray.data.from_blocks([pa.table({"item": [item]}) for item in items]).map_batches(
            Actor,
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(cpus, len(items))),
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": -1},
        )
    for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
        yield from batch["result"]


class Meters:
    """Counters on the Prometheus endpoint of the node that the driver runs on.

    They are named `ray_sensorium_NAME_total`. What is counted before there is a connection to Ray
    is told when there is one; a run that needs none tells nothing. Ray has an endpoint where
    `ray[default]` is installed.
    """

    def __init__(self) -> None:
        self._counters: dict[str, Any] = {}
        self._waiting: list[tuple[str, float, dict[str, str]]] = []

    def add(self, name: str, value: float, **tags: str) -> None:
        """Add to a counter of METERS, which says its tags."""
        unknown = set(tags) - set(METERS[name][1])
        assert not unknown, f"{name} has no tag {unknown}"
        if value <= 0:
            return
        self._waiting.append((name, value, tags))
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        for known, amount, labels in self._waiting:
            self._counter(known).inc(amount, tags=labels)
        self._waiting.clear()

    def _counter(self, name: str) -> Any:
        from ray.util.metrics import Counter

        if name not in self._counters:
            description, tags = METERS[name]
            self._counters[name] = Counter(
                f"sensorium_{name}", description=description, tag_keys=tags
            )
        return self._counters[name]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the answer to SIGTERM that there was, which `ray.init` takes away in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    told = False
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        told = True  # Ray's answer to one that came meanwhile
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Drop the lines in `NOISE` from the standard error of this process and its children."""
    sys.stderr.flush()
    kept = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)

    def copy() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if not any(noise in line for noise in NOISE):
                    os.write(kept, line)

    copier = threading.Thread(target=copy, name="stderr", daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        copier.join(timeout=5)  # ends when the last child has closed its end
        if not copier.is_alive():
            os.close(kept)
