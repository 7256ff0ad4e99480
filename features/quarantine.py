"""The quarantine: rows that have no embedding, and why, as it is written, read and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from features.encoding import Bad
from features.fingerprint import DIGEST_BYTES
from features.plan import Plan
from features.shard_names import quarantine_path
from features.snapshot import Snapshot
from features.store import Store
from features.stored_embeddings import read_embedding_shard

QUARANTINE_SCHEMA = pa.schema(
    {
        "row": pa.int32(),
        "payload_key": pa.binary(DIGEST_BYTES),
        "stage": pa.string(),
        "reason": pa.string(),
    }
)


def quarantine_rows(bad: Sequence[Bad], *, keys: Sequence[bytes | None]) -> pa.Table:
    """The table that is written of a shard's bad rows, in row order, given all rows' keys."""
    rows = sorted(bad, key=lambda bad: bad.row)
    return pa.table(
        {
            "row": [bad.row for bad in rows],
            "payload_key": [keys[bad.row] for bad in rows],
            "stage": [bad.stage for bad in rows],
            "reason": [bad.reason for bad in rows],
        },
        schema=QUARANTINE_SCHEMA,
    )


def read_quarantine(store: Store, snapshot: Snapshot) -> pa.Table:
    """Who is quarantined and why: `sample_id`, `modality`, `stage`, `reason`, in row order."""
    names = ("sample_id", "modality", "stage", "reason")
    found = [pa.table({name: pa.array([], pa.string()) for name in names})]
    for name, part in snapshot.modalities.items():
        listed = store.quarantined_shards_of(part.encoder_fingerprint)
        for sample_shard, shards in zip(snapshot.samples, part.shards, strict=True):
            bad = read_bad(store, shards, encoder=part.encoder_fingerprint, listed=listed)
            if bad is None:
                continue
            ids = store.read_table(sample_shard.path, columns=["sample_id"])["sample_id"]
            modality = pa.array([name] * bad.num_rows, pa.string())
            columns = [ids.take(bad["row"]), modality, bad["stage"], bad["reason"]]
            found.append(pa.table(dict(zip(names, columns, strict=True))))
    return pa.concat_tables(found)


def read_bad(
    store: Store, shards: Sequence[str], *, encoder: str, listed: Collection[str]
) -> pa.Table | None:
    """The quarantined rows of a shard and its patches; None if there are none.

    `listed` are the shards of the encoder that have any. A row that a patch embeds is no
    longer bad, and what a patch says of a row holds over what was said before.
    """
    tables = [
        store.read_table(quarantine_path(encoder=encoder, shard=shard))
        for shard in shards
        if shard in listed
    ]
    if not tables:
        return None
    last = {row: i for i, row in enumerate(row for t in tables for row in t["row"].to_pylist())}
    for patch in shards[1:]:
        for row in read_embedding_shard(store, patch, encoder=encoder).rows.tolist():
            last.pop(row, None)
    places = [last[row] for row in sorted(last)]
    return pa.concat_tables(tables).take(places) if places else None


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
