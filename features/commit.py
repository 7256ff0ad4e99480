"""The snapshot that a plan leads to: drafted before its work is done, and made after it."""

from __future__ import annotations

from collections.abc import Mapping

from features.plan import ModalityPlan, Plan
from features.quarantine import QuarantineCount
from features.shard_names import embedding_path
from features.snapshot import ModalityShards, Snapshot
from features.store import Store


def draft_snapshot(plan: Plan) -> Snapshot:
    """The snapshot that a plan leads to, without what only its shards can tell.

    Its id and parts are right; widths and counts of bad rows are zero.
    """
    return _snapshot_of(plan, dims={}, bad={})


def make_snapshot(
    plan: Plan, *, store: Store, quarantine: Mapping[str, QuarantineCount]
) -> Snapshot:
    """The snapshot of a plan whose shards are all there."""
    return _snapshot_of(
        plan,
        dims={name: _width(store, part) for name, part in plan.modalities.items()},
        bad={name: item.bad for name, item in quarantine.items()},
    )


def _snapshot_of(plan: Plan, *, dims: Mapping[str, int], bad: Mapping[str, int]) -> Snapshot:
    """The snapshot of a plan, given each modality's width and number of bad rows."""
    return Snapshot(
        name=plan.name,
        target=plan.target,
        slices=plan.dataset.slices,
        samples=plan.samples,
        modalities={
            name: ModalityShards(
                kind=part.feature.encoder.kind,
                encoder=part.feature.encoder.model_dump(mode="json"),
                encoder_fingerprint=part.encoder_fingerprint,
                dim=dims.get(name, 0),
                shards=part.shards,
                present=part.payloads - bad.get(name, 0),
                missing=part.missing,
                bad=bad.get(name, 0),
            )
            for name, part in plan.modalities.items()
        },
        files=plan.source.files,
    )


def _width(store: Store, part: ModalityPlan) -> int:
    """The width of a modality's embeddings, by the first shard there is; 0 if there is none."""
    for over in part.shards:
        for shard in over:
            path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
            return int(store.read_metadata(path)["sensorium.dim"])
    return 0
