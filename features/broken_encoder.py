"""Encoders whose embeddings are worthless, told by what came out: of a shard, and of all shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from features.encoders import EncoderSpec
from features.encoding import NOT_FINITE, Rows
from features.quarantine import QuarantineCount
from features.snapshot import ModalityShards, Snapshot
from features.statistics import ModalityStatistics

COLLAPSED = 64
"""So many unlike payloads, and more, have not all one embedding unless the encoder is broken."""
WIDE = 16
"""Width from which that holds: an encoder of few numbers may have few answers."""


class BrokenEncoder(RuntimeError):
    """An encoder that ends the process that loads it, or whose embeddings are worthless.

    That is, not finite, or the same for all payloads.
    """


def refuse_broken_shard(
    done: Rows,
    *,
    keys: Sequence[bytes | None],
    modality: str,
    spec: EncoderSpec,
    dim: int,
) -> None:
    """Raise BrokenEncoder if what came out can be no embedding of what went in."""
    faults = [bad for bad in done.bad if bad.fault]
    if len(faults) > 1 and len(faults) == len(done.bad) + len(done.values):
        raise BrokenEncoder(
            f"encoder {spec.type!r} failed in its `prepare` for all {len(faults)} payloads of a "
            f"shard of {modality!r}: {faults[0].reason}"
        )
    bad = [bad for bad in done.bad if NOT_FINITE in bad.reason]
    if len(bad) >= COLLAPSED and len(bad) == len(done.bad) + len(done.values):
        raise BrokenEncoder(
            f"encoder {spec.type!r} gave values that are not finite for all {len(bad)} payloads "
            f"of a shard of {modality!r}; its weights or its precision are at fault"
        )
    values = done.values
    unlike = {key for row in values if (key := keys[row]) is not None}
    if dim < WIDE or len(unlike) < COLLAPSED or spec.sequence:
        return
    first = next(iter(values.values()))
    if all(np.array_equal(first, value) for value in values.values()):
        raise BrokenEncoder(
            f"encoder {spec.type!r} gave the same embedding for {len(unlike)} unlike payloads of "
            f"{modality!r}: it has collapsed; look at its weights and options"
        )


def refuse_broken_snapshot(
    snapshot: Snapshot,
    *,
    quarantine: Mapping[str, QuarantineCount],
    statistics: Mapping[str, ModalityStatistics],
) -> None:
    """Raise BrokenEncoder if all embeddings of a modality are worthless.

    A shard of enough rows is refused before it is written. This is for those of which each has
    too few rows to tell, and all together have enough.
    """
    for modality, part in snapshot.modalities.items():
        found = statistics[modality]
        unlike = 0 if found.keys is None else round(found.keys.distinct)
        if part.dim >= WIDE and found.constant and unlike >= COLLAPSED:
            raise BrokenEncoder(
                f"encoder {_type(part)} gave the same embedding for all {unlike} unlike payloads "
                f"of {modality!r}: it has collapsed; look at its weights and options"
            )
        count = quarantine[modality]
        not_finite = sum(
            number for (_, reason), number in count.reasons.items() if NOT_FINITE in reason
        )
        if not part.present and not_finite == count.bad and not_finite >= COLLAPSED:
            raise BrokenEncoder(
                f"encoder {_type(part)} gave values that are not finite for all {not_finite} "
                f"payloads of {modality!r}; its weights or its precision are at fault"
            )


def _type(part: ModalityShards) -> str:
    return repr(part.encoder.get("type", part.kind))
