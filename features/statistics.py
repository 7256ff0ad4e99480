"""Statistics of embeddings: of a shard's rows, as its footer holds them, and of many shards.

Those of a shard are computed by who computes its vectors. Those of a modality are merged from
those of its shards, without a vector or a payload key being read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from features.fingerprint import DIGEST_BYTES
from features.sketch import (
    KeySketch,
    join_sketches,
    sketch_from,
    sketch_json,
    sketch_keys,
)

if TYPE_CHECKING:
    from features.snapshot import ModalityShards


@dataclass(frozen=True, kw_only=True)
class ShardStatistics:
    """One shard's rows, summed up. None is what an older version did not write."""

    rows: int
    computed: int = 0
    """Rows that were embedded, and not copied from another shard."""
    bad: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the encoder counted of the payloads that it was given: not of the rows copied."""
    norm_sum: float | None = None
    norm_m2: float | None = None
    """Sum of the squared distances of the norms from their mean."""
    norm_least: float | None = None
    norm_greatest: float | None = None
    directions: np.ndarray | None = None
    """float32 `[D]`: sum of the vectors (of a sequence the mean), each scaled to length 1."""
    constant: str = ""
    """Hash of the vector, if all rows have the same one."""
    keys: KeySketch | None = None


@dataclass(frozen=True, kw_only=True)
class ModalityStatistics:
    """All embeddings of a modality in a snapshot, summed up. None is not known."""

    encoder: str
    """Fingerprint of the encoder."""
    payloads: int
    missing: int
    """Samples without a payload."""
    bad: int
    rows: int
    """Embeddings."""
    computed: int
    counts: Mapping[str, int]
    """What the encoder counted of the `computed` rows and the bad ones, such as those truncated."""
    norm_mean: float | None = None
    norm_std: float | None = None
    """Of the rows themselves, and not of a population they may be drawn from."""
    norm_least: float | None = None
    norm_greatest: float | None = None
    direction: np.ndarray | None = None
    """float64 `[D]`: the mean of the vectors scaled to length 1.

    Of the vectors themselves the mean would turn to wherever the longest point. Its own length,
    from 0 to 1, is the mean resultant length of directional statistics (Mardia and Jupp, 2000,
    section 9.2): 0 for directions that are spread evenly, 1 for a single one.
    """
    constant: bool = False
    """Whether all rows have the same vector."""
    keys: KeySketch | None = None

    @property
    def missing_share(self) -> float:
        samples = self.payloads + self.missing
        return self.missing / samples if samples else 0.0

    @property
    def bad_share(self) -> float:
        return self.bad / self.payloads if self.payloads else 0.0

    @property
    def resultant(self) -> float | None:
        """Length of the mean direction."""
        return None if self.direction is None else float(np.linalg.norm(self.direction))


def statistics_of(
    vectors: np.ndarray, *, keys: Sequence[bytes], pooled: bool = False
) -> ShardStatistics:
    """The statistics of a shard's vectors `[P, D]` and payload keys; `pooled` are of sequences."""
    norms = np.sqrt(np.einsum("pd,pd->p", vectors, vectors, dtype=np.float64))
    scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    mean = float(norms.mean()) if len(norms) else 0.0
    constant = ""
    if len(vectors) and not pooled and (vectors == vectors[0]).all():
        constant = hashlib.blake2b(vectors[0].tobytes(), digest_size=DIGEST_BYTES).hexdigest()
    return ShardStatistics(
        rows=len(vectors),
        norm_sum=float(norms.sum()),
        norm_m2=float(((norms - mean) ** 2).sum()),
        norm_least=float(norms.min()) if len(norms) else None,
        norm_greatest=float(norms.max()) if len(norms) else None,
        directions=np.einsum("pd,p->d", vectors, scales, dtype=np.float64).astype("<f4"),
        constant=constant,
        keys=sketch_keys(keys),
    )


def statistics_json(found: ShardStatistics) -> str:
    """What stands in a shard's footer of its statistics, as JSON."""
    assert found.directions is not None and found.keys is not None
    return json.dumps(
        {
            "rows": found.rows,
            "norm_sum": found.norm_sum,
            "norm_m2": found.norm_m2,
            "norm_least": found.norm_least,
            "norm_greatest": found.norm_greatest,
            "directions": base64.b64encode(found.directions.tobytes()).decode(),
            "constant": found.constant,
            "keys": sketch_json(found.keys),
        },
        separators=(",", ":"),
    )


def statistics_from(metadata: Mapping[str, str]) -> ShardStatistics:
    """The statistics in the metadata of a shard's footer, or what of them there is."""
    said: dict[str, Any] = json.loads(metadata.get("sensorium.statistics", "{}"))
    directions = said.get("directions")
    return ShardStatistics(
        rows=int(said.get("rows", metadata.get("sensorium.rows", 0))),
        computed=int(metadata.get("sensorium.embedded", 0)),
        bad=int(metadata.get("sensorium.bad", 0)),
        counts=json.loads(metadata.get("sensorium.counts", "{}")),
        norm_sum=said.get("norm_sum"),
        norm_m2=said.get("norm_m2"),
        norm_least=said.get("norm_least"),
        norm_greatest=said.get("norm_greatest"),
        directions=None
        if directions is None
        else np.frombuffer(base64.b64decode(directions), "<f4"),
        constant=said.get("constant", ""),
        keys=sketch_from(said["keys"]) if "keys" in said else None,
    )


def merge_statistics(parts: Sequence[ShardStatistics], *, of: ModalityShards) -> ModalityStatistics:
    """The statistics of a modality by those of its shards, in any order.

    Variances are joined as Chan, Golub and LeVeque do (1979, Technical Report STAN-CS-79-773). A
    field is known if it is of every shard that has rows.
    """
    counts: dict[str, int] = {}
    for part in parts:
        for name, number in part.counts.items():
            counts[name] = counts.get(name, 0) + number
    filled = [part for part in parts if part.rows]
    rows = sum(part.rows for part in filled)
    constants = {part.constant for part in filled}
    merged = ModalityStatistics(
        encoder=of.encoder_fingerprint,
        payloads=of.present + of.bad,
        missing=of.missing,
        bad=of.bad,
        rows=rows,
        computed=sum(part.computed for part in parts),
        counts=dict(sorted(counts.items())),
        constant=len(constants) == 1 and "" not in constants,
        keys=_joined([part.keys for part in filled]),
    )
    if not rows or any(part.norm_sum is None or part.directions is None for part in filled):
        return merged
    mean = math.fsum(part.norm_sum or 0.0 for part in filled) / rows
    squares = None
    if all(part.norm_m2 is not None for part in filled):
        between = (p.rows * ((p.norm_sum or 0.0) / p.rows - mean) ** 2 for p in filled)
        squares = math.fsum([*(part.norm_m2 or 0.0 for part in filled), *between])
    directions = [part.directions for part in filled if part.directions is not None]
    total = np.asarray(np.sum(directions, axis=0, dtype=np.float64))
    return replace(
        merged,
        norm_mean=mean,
        norm_std=None if squares is None else math.sqrt(squares / rows),
        norm_least=min(part.norm_least or 0.0 for part in filled),
        norm_greatest=max(part.norm_greatest or 0.0 for part in filled),
        direction=total / rows,
    )


def _joined(sketches: Sequence[KeySketch | None]) -> KeySketch | None:
    known = [sketch for sketch in sketches if sketch is not None]
    return join_sketches(known) if len(known) == len(sketches) else None
