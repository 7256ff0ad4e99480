"""Quarantined rows tried again: which, and the plan with the patches that came of it.

A payload that could not be used may be usable now: a file's rights were mended, a decoder was
updated, a limit was raised. Its rows alone are embedded, and become a patch: a further shard over
the same samples, which the next snapshot lists beside the first. No shard is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from features.embedding import ShardResult
from features.plan import Plan, Work
from features.quarantine import read_bad
from features.store import Store


def retry_work(plan: Plan, *, store: Store) -> list[Work]:
    """What there is to try again in a plan whose shards are all there.

    Costs one listing an encoder, and one small read a shard that has bad rows.
    """
    work = []
    for modality, part in plan.modalities.items():
        listed = store.quarantined_shards_of(part.encoder_fingerprint)
        for samples, over in zip(plan.samples, part.shards, strict=True):
            bad = read_bad(store, over, encoder=part.encoder_fingerprint, listed=listed)
            if bad is None:
                continue
            rows = tuple(bad["row"].to_pylist())
            work.append(
                Work(
                    modality=modality,
                    encoder=part.encoder_fingerprint,
                    shard=over[0],
                    samples=samples.path,
                    ranges=samples.ranges,
                    rows=samples.rows,
                    payloads=len(rows),
                    donors=(),
                    only=rows,
                )
            )
    return work


def with_patches(plan: Plan, results: Iterable[ShardResult]) -> Plan:
    """The plan with the patches that were made listed over their shards."""
    patches: dict[tuple[str, str], str] = {
        (result.modality, result.shard): result.patch for result in results if result.patch
    }

    def patched(modality: str, over: tuple[str, ...]) -> tuple[str, ...]:
        patch = patches.get((modality, over[0])) if over else None
        return over if patch is None or patch in over else (*over, patch)

    return replace(
        plan,
        modalities={
            modality: replace(part, shards=tuple(patched(modality, over) for over in part.shards))
            for modality, part in plan.modalities.items()
        },
    )
