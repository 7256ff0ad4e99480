"""How a snapshot differs from the one before it: which payloads, and where their embeddings lie.

Payloads are compared by their keys. Sample shards that both snapshots have, by the hash of their
keys, are not read; of the others the keys are, and compared exactly, unless there are so many
that sketches have to do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.fingerprint import DIGEST_BYTES
from features.kept_statistics import SnapshotStatistics
from features.samples import SampleShard
from features.sketch import shared
from features.snapshot import ModalityShards, Snapshot
from features.statistics import ModalityStatistics
from features.store import READERS, Store

EXACT_PAYLOADS = 8_000_000
"""So many payloads, of both snapshots and all modalities together, are compared at once by their
keys, at 8 bytes each."""

LEAST_SPREAD = 1e-3
"""Of norms, beside their mean: what spreads less are unit vectors, rounded, and no scale."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A modality's payloads before and after, in numbers; each counted as often as it occurs."""

    before: int
    after: int
    kept: int
    """Payloads that both have."""
    estimated: bool = False
    """Whether `kept` is an estimate."""

    @property
    def new(self) -> int:
        return self.after - self.kept

    @property
    def removed(self) -> int:
        return self.before - self.kept

    @property
    def new_share(self) -> float:
        """Of the payloads now."""
        return self.new / self.after if self.after else 0.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A number before and after; None is not known."""

    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class ModalityDrift:
    """How a modality differs from what it was."""

    change: Change | None
    """None if it cannot be told any more."""
    missing: Pair
    """Share of the samples without a payload."""
    bad: Pair
    """Share of the payloads in quarantine."""
    duplicates: Pair
    """Share of the embedded payloads whose key occurs more than once."""
    norm: Pair
    """Mean length of the vectors. Of another encoder it says nothing."""
    norm_shift: float | None
    """By how many of its earlier standard deviations the mean norm has moved."""
    cosine: float | None
    """Of the two mean directions; None if the encoder is another, or one is not known."""
    cosine_by_chance: float | None
    """What to expect of the cosine if both are random samples of the same directions."""
    same_encoder: bool

    @property
    def is_unchanged(self) -> bool:
        """Whether all payloads are those that were, and so are their embeddings."""
        return (
            self.same_encoder
            and self.change is not None
            and not (self.change.new or self.change.removed)
            and all(pair.before == pair.after for pair in (self.missing, self.bad))
        )


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How a snapshot differs from an earlier one."""

    before: str
    """Id of the earlier snapshot."""
    samples: Pair
    modalities: Mapping[str, ModalityDrift]
    """Those that both have."""
    added: tuple[str, ...] = ()
    """Modalities that only the later has."""
    removed: tuple[str, ...] = ()


def compare(
    before: Snapshot,
    after: Snapshot,
    *,
    statistics: tuple[SnapshotStatistics | None, SnapshotStatistics],
    store: Store,
) -> Drift:
    """How a snapshot differs from an earlier one, given the statistics of both, in that order."""
    old, new = (dict(s.modalities) if s else {} for s in statistics)
    both = [name for name in after.modalities if name in before.modalities]
    changes = count_changes(before, after, modalities=both, store=store, old=old, new=new)
    return Drift(
        before=before.id,
        samples=Pair(before=before.rows, after=after.rows),
        modalities={
            name: _modality(
                (before.modalities[name], after.modalities[name]),
                statistics=(old.get(name), new.get(name)),
                change=changes.get(name),
            )
            for name in both
        },
        added=tuple(name for name in after.modalities if name not in before.modalities),
        removed=tuple(name for name in before.modalities if name not in after.modalities),
    )


def _modality(
    parts: tuple[ModalityShards, ModalityShards],
    *,
    statistics: tuple[ModalityStatistics | None, ModalityStatistics | None],
    change: Change | None,
) -> ModalityDrift:
    before, after = parts
    old, new = statistics
    same = before.encoder_fingerprint == after.encoder_fingerprint
    norm = Pair(
        before=None if old is None else old.norm_mean, after=None if new is None else new.norm_mean
    )
    cosine = chance = None
    if same and old and new and old.direction is not None and new.direction is not None:
        cosine = _cosine(old.direction, new.direction)
        chance = cosine_by_chance(old, new)
    return ModalityDrift(
        change=change,
        missing=Pair(before=missing_share(before), after=missing_share(after)),
        bad=Pair(before=_bad_share(before), after=_bad_share(after)),
        duplicates=Pair(before=_duplicates(old), after=_duplicates(new)),
        norm=norm,
        norm_shift=_norm_shift(old, new) if same else None,
        cosine=cosine,
        cosine_by_chance=chance,
        same_encoder=same,
    )


def _norm_shift(old: ModalityStatistics | None, new: ModalityStatistics | None) -> float | None:
    if old is None or new is None or old.norm_std is None:
        return None
    if old.norm_mean is None or new.norm_mean is None:
        return None
    if old.norm_std <= LEAST_SPREAD * old.norm_mean:
        return None
    return (new.norm_mean - old.norm_mean) / old.norm_std


def missing_share(part: ModalityShards) -> float:
    """Share of the samples that have no payload."""
    samples = part.present + part.missing + part.bad
    return part.missing / samples if samples else 0.0


