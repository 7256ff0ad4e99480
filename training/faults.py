"""Faults of a candidate's own code: of its build, its forward pass, its loss.

They are no result, so none is recorded: the others go on, and a rerun tries again. All workers
run the same code on parts of the same rows, and so meet a fault together, as a rule.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from training.data.targets import Untrainable
from training.workers import Group, worker_count

AGREEMENT_SECONDS = 60.0
"""How long a worker whose candidate has failed waits for the others to fail too."""

PATIENCE = timedelta(days=7)
"""How long workers wait for one another in the group of their own; one that dies is noticed."""


class CandidateFault(RuntimeError):
    """A candidate's own code has failed; the message says how, and at which line."""


@contextmanager
def own_code() -> Iterator[None]:
    """A block that runs a candidate's own code, and whatever it raises as a `CandidateFault`.

    What the workers' connection raises is no fault of the candidate, and passes as it is.
    """
    try:
        yield
    except Untrainable:
        raise
    except Exception as error:
        if _is_of_the_connection(error):
            raise
        raise CandidateFault(f"{type(error).__name__}: {error} ({_place(error)})") from error


def agreement_group() -> Group:
    """A group of its own for what takes long to agree on; every worker must call it.

    Workers that fit candidates by themselves are not done at the same time.
    """
    if worker_count() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "every worker is in a group of all"
    return group


def all_workers_agree(group: Group, *, seconds: float = AGREEMENT_SECONDS) -> bool:
    """Whether all workers come to call this, within a time; False spoils the group.

    A worker that fails alone must end, since the others wait for it: in a sum, not here.
    """
    if worker_count() == 1:
        return True
    try:
        dist.monitored_barrier(group, timeout=timedelta(seconds=seconds))
    except RuntimeError:
        return False
    return True


def _is_of_the_connection(error: Exception) -> bool:
    """Whether an error tells of torch.distributed; gloo raises plain RuntimeErrors of its files."""
    text = str(error)
    return isinstance(error, dist.DistError) or "/gloo/" in text or "NCCL" in text


def _place(error: Exception) -> str:
    """The innermost line that is not of an installed library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}"
