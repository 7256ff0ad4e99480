"""After the work: what is in the quarantine, and the snapshot of all that is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from features.plan import ModalityPlan, Plan, snapshot_of
from features.snapshot import Snapshot
from features.store import Store, embedding_path


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
            bad = store.read_bad(over, encoder=part.encoder_fingerprint, listed=listed)
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


def _width(store: Store, part: ModalityPlan) -> int:
    """The width of a modality's embeddings, by the first shard there is; 0 if there is none."""
    for over in part.shards:
        for shard in over:
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            return int(store.read_metadata(path)["sensorium.dim"])
    return 0