def _bad_share(part: ModalityShards) -> float:
    payloads = part.present + part.bad
    return part.bad / payloads if payloads else 0.0


def _duplicates(found: ModalityStatistics | None) -> float | None:
    return None if found is None or found.keys is None else found.keys.duplicates.value


def _cosine(one: np.ndarray, other: np.ndarray) -> float | None:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    if not lengths or one.shape != other.shape:
        return None
    return min(1.0, max(-1.0, float(one @ other) / lengths))


def cosine_by_chance(one: ModalityStatistics, other: ModalityStatistics) -> float | None:
    """The expected cosine of the mean directions of two samples of the same distribution.

    The mean of n unit vectors, of length R, is off by a vector whose mean square is (1 - R²)/n;
    nearly all of it stands at right angles to the mean, in many dimensions, so that the angle
    between two of them has the mean square (1 - R²)/R² (1/n + 1/m). None where the directions
    have no mean to speak of.
    """
    lengths = [length for part in (one, other) if (length := part.resultant) is not None]
    if len(lengths) < 2 or not one.rows or not other.rows:
        return None
    square = (lengths[0] ** 2 * one.rows + lengths[1] ** 2 * other.rows) / (one.rows + other.rows)
    noise = (1 - min(1.0, square)) * (1 / one.rows + 1 / other.rows)
    return math.sqrt(square / (square + noise)) if square > noise else None


def count_changes(
    before: Snapshot,
    after: Snapshot,
    *,
    modalities: Sequence[str],
    store: Store,
    old: Mapping[str, ModalityStatistics],
    new: Mapping[str, ModalityStatistics],
    most: int = EXACT_PAYLOADS,
) -> dict[str, Change]:
    """Per modality: how many payloads are new, removed and kept.

    Exact while at most `most` payloads stand in sample shards that only one of the snapshots has;
    then by the sketches in the statistics. A modality of which neither can be had is left out.
    """
    unlike = {m: _unlike(before.samples, after.samples, modality=m) for m in modalities}
    exact = sum(s.payloads[m] for m, sides in unlike.items() for side in sides for s in side)
    try:
        read = exact <= most and [
            _read_keys(store, {m: sides[i] for m, sides in unlike.items()}) for i in (0, 1)
        ]
    except FileNotFoundError:
        read = False  # collected meanwhile
    found = {}
    for modality in modalities:
        rows = [sum(s.payloads.get(modality, 0) for s in side.samples) for side in (before, after)]
        if read:
            one, other = (side[modality] for side in read)
            kept = rows[0] - len(one) + _in_both(one, other)
            found[modality] = Change(before=rows[0], after=rows[1], kept=kept)
            continue
        sketches = [side[modality].keys if modality in side else None for side in (old, new)]
        if sketches[0] is not None and sketches[1] is not None:
            share = shared(sketches[0], sketches[1]).value
            kept = min(round(share * rows[0]), *rows)
            found[modality] = Change(before=rows[0], after=rows[1], kept=kept, estimated=True)
    return found


def _unlike(
    before: Sequence[SampleShard], after: Sequence[SampleShard], *, modality: str
) -> tuple[list[SampleShard], list[SampleShard]]:
    """The sample shards of either side that have no partner with the same payloads."""

    def named(shards: Sequence[SampleShard]) -> Iterable[tuple[str, SampleShard]]:
        return ((shard.keys[modality], shard) for shard in shards if modality in shard.keys)

    def without(shards: Sequence[SampleShard], others: Sequence[SampleShard]) -> list[SampleShard]:
        free = Counter(name for name, _ in named(others))
        left = []
        for name, shard in named(shards):
            if free[name]:
                free[name] -= 1
            else:
                left.append(shard)
        return left

    return without(before, after), without(after, before)


def _read_keys(store: Store, wanted: Mapping[str, Sequence[SampleShard]]) -> dict[str, np.ndarray]:
    """Per modality the first 8 bytes of the keys in its shards; each file is read once for all."""
    columns: dict[str, list[str]] = {}
    for modality, shards in wanted.items():
        for shard in shards:
            columns.setdefault(shard.path, []).append(modality)

    def read(path: str) -> dict[str, np.ndarray]:
        table = store.read_table(path, columns=[f"key.{modality}" for modality in columns[path]])
        return {modality: _numbers(table[f"key.{modality}"]) for modality in columns[path]}

    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(read, columns))
    empty = np.empty(0, np.uint64)
    return {
        m: np.concatenate([empty, *(table[m] for table in tables if m in table)]) for m in wanted
    }


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    keys = column.combine_chunks().drop_null()
    data = np.frombuffer(keys.buffers()[1], np.uint8).reshape(-1, DIGEST_BYTES)
    data = data[keys.offset : keys.offset + len(keys), :8]
    return np.ascontiguousarray(data).view("<u8").reshape(-1).astype(np.uint64)


def _in_both(one: np.ndarray, other: np.ndarray) -> int:
    """How many keys both have, each as often as it is in both."""
    (left, often), (right, there) = (np.unique(s, return_counts=True) for s in (one, other))
    _, i, j = np.intersect1d(left, right, assume_unique=True, return_indices=True)
    return int(np.minimum(often[i], there[j]).sum())
