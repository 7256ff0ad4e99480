"""Rows through an encoder: batches, what happens when one fails, and who is to blame."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.encoders import Encoder, EncoderSpec

NOT_FINITE = "not finite"
"""What the reason says of a row for which the encoder gave NaN or an infinite number."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What errors say, in small letters, that tell of memory: of torch on a GPU and on CPUs, of cuBLAS
and cuDNN. On CPUs torch raises no MemoryError."""


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A row without an embedding, and why."""

    row: int
    stage: str
    reason: str
    fault: bool = False
    """Whether code has failed over it, and did not merely refuse it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A row that is ready for the encoder."""

    row: int
    payload: Any
    size: int


@dataclass(kw_only=True)
class Rows:
    """Embeddings by row, in the type in which they are stored, and the rows that have none."""

    values: dict[int, np.ndarray] = field(default_factory=dict)
    """Per row `[D]`, or `[T, D]` of an encoder of sequences."""
    bad: list[Bad] = field(default_factory=list)


def encode_rows(
    prepared: Sequence[Prepared],
    *,
    spec: EncoderSpec,
    encoder: Encoder,
    into: Rows,
    known_good: Callable[[], Iterable[Prepared]] = tuple,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> None:
    """Encode rows in batches of like size, the longest first: if memory runs out, then soon.

    A batch that fails is halved until the rows that fail are alone. They are bad, unless the
    encoder now fails for a row that it had encoded before, too (one of these rows, or of
    `known_good`): then the error is raised, as are faults of the machine (MemoryError, if a row
    alone is too much). So it is if all of several rows fail. `on_batch` is told of so many rows
    that go to the encoder, before they do.
    """
    failed: list[tuple[Prepared, Exception]] = []
    proof: Prepared | None = None
    for batch in form_batches(prepared, rows=spec.batch_size, budget=budget_of(encoder)):
        on_batch(len(batch))
        failures = _encode_batch(batch, spec=spec, encoder=encoder, into=into)
        wrong = {item.row for item, _ in failures}
        proof = next((item for item in batch if item.row not in wrong), proof)
        failed += failures
    if not failed:
        return
    proof = proof or next(iter(known_good()), None)
    if proof is not None:
        encoder.encode([proof.payload])
    elif len(failed) > 1:
        raise failed[0][1]
    for item, error in failed:
        reason = f"{type(error).__name__}: {error}"
        into.bad.append(Bad(row=item.row, stage="encode", reason=reason))


def budget_of(encoder: Encoder) -> int | None:
    """The largest padded size that an encoder takes in one batch; None if it does not say."""
    return getattr(encoder, "budget", None)


def form_batches(
    prepared: Sequence[Prepared], *, rows: int, budget: int | None
) -> Iterator[list[Prepared]]:
    """Batches of at most so many rows, whose largest size times their rows keeps the budget.

    The longest come first, so the first of a batch decides its padded size. A row that is over
    the budget by itself is a batch of its own. The order depends on the rows alone.
    """
    ordered = sorted(prepared, key=lambda item: (-item.size, item.row))
    start = 0
    while start < len(ordered):
        most = rows
        if budget is not None:
            most = min(rows, max(1, budget // max(1, ordered[start].size)))
        yield ordered[start : start + most]
        start += most


def _encode_batch(
    batch: Sequence[Prepared], *, spec: EncoderSpec, encoder: Encoder, into: Rows
) -> list[tuple[Prepared, Exception]]:
    """Encode a batch, halving it on errors; returns the rows that failed alone."""
    failed = short_of_memory = False
    try:
        values = encoder.encode([item.payload for item in batch])
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        if len(batch) == 1 and _is_out_of_memory(error):
            raise MemoryError(
                f"the encoder {spec.type!r} has no memory for a batch of one payload, of size "
                f"{batch[0].size:,} (row {batch[0].row} of its shard): {error}. Free some, take a "
                "machine with more, or let the encoder cut such payloads short"
            ) from error
        if len(batch) == 1:
            _let_go(error)
            return [(batch[0], error)]
        failed, short_of_memory = True, _is_out_of_memory(error)
    # Not in the block above: until it is left, the error's frames hold the whole batch's memory.
    if failed:
        if short_of_memory:
            _free_memory()
        middle = (len(batch) + 1) // 2
        return [
            failure
            for half in (batch[:middle], batch[middle:])
            for failure in _encode_batch(half, spec=spec, encoder=encoder, into=into)
        ]
    if spec.sequence:
        parts = _sequences(values, count=len(batch), spec=spec, dim=encoder.dim)
        flat = np.concatenate(parts)
        lengths = [len(part) for part in parts]
    else:
        flat = _vectors(values, count=len(batch), spec=spec, dim=encoder.dim)
        lengths = [1] * len(batch)
    with np.errstate(over="ignore"):
        stored = flat.astype(spec.dtype)
    good = np.isfinite(stored).all(axis=1)
    start = 0
    for item, length in zip(batch, lengths, strict=True):
        stop = start + length
        if good[start:stop].all():
            into.values[item.row] = stored[start:stop] if spec.sequence else stored[start]
        else:
            reason = _not_finite(flat[start:stop], spec=spec)
            into.bad.append(Bad(row=item.row, stage="encode", reason=reason))
        start = stop
    return []


def _vectors(values: Any, *, count: int, spec: EncoderSpec, dim: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (count, dim):
        raise TypeError(
            f"encoder {spec.type!r} gave an array of shape {array.shape} for {count} rows; "
            f"it must be {(count, dim)}"
        )
    return array


def _sequences(values: Any, *, count: int, spec: EncoderSpec, dim: int) -> list[np.ndarray]:
    parts = [np.asarray(part) for part in values]
    wrong = next((p.shape for p in parts if p.ndim != 2 or p.shape[1] != dim or not len(p)), None)
    if len(parts) != count or wrong is not None:
        found = f"an array of shape {wrong}" if wrong is not None else f"{len(parts)} arrays"
        raise TypeError(
            f"encoder {spec.type!r} gave {found} for {count} rows; it must be a list of {count} "
            f"arrays (T, {dim}) with T of at least 1"
        )
    return parts


def _not_finite(computed: np.ndarray, *, spec: EncoderSpec) -> str:
    if np.isfinite(computed).all():
        return f"the embedding is out of range for {spec.dtype}; set `dtype: float32`"
    return f"the encoder gave a value that is {NOT_FINITE}"


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error tells of the medium or the device, and not of the rows."""
    if isinstance(error, OSError):
        return True
    text = str(error)
    return any(name in text for name in ("CUDA", "cuDNN", "NCCL")) and not _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def _let_go(error: BaseException) -> None:
    """Empty the frames of an error that is kept until the window is done.

    They hold all that was computed on the way to it, which would add up over the rows that fail.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _free_memory() -> None:
    """Give back what the allocator of the device holds, so that a smaller batch finds room."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
