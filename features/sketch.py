"""Payload keys, counted in bounded memory: how many occur more than once, how many are shared.

A theta sketch (Dasgupta, Lang, Rhodes and Thaler, ICDT 2016, https://arxiv.org/abs/1510.01455)
with the number of times each key occurs: all keys whose hash lies below a limit are in it, and
no others. Payload keys are hashes already, so their first bits decide. The keys below a limit
are a fair sample of the distinct ones, the same in all sketches, and their counts are exact:
sketches of many shards join to what one of all their rows would be, in any order.

A sample of the distinct keys seldom has the one that stands in a tenth of all rows. So each
sketch also names its most frequent keys, which are counted by themselves.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALL = 2**48
"""Limit of a sketch that has every key. 48 bits of a key are kept: of a billion distinct keys
one in 280,000 is taken for another."""
SHARD_KEYS = 256
"""Distinct keys in the sketch of one shard, which adds about 2 kB to its footer."""
JOINED_KEYS = 4096
"""Distinct keys in the sketch of a snapshot."""
FREQUENT_KEYS = 16
"""The most frequent keys of a shard that are named."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of payloads, and its standard error: 0 if it is exact."""

    value: float
    error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class KeySketch:
    """A sample of the distinct payload keys of some rows, with how often each occurs."""

    rows: int
    """All payloads, exactly."""
    limit: int
    """All keys whose hash is below are in the sketch; `ALL` if every key is."""
    hashes: np.ndarray
    """uint64 `[K]`, ascending, below the limit."""
    counts: np.ndarray
    """int64 `[K]`: how many rows have each."""
    frequent: np.ndarray
    """uint64 `[F]`, ascending: keys that some shard has often, whatever their hash."""
    frequent_counts: np.ndarray
    """int64 `[F]`: in how many rows at least, by the shards that name them."""
    repeated: int | None = None
    """Rows whose key occurs more than once, where it is known exactly: within one shard."""

    @property
    def is_exact(self) -> bool:
        return self.limit >= ALL

    @property
    def distinct(self) -> float:
        """Estimate of the number of distinct keys; relative standard error 1/sqrt(K)."""
        return len(self.hashes) * (ALL / self.limit)

    @property
    def duplicates(self) -> Share:
        """The share of payloads whose key occurs more than once.

        Exact for one shard, and where the sketch has every key. Else the keys that take more than
        1/K of the rows are counted by themselves, and the others are a ratio estimate over the
        sample (Cochran, Sampling Techniques, section 6.3) with its standard error: mostly below
        0.01 for a snapshot.
        """
        if not self.rows:
            return Share(value=0.0)
        if self.repeated is not None:
            return Share(value=self.repeated / self.rows)
        if self.is_exact:
            return Share(value=float(self.counts[self.counts > 1].sum() / self.rows))
        # Where a frequent key is in the sample, its count there is the exact one.
        places = np.searchsorted(self.hashes, self.frequent)
        places[places == len(self.hashes)] = 0
        sampled = self.hashes[places] == self.frequent if len(self.hashes) else places < 0
        often = self.frequent_counts.copy()
        often[sampled] = self.counts[places[sampled]]
        chosen = (often > 1) & (often * max(1, len(self.hashes)) > self.rows)
        named = min(int(often[chosen].sum()), self.rows)
        rest = self.counts[~np.isin(self.hashes, self.frequent[chosen])]
        ratio, error = _ratio(np.where(rest > 1, rest, 0), rest, sampled=self.limit / ALL)
        others = (self.rows - named) / self.rows
        return Share(value=named / self.rows + others * ratio, error=others * error)


def sketch_keys(keys: Sequence[bytes], *, size: int = SHARD_KEYS) -> KeySketch:
    """The sketch of a shard's payload keys (at least 6 bytes each, hashes), one a row."""
    joined = np.frombuffer(b"".join(key[:6] for key in keys), np.uint8).reshape(-1, 6)
    hashes, counts = np.unique(_from_bytes(joined), return_counts=True)
    often = np.flatnonzero(counts > 1)
    often = often[np.argsort(-counts[often], kind="stable")][:FREQUENT_KEYS]
    often.sort()
    limit = int(hashes[size]) if len(hashes) > size else ALL
    kept = slice(size if limit < ALL else None)
    return KeySketch(
        rows=len(keys),
        limit=limit,
        hashes=hashes[kept],
        counts=counts[kept].astype(np.int64),
        frequent=hashes[often],
        frequent_counts=counts[often].astype(np.int64),
        repeated=int(counts[counts > 1].sum()),
    )


