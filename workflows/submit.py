"""A run as a job of a Ray cluster, by its job server: submitted, followed to its end, or attached
to again.

The job is named after the pipeline and what is shipped, so the same command finds a job that is
under way, from any computer, and follows that. Its log is followed over a connection that may
break; what was shown is not shown again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflows.pipeline import Pipeline, StageError
from workflows.shipping import Shipment, environment, pack

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
VARIABLE = "RAY_API_SERVER_ADDRESS"
RECONNECT_SECONDS = 900.0
"""How long a lost connection is tried again; the job goes on meanwhile."""
MOST_WAIT = 15.0
READY_SECONDS = 60.0
INTERRUPTED = 130
LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""They tell of uploads and connections at a level that shows."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job at a cluster's job server."""

    client: Any
    address: str
    id: str
    attached: bool
    """Whether it was under way before."""

    @property
    def how_to_stop(self) -> str:
        return f"ray job stop --address {self.address} {self.id}"


def submit(
    pipeline: Pipeline, *, address: str | None = None, options: Sequence[str] = ()
) -> tuple[Job, Shipment]:
    """Start `sensorium run` on a cluster, unless the same job is under way there.

    `options` are those of `run`. ConfigurationError for what the cluster would not see; StageError
    if its job server cannot be reached.
    """
    shipment = pack(pipeline)
    variables = environment(pipeline)
    entrypoint = shlex.join(
        ["python", "-m", "workflows", "run", pipeline.path.name, "--json", *options]
    )
    base = f"sensorium-{pipeline.name}-{_short(shipment, entrypoint)}"
    address, client = _connect(address)
    with _told(address):
        known = {
            job.submission_id: job for job in _patiently(client.list_jobs) if job.submission_id
        }
        same = [name for name in known if name == base or name.startswith(f"{base}-")]
        for name in same:
            if not known[name].status.is_terminal():
                return Job(client=client, address=address, id=name, attached=True), shipment
        name = f"{base}-{len(same) + 1}"
        with tempfile.TemporaryDirectory(prefix="sensorium-") as folder:
            shipment.copy_to(Path(folder))
            try:
                _patiently(
                    client.submit_job,
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": folder, "env_vars": variables},
                    metadata={"pipeline": pipeline.name},
                )
            except RuntimeError as error:
                if "already" not in str(error):
                    raise
                # Another has submitted the same in this very moment.
                return Job(client=client, address=address, id=name, attached=True), shipment
    return Job(client=client, address=address, id=name, attached=False), shipment


def follow(job: Job, *, on_lost: Callable[[str], None] | None = None) -> int:
    """Copy the job's log to standard output until its end; its exit code.

    A job that somebody stopped has 130; one that could not even begin 1, and its reason is told to
    `on_lost`, as is a connection that was lost. StageError after RECONNECT_SECONDS without one.
    """
    shown, wait, lost = 0, 0.5, 0.0

    async def tail() -> None:
        nonlocal shown, wait, lost
        seen = 0
        async for text in job.client.tail_job_logs(job.id):
            seen += len(text)
            if seen > shown:
                sys.stdout.write(text[max(0, len(text) - (seen - shown)) :])
                sys.stdout.flush()
                shown, wait, lost = seen, 0.5, 0.0

    while True:
        try:
            asyncio.run(tail())
            info = job.client.get_job_info(job.id)
        except Exception as error:  # of aiohttp, requests or Ray: all mean that it was lost
            if "does not exist" in str(error):
                raise StageError(
                    f"{job.address} knows no job {job.id} any more; its head was started anew. "
                    "Submit again: what was done is in the store"
                ) from error
            lost = lost or time.monotonic()
            if time.monotonic() - lost > RECONNECT_SECONDS:
                raise StageError(
                    f"{job.address} was not to be reached for {RECONNECT_SECONDS:.0f} s "
                    f"({type(error).__name__}); the job {job.id} goes on, and the same command "
                    "attaches to it again"
                ) from error
            if on_lost and wait == 0.5:
                on_lost(f"the connection was lost ({type(error).__name__}); attaching again")
            time.sleep(wait)
            wait = min(2 * wait, MOST_WAIT)
            continue
        if info.status.is_terminal():
            return _code(info, on_lost=on_lost)
        time.sleep(wait)


def _patiently(request: Callable[..., Any], **arguments: Any) -> Any:
    """What a request answers; one of the server's own faults (5xx) is tried again for a minute.

    A head that has just come up answers so until its agent is there.
    """
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            return request(**arguments)
        except RuntimeError as error:
            passing = "status code 5" in str(error) and "already" not in str(error)
            if not passing or time.monotonic() > end:
                raise
        time.sleep(1)


def _code(info: Any, *, on_lost: Callable[[str], None] | None) -> int:
    status = str(info.status.value)
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return INTERRUPTED
    if info.driver_exit_code is None and on_lost:
        on_lost(f"the job could not be run: {info.message}")
    return int(info.driver_exit_code or 1)


def _short(shipment: Shipment, entrypoint: str) -> str:
    whole = f"{shipment.digest}\0{entrypoint}".encode()
    return hashlib.blake2b(whole, digest_size=6).hexdigest()


def _connect(address: str | None) -> tuple[str, Any]:
    """The job server's address and a client of it."""
    from ray.job_submission import JobSubmissionClient

    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    address = address or os.environ.get(VARIABLE) or DEFAULT_ADDRESS
    # Ray prefers its variables to what it is given.
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = address
    try:
        with _told(address):
            return address, JobSubmissionClient(address)
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Errors of the job server as StageError."""
    try:
        yield
    except (ConnectionError, RuntimeError, OSError) as error:
        if isinstance(error, StageError):
            raise
        raise StageError(
            f"the job server at {address} cannot be reached or refuses the job: {error}. Give the "
            "address of the cluster's dashboard by --address (`ray dashboard cluster.yaml` brings "
            f"it to {DEFAULT_ADDRESS}); its head needs `ray[default]`"
        ) from error
