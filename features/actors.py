"""On which machines an embed job's actors are, and what each is given at once. No Ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from features.plan import Work

MOST_IN_BLOCK = 8
"""Shards that an actor is given at once at most, so that it can read ahead from one to the next."""
SCALES_TO = "SENSORIUM_SCALES_TO"
"""Names the variable that says to which machines the cluster can grow."""


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many actors encode at once, and what each is given."""

    count: int
    cpus: float
    gpus: float
    threads: int


def machines_to_come(declared: str) -> list[Mapping[str, float]]:
    """The machines of a JSON list: `[{"max": 8, "CPU": 8, "GPU": 1}, {"max": 2, "CPU": 16}]`.

    OSError with what it must be, since who started the job is to be told.
    """
    try:
        kinds = json.loads(declared)
        found: list[Mapping[str, float]] = [
            {name: float(amount) for name, amount in kind.items() if name != "max"}
            for kind in kinds
            for _ in range(int(kind["max"]))
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(
            f"{SCALES_TO} is {declared!r}; it lists the machines that the cluster's autoscaler may "
            'start, such as [{"max": 8, "CPU": 8, "GPU": 1}]'
        ) from error
    return found


def plan_actors(nodes: Sequence[Mapping[str, float]], *, shards: int) -> Actors:
    """One actor a GPU; without GPUs one for every four CPUs, which uses them by its threads.

    `nodes` are the resources of the cluster's machines. An actor must fit on one: where all are
    smaller, it gets fewer CPUs. One CPU is left for the rest of the job, if there is more than one.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if any(gpus):
        shares = [(c - (len(nodes) == 1)) // g for c, g in zip(cpus, gpus, strict=True) if g]
        share = max(0, min(shares))
        return Actors(
            count=min(sum(gpus), shards), cpus=min(share, 4), gpus=1, threads=max(1, share)
        )
    if len(nodes) <= 1:
        all_of_it = max([1, *cpus])
        count = min(max(1, all_of_it // 4), shards)
        reserved = max(1, min(4, (all_of_it - 1) // count))
        return Actors(count=count, cpus=reserved, gpus=0, threads=max(reserved, min(all_of_it, 4)))

    def used(size: int) -> int:
        return sum(c // size for c in cpus) * size

    most = max(used(size) for size in (1, 2, 3, 4))
    # Few large actors hold fewer models than many small ones, and may leave a CPU idle.
    reserved = next(size for size in (4, 3, 2, 1) if used(size) >= 0.75 * most)
    fitting = used(reserved) // reserved
    spare = sum(cpus) - used(reserved)
    count = fitting if spare or fitting == 1 else fitting - 1
    return Actors(count=min(max(1, count), shards), cpus=reserved, gpus=0, threads=reserved)


def blocks_of(work: Sequence[Work], *, actors: int) -> Iterator[Sequence[Work]]:
    """The work in blocks of one modality: long ones first, single shards at the end.

    A block is what an actor is given at once. Within it the next shard is read while the present
    one is encoded; the blocks shrink as the work does, so that all actors end together.
    """
    waiting = list(work)
    while waiting:
        fair = len(waiting) // (2 * actors) if actors > 1 else len(waiting)
        most = max(1, min(MOST_IN_BLOCK, fair))
        same = itertools.takewhile(lambda w: w.modality == waiting[0].modality, waiting[:most])
        block = list(same)
        yield block
        del waiting[: len(block)]