def join_sketches(sketches: Sequence[KeySketch], *, size: int = JOINED_KEYS) -> KeySketch:
    """The sketch of all rows of several sketches, which have no row in common."""
    if len(sketches) == 1:
        return sketches[0]
    limit = min((sketch.limit for sketch in sketches), default=ALL)
    hashes, counts = _summed([(sketch.hashes, sketch.counts) for sketch in sketches])
    below = hashes < limit
    hashes, counts = hashes[below], counts[below]
    if len(hashes) > size:
        limit = int(hashes[size])
        hashes, counts = hashes[:size], counts[:size]
    frequent, often = _summed([(sketch.frequent, sketch.frequent_counts) for sketch in sketches])
    return KeySketch(
        rows=sum(sketch.rows for sketch in sketches),
        limit=limit,
        hashes=hashes,
        counts=counts,
        frequent=frequent,
        frequent_counts=often,
    )


def below(sketch: KeySketch, *, limit: int) -> KeySketch:
    """The sketch with no key at or above a limit; what it says of its own rows stays exact."""
    if limit >= sketch.limit:
        return sketch
    stop = int(np.searchsorted(sketch.hashes, np.uint64(limit)))
    return KeySketch(
        rows=sketch.rows,
        limit=limit,
        hashes=sketch.hashes[:stop],
        counts=sketch.counts[:stop],
        frequent=sketch.frequent,
        frequent_counts=sketch.frequent_counts,
        repeated=sketch.repeated,
    )


def shared(before: KeySketch, after: KeySketch) -> Share:
    """The share of the payloads before that are there after, too, each counted as often as both
    have it.
    """
    limit = min(before.limit, after.limit)
    old, new = below(before, limit=limit), below(after, limit=limit)
    _, here, there = np.intersect1d(old.hashes, new.hashes, assume_unique=True, return_indices=True)
    kept = np.zeros(len(old.hashes), np.int64)
    kept[here] = np.minimum(old.counts[here], new.counts[there])
    ratio, error = _ratio(kept, old.counts, sampled=limit / ALL)
    return Share(value=ratio, error=error)


def _ratio(part: np.ndarray, whole: np.ndarray, *, sampled: float) -> tuple[float, float]:
    """Sum of parts over sum of wholes, of a sample of keys, and the standard error of that."""
    total = int(whole.sum())
    if not total:
        return 0.0, 0.0
    ratio = float(part.sum() / total)
    spread = float(((part - ratio * whole) ** 2).sum())
    return ratio, math.sqrt(max(0.0, 1 - sampled) * spread) / total


def _summed(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The keys of all parts, each once and ascending, with the sums of their counts."""
    keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in parts)])
    counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in parts)])
    found, places = np.unique(keys, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, places, counts)
    return found, sums


def hashes_to_bytes(hashes: np.ndarray) -> bytes:
    """Six bytes each, little-endian."""
    return hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def hashes_from_bytes(data: bytes) -> np.ndarray:
    """The hashes, uint64, that `hashes_to_bytes` wrote."""
    return _from_bytes(np.frombuffer(data, np.uint8).reshape(-1, 6))


def _from_bytes(six: np.ndarray) -> np.ndarray:
    eight = np.zeros((len(six), 8), np.uint8)
    eight[:, :6] = six
    return eight.view("<u8").reshape(-1).astype(np.uint64)


def sketch_json(sketch: KeySketch) -> dict[str, object]:
    """A sketch as plain JSON values."""
    return {
        "rows": sketch.rows,
        "limit": sketch.limit,
        "hashes": base64.b64encode(hashes_to_bytes(sketch.hashes)).decode(),
        "counts": sketch.counts.tolist() if (sketch.counts > 1).any() else [],
        "frequent": np.stack(
            [sketch.frequent.astype(np.int64), sketch.frequent_counts], axis=1
        ).tolist(),
        "repeated": sketch.repeated,
    }


def sketch_from(value: Mapping[str, Any]) -> KeySketch:
    """The sketch that `sketch_json` described."""
    hashes = hashes_from_bytes(base64.b64decode(value["hashes"]))
    frequent = np.array(value["frequent"], np.int64).reshape(-1, 2)
    return KeySketch(
        rows=value["rows"],
        limit=value["limit"],
        hashes=hashes,
        counts=np.array(value["counts"] or [1] * len(hashes), np.int64),
        frequent=frequent[:, 0].astype(np.uint64),
        frequent_counts=frequent[:, 1],
        repeated=value["repeated"],
    )
