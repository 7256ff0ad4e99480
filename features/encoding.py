"""Rows through an encoder: batches, what happens when one fails, and who is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.encoders import Encoder, EncoderSpec


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A row without an embedding, and why."""

    row: int
    stage: str
    reason: str


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
    bad: list[Bad] = field(default_factory=list)


def encode_rows(
    prepared: Sequence[Prepared],
    *,
    spec: EncoderSpec,
    encoder: Encoder,
    into: Rows,
    known_good: Callable[[], Iterable[Prepared]] = tuple,
) -> None:
    """Encode rows in batches of like size, the longest first: if memory runs out, then soon.

    A batch that fails is halved until the rows that fail are alone. They are bad, unless the
    encoder now fails for a row that it had encoded before, too (one of these rows, or of
    `known_good`): then the error is raised, as are faults of the machine. So it is if all of
    several rows fail.
    """
    ordered = sorted(prepared, key=lambda item: (-item.size, item.row))
    failed: list[tuple[Prepared, Exception]] = []
    proof: Prepared | None = None
    for start in range(0, len(ordered), spec.batch_size):
        batch = ordered[start : start + spec.batch_size]
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


def _encode_batch(
    batch: Sequence[Prepared], *, spec: EncoderSpec, encoder: Encoder, into: Rows
) -> list[tuple[Prepared, Exception]]:
    """Encode a batch, halving it on errors; returns the rows that failed alone."""
    try:
        values = np.asarray(encoder.encode([item.payload for item in batch]))
    except Exception as error:
        if _is_of_the_machine(error) or (len(batch) == 1 and _is_out_of_memory(error)):
            raise
        if len(batch) == 1:
            return [(batch[0], error)]
        middle = (len(batch) + 1) // 2
        return [
            failure
            for half in (batch[:middle], batch[middle:])
            for failure in _encode_batch(half, spec=spec, encoder=encoder, into=into)
        ]
    if values.shape != (len(batch), encoder.dim):
        raise TypeError(
            f"encoder {spec.type!r} gave an array of shape {values.shape} for {len(batch)} rows; "
            f"it must be {(len(batch), encoder.dim)}"
        )
    with np.errstate(over="ignore"):
        stored = values.astype(spec.dtype)
    for item, value, computed in zip(batch, stored, values, strict=True):
        if np.isfinite(value).all():
            into.values[item.row] = value
            continue
        reason = "the encoder gave a value that is not finite"
        if np.isfinite(computed).all():
            reason = f"the embedding is out of range for {spec.dtype}; set `dtype: float32`"
        into.bad.append(Bad(row=item.row, stage="encode", reason=reason))
    return []


def _is_of_the_machine(error: Exception) -> bool:
    """Whether an error tells of the medium or the device, and not of the rows."""
    if isinstance(error, OSError):
        return True
    text = str(error)
    return any(name in text for name in ("CUDA", "cuDNN", "NCCL")) and not _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
