"""Torch's process group as the training uses it: who I am, sums, and rows that are joined.

Gradients are added up over workers (not averaged): a loss is given as one worker's share, and
the shares sum to the loss of the whole batch, however unevenly its rows are divided. So the
number of workers changes nothing but rounding.

Suffixes of tensors: B this worker's rows, G the rows of all workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
"""The workers that share a batch; None for all there are."""
T = TypeVar("T")


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this worker is the only one, whatever the others do meanwhile.

    In all threads, for the backward pass has threads of its own.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


_alone = False


def worker_rank(group: Group = None) -> int:
    """This worker's number; 0 outside of a process group."""
    return dist.get_rank(group) if _distributed() else 0


def worker_count(group: Group = None) -> int:
    """How many workers share a batch; 1 outside of a process group."""
    return dist.get_world_size(group) if _distributed() else 1


def of_first_worker(value: T, *, group: Group = None) -> T:
    """What the first worker has, on every worker; no one goes on before the first has come here."""
    if worker_count(group) == 1:
        return value
    agreed: list[Any] = [value]
    dist.broadcast_object_list(agreed, src=0, group=group)
    return cast(T, agreed[0])


def from_all_workers(value: T, *, group: Group = None) -> list[T]:
    """What each worker has, in their order, on every worker."""
    if worker_count(group) == 1:
        return [value]
    found: list[Any] = [None] * worker_count(group)
    dist.all_gather_object(found, value, group=group)
    return cast(list[T], found)


def sum_over_workers(x: Tensor, *, group: Group = None) -> Tensor:
    """Sum of a tensor over the workers; not differentiated."""
    total = x.detach().clone()
    if worker_count(group) > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total


def mean_share(values_B: Tensor, *, rows_B: Tensor, group: Group = None) -> Tensor:
    """This worker's share of the mean of some numbers over those rows of all workers that count.

    `rows_B` bool `[B]` says which do; the others have no influence. Zero if none does.
    """
    count = sum_over_workers(rows_B.sum().to(values_B.dtype), group=group)
    return torch.where(rows_B, values_B, 0.0).sum() / count.clamp(min=1)


def log_add_over_workers(x: Tensor, *, group: Group = None) -> Tensor:
    """Logarithm of the sum over the workers of exp(x), element by element; not differentiated.

    An element that is -inf on some workers, for a sum of nothing, may not be so on all.
    """
    if worker_count(group) == 1:
        return x
    most = x.detach().clone()
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    return most + sum_over_workers((x - most).exp(), group=group).log()


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Tensors on their way round the ring of workers."""

    received: tuple[Tensor, ...]
    """Those of the previous worker, once `wait` has returned."""
    works: Sequence[dist.Work]

    def wait(self) -> tuple[Tensor, ...]:
        """The previous worker's tensors."""
        for work in self.works:
            work.wait()
        return self.received


def pass_on(*tensors: Tensor, group: Group = None) -> Passing:
    """Send tensors to the next worker of the ring, and receive those of the previous one.

    Of equal shapes on all workers; what is sent may not be changed before `wait` has returned.
    Not differentiated. A worker alone receives its own.
    """
    count = worker_count(group)
    if count == 1:
        return Passing(received=tensors, works=())
    after, before = (worker_rank(group) + 1) % count, (worker_rank(group) - 1) % count
    received = tuple(torch.empty_like(x) for x in tensors)
    works = dist.batch_isend_irecv(
        [
            *(dist.P2POp(dist.isend, x, group=group, group_peer=after) for x in tensors),
            *(dist.P2POp(dist.irecv, x, group=group, group_peer=before) for x in received),
        ]
    )
    return Passing(received=received, works=works)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """The rows of all workers, in the workers' order, and where one's own stand."""

    rows: Tensor
    """`[G, ...]`"""
    first: int
    """Number of this worker's first row."""


def gather_rows(x_B: Tensor, *, group: Group = None) -> Gathered:
    """The rows `[B, ...]` of all workers joined; B may differ, the rest of the shape may not.

    Differentiable: a row's gradient is the sum over what all workers made of it. Every worker
    must take part in the forward pass, and, if gradients are wanted, in the backward pass.
    """
    if worker_count(group) == 1:
        return Gathered(rows=x_B, first=0)
    sizes = gather_sizes(len(x_B), device=x_B.device, group=group)
    first = sum(sizes[: worker_rank(group)])
    return Gathered(rows=_GatherRows.apply(x_B, sizes, first, group), first=first)


def gather_at_first(x_B: Tensor) -> Tensor:
    """The rows `[B, ...]` of all workers joined on the first, `[G, ...]`; on the others none.

    Not differentiated. No worker but the first holds more than the largest part.
    """
    if worker_count() == 1:
        return x_B
    sizes = gather_sizes(len(x_B), device=x_B.device)
    padded = x_B.new_zeros(max(sizes), *x_B.shape[1:])
    padded[: len(x_B)] = x_B
    parts = [torch.empty_like(padded) for _ in sizes] if worker_rank() == 0 else None
    dist.gather(padded, parts, dst=0)
    if parts is None:
        return x_B[:0]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], first: int, group: Group) -> Tensor:
        ctx.first, ctx.rows, ctx.group = first, len(x), group
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=ctx.group)
        return total[ctx.first : ctx.first + ctx.rows], None, None, None


def gather_sizes(size: int, *, device: torch.device, group: Group = None) -> list[int]:
    """A number of each worker's own, such as how many rows it has."""
    if worker_count(group) == 1:
        return [size]
    own = torch.tensor([size], device=device)
    sizes = [torch.empty_like(own) for _ in range(worker_count(group))]
    dist.all_gather(sizes, own, group=group)
    return [int(value) for value in sizes]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone
