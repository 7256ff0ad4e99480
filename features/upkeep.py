"""What a store holds, and what refers to what.

Costs one listing of the store and one read a snapshot; memory grows with the shards, not with
their rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from features.lease import Announced, announced
from features.shard_names import embedding_path, quarantine_path
from features.snapshot import Snapshot
from features.storage import TEMPORARY_SUFFIX
from features.store import Store

KINDS = (
    "samples",
    "embeddings",
    "quarantine",
    "encoders",
    "snapshots",
    "statistics",
    "places",
    "latest",
    "attempts",
    "scans",
    "candidates",
    "indexes",
    "searches",
    "train-runs",
    "leases",
    "turns",
)
"""Top folders of a store, in the order in which they are shown."""
TEMPORARY, OTHER = "temporary", "other"


class StoreDamaged(ValueError):
    """What must be read to know what is needed cannot be read, so that nothing may be deleted."""


@dataclass(kw_only=True)
class Amount:
    """Files, and the bytes in them."""

    files: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size


@dataclass(frozen=True, kw_only=True)
class SnapshotUse:
    """A snapshot, what points to it, and what it refers to."""

    snapshot: Snapshot
    written: float
    """When: seconds since 1970."""
    pointers: tuple[str, ...]
    """Paths of the `latest` and `attempts` that name it."""
    amount: Amount
    """The sample, embedding and quarantine shards that it names, and that are there."""
    lacking: tuple[str, ...]
    """Paths of the shards that it names and that are not there."""


@dataclass(frozen=True, kw_only=True)
class EncoderUse:
    """The shards of one encoder, and the snapshots that name some of them."""

    kinds: tuple[str, ...]
    """Types of the encoder, as the snapshots and cards say; empty if nothing does."""
    amount: Amount
    unreferenced: Amount
    """Those that no snapshot names."""
    snapshots: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What a store holds."""

    kinds: Mapping[str, Amount]
    """By top folder, `temporary` for what killed writers left, `other` for what is not ours."""
    encoders: Mapping[str, EncoderUse]
    snapshots: tuple[SnapshotUse, ...]
    """The newest first."""
    jobs: tuple[Announced, ...]
    """Who works on the store at the moment."""


def kind_of(path: str) -> str:
    """What a file of the store is, by its path."""
    if path.endswith(TEMPORARY_SUFFIX) and path.rpartition("/")[2].startswith("."):
        return TEMPORARY
    top = path.partition("/")[0]
    return top if top in KINDS and top != path else OTHER


def inventory(store: Store) -> Inventory:
    """What is in a store, by kind, encoder and snapshot."""
    kinds: dict[str, Amount] = {}
    sizes: dict[str, int] = {}
    written: dict[str, float] = {}
    for entry in store.storage.walk():
        kind = kind_of(entry.path)
        kinds.setdefault(kind, Amount()).add(entry.size)
        if kind in ("samples", "embeddings", "quarantine", "encoders"):
            sizes[entry.path] = entry.size
        elif kind == "snapshots":
            written[entry.path] = entry.modified
    pointers = read_pointers(store)
    uses: list[SnapshotUse] = []
    named: set[str] = set()
    of_encoder: dict[str, dict[str, None]] = {}
    types: dict[str, dict[str, None]] = {}
    for path in sorted(written, key=lambda path: -written[path]):
        snapshot = read_snapshot(store, path)
        use = _use(snapshot, written=written[path], pointers=pointers, sizes=sizes)
        named.update(shards_of(snapshot))
        uses.append(use)
        for part in snapshot.modalities.values():
            of_encoder.setdefault(part.encoder_fingerprint, {})[snapshot.id] = None
            kind = str(part.encoder.get("type", part.kind))
            types.setdefault(part.encoder_fingerprint, {})[kind] = None
    amounts: dict[str, tuple[Amount, Amount]] = {}
    for path, size in sizes.items():
        if path.startswith("embeddings/"):
            encoder = path.split("/")[1]
            amount, free = amounts.setdefault(encoder, (Amount(), Amount()))
            amount.add(size)
            if path not in named:
                free.add(size)
    encoders = {
        encoder: EncoderUse(
            kinds=tuple(types.get(encoder) or _card(store, encoder=encoder, sizes=sizes)),
            amount=amount,
            unreferenced=free,
            snapshots=tuple(of_encoder.get(encoder, ())),
        )
        for encoder, (amount, free) in sorted(amounts.items())
    }
    return Inventory(
        kinds={kind: kinds[kind] for kind in (*KINDS, TEMPORARY, OTHER) if kind in kinds},
        encoders=encoders,
        snapshots=tuple(uses),
        jobs=tuple(announced(store.storage, now=time.time())),
    )


def shards_of(snapshot: Snapshot) -> Iterator[str]:
    """Paths of all sample, embedding and quarantine shards that a snapshot may refer to.

    Not every embedding shard has a quarantine; the others are there.
    """
    for samples in snapshot.samples:
        yield samples.path
    for part in snapshot.modalities.values():
        for over in part.shards:
            for shard in over:
                yield embedding_path(encoder=part.encoder_fingerprint, shard=shard)
                yield quarantine_path(encoder=part.encoder_fingerprint, shard=shard)


def read_pointers(store: Store) -> dict[str, list[str]]:
    """Per snapshot file that is pointed to: the paths of its pointers."""
    found: dict[str, list[str]] = {}
    for folder in ("latest", "attempts"):
        for name in sorted(store.storage.list(folder)):
            path = f"{folder}/{name}"
            try:
                body = store.storage.read(path)
                id = json.loads(body)["snapshot"] if folder == "latest" else body.decode()
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError) as error:
                raise _unreadable(path, error) from error
            found.setdefault(f"snapshots/{id}.json", []).append(path)
    return found


def read_snapshot(store: Store, path: str) -> Snapshot:
    """The snapshot in a file; StoreDamaged if that cannot be read."""
    id = path.removeprefix("snapshots/").removesuffix(".json")
    try:
        return store.read_snapshot(id)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> StoreDamaged:
    return StoreDamaged(
        f"{path} cannot be read ({type(error).__name__}: {error}), so that it is not known what it "
        "refers to; restore it from a copy, or delete it if it is of no use, and try again"
    )


def _use(
    snapshot: Snapshot,
    *,
    written: float,
    pointers: Mapping[str, list[str]],
    sizes: Mapping[str, int],
) -> SnapshotUse:
    amount, lacking = Amount(), []
    for path in dict.fromkeys(shards_of(snapshot)):
        if path in sizes:
            amount.add(sizes[path])
        elif not path.startswith("quarantine/"):
            lacking.append(path)
    return SnapshotUse(
        snapshot=snapshot,
        written=written,
        pointers=tuple(pointers.get(f"snapshots/{snapshot.id}.json", ())),
        amount=amount,
        lacking=tuple(lacking),
    )


def _card(store: Store, *, encoder: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The type on an encoder's card, if there is one."""
    path = f"encoders/{encoder}.json"
    if path not in sizes:
        return ()
    try:
        return (str(json.loads(store.storage.read(path))["spec"]["type"]),)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ()
