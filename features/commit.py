"""After the work: what is in the quarantine, and the snapshot of all that is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from features.embedding import COLLAPSED, WIDE, BrokenEncoder
from features.encoding import NOT_FINITE
from features.plan import ModalityPlan, Plan, snapshot_of
from features.quarantine import read_bad
from features.shard_names import embedding_path
from features.snapshot import ModalityShards, Snapshot
from features.statistics import ModalityStatistics
from features.store import Store


@dataclass(frozen=True, kw_only=True)
class QuarantineCount:
    """How much of a modality is in the quarantine."""

    modality: str
    bad: int
    payloads: int
    reasons: Mapping[tuple[str, str], int]
    """Rows by stage and reason."""

    @property
    def fraction(self) -> float:
        return self.bad / self.payloads if self.payloads else 0.0


def count_quarantine(plan: Plan, *, store: Store) -> dict[str, QuarantineCount]:
    """Count the quarantined rows of all shards of a plan whose work is done.

    Costs one listing an encoder, and one small read a shard that has bad rows.
    """
    counts: dict[str, QuarantineCount] = {}
    for modality, part in plan.modalities.items():
        listed = store.quarantined_shards_of(part.encoder_fingerprint)
        reasons: Counter[tuple[str, str]] = Counter()
        for over in part.shards:
            bad = read_bad(store, over, encoder=part.encoder_fingerprint, listed=listed)
            if bad is not None:
                pairs = zip(bad["stage"].to_pylist(), bad["reason"].to_pylist(), strict=True)
                reasons.update(pairs)
        counts[modality] = QuarantineCount(
            modality=modality, bad=reasons.total(), payloads=part.payloads, reasons=reasons
        )
    return counts


def make_snapshot(
    plan: Plan, *, store: Store, quarantine: Mapping[str, QuarantineCount]
) -> Snapshot:
    """The snapshot of a plan whose shards are all there."""
    return snapshot_of(
        plan,
        dims={name: _width(store, part) for name, part in plan.modalities.items()},
        bad={name: item.bad for name, item in quarantine.items()},
    )


def refuse_broken(
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


def _width(store: Store, part: ModalityPlan) -> int:
    """The width of a modality's embeddings, by the first shard there is; 0 if there is none."""
    for over in part.shards:
        for shard in over:
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            return int(store.read_metadata(path)["sensorium.dim"])
    return 0
