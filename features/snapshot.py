"""A snapshot: the exact list of shards that make up one version of a dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from features.encoders import Kind
from features.fingerprint import fingerprint
from features.samples import SampleShard


@dataclass(frozen=True, kw_only=True)
class ModalityShards:
    """One modality of a snapshot: its encoder, and the embedding shards over each sample shard."""

    kind: Kind
    encoder: Mapping[str, Any]
    """The encoder's spec, as JSON."""
    encoder_fingerprint: str
    dim: int
    shards: tuple[tuple[str, ...], ...]
    """Per sample shard: the embedding shards over it (none if no payload is there)."""
    present: int
    """Samples with an embedding."""
    missing: int
    """Samples without a payload."""
    bad: int
    """Samples whose payload is in the quarantine."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a dataset with its embeddings, by reference to immutable shards."""

    name: str
    target: str | tuple[str, ...] | None
    slices: tuple[str, ...]
    samples: tuple[SampleShard, ...]
    modalities: Mapping[str, ModalityShards]
    files: tuple[str, ...] = ()
    """The source's files, which the sample shards' ranges refer to. Where the rows stand is no
    part of the snapshot, and stands beside it."""

    @cached_property
    def id(self) -> str:
        """Hash of what the snapshot refers to; names and places do not enter it."""
        shards = [shard.fingerprint for shard in self.samples]
        return fingerprint({"samples": shards, "part": self.part(modalities=self.modalities)})

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.samples)

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """Per sample shard: the number of its first row within the snapshot."""
        return tuple(int(row) for row in np.cumsum([0, *(s.rows for s in self.samples)])[:-1])

    def part(self, *, modalities: Collection[str]) -> str:
        """Identity of ids, splits and labels, and of some modalities, without all else."""
        return fingerprint(
            {
                "samples": [shard.labels for shard in self.samples],
                "target": self.target,
                "modalities": {
                    name: {
                        "encoder": self.modalities[name].encoder_fingerprint,
                        "shards": self.modalities[name].shards,
                    }
                    for name in modalities
                },
            }
        )


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as plain JSON values, without where its rows stand."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "target": snapshot.target,
        "slices": list(snapshot.slices),
        "samples": [
            {
                "fingerprint": shard.fingerprint,
                "rows": shard.rows,
                "labels": shard.labels,
                "keys": dict(shard.keys),
                "payloads": dict(shard.payloads),
            }
            for shard in snapshot.samples
        ],
        "modalities": {
            name: {
                "kind": part.kind,
                "encoder": dict(part.encoder),
                "encoder_fingerprint": part.encoder_fingerprint,
                "dim": part.dim,
                "present": part.present,
                "missing": part.missing,
                "bad": part.bad,
                "shards": [list(shards) for shards in part.shards],
            }
            for name, part in snapshot.modalities.items()
        },
    }


def snapshot_from(value: Mapping[str, Any]) -> Snapshot:
    """The snapshot that `snapshot_json` described."""
    target = value["target"]
    return Snapshot(
        name=value["name"],
        target=tuple(target) if isinstance(target, list) else target,
        slices=tuple(value["slices"]),
        samples=tuple(
            SampleShard(
                fingerprint=shard["fingerprint"],
                rows=shard["rows"],
                labels=shard["labels"],
                ranges=(),
                keys=shard["keys"],
                payloads=shard["payloads"],
            )
            for shard in value["samples"]
        ),
        modalities={
            name: ModalityShards(**{**part, "shards": tuple(map(tuple, part["shards"]))})
            for name, part in value["modalities"].items()
        },
    )
