"""The deletion of what nobody needs any more in a store, beside jobs that run.

Costs one listing of the store and one read a snapshot; memory grows with the shards, not with
their rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from features.lease import Announced, Lease, announce, announced
from features.snapshot import Snapshot
from features.storage import Entry
from features.store import Store
from features.upkeep import (
    KINDS,
    TEMPORARY,
    Amount,
    StoreDamaged,
    kind_of,
    read_pointers,
    read_snapshot,
    shards_of,
)

DAY = 86400.0
GRACE_SECONDS = 7 * DAY
TEMPORARY_SECONDS = DAY
"""Age at which a file that a killed writer left is garbage: no write of one file takes so long."""
KEEP = 3
DELETE_AT_ONCE = 1000


@dataclass(kw_only=True)
class Garbage:
    """What was deleted, or would be."""

    kinds: dict[str, Amount] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    """Ids of the snapshots that are kept."""
    spared: Amount = field(default_factory=Amount)
    """What no kept snapshot names, but a running job may need, or is too young."""
    jobs: tuple[Announced, ...] = ()

    @property
    def files(self) -> int:
        return sum(amount.files for amount in self.kinds.values())

    @property
    def bytes(self) -> int:
        return sum(amount.bytes for amount in self.kinds.values())


def collect_garbage(
    store: Store,
    *,
    keep: int = KEEP,
    grace: float = GRACE_SECONDS,
    dry_run: bool = False,
    candidates: Callable[[Sequence[Snapshot]], Collection[str]] | None = None,
    on_deleted: Callable[[Entry], None] | None = None,
) -> Garbage:
    """Delete the snapshots that are not kept, and the shards that no kept snapshot names.

    Kept are the snapshots that `latest` and `attempts` name, the last `keep` of each name, and
    those younger than `grace` seconds. A shard is deleted if it is older than that, and neither a
    kept snapshot names it nor a running job may take it up (see `features.lease`). Files that
    killed writers left go after a day. Encoders' cards stay.

    The files of an index stay while it is one over a kept snapshot.

    Candidates and the state of unfinished training stay, unless `candidates` is given, which says
    of the kept snapshots which candidates are needed; and unless a job is running.

    Raises StoreDamaged, with nothing deleted, if a snapshot or pointer cannot be read; LeaseLost
    if the store was out of reach for so long that a job may have begun meanwhile.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the last snapshot of a name is kept: 1 or more")
    if grace < 0:
        raise ValueError(f"the grace period is {grace} s; it is 0 or more")
    if dry_run:
        return _collect(
            store,
            lease=None,
            jobs=_jobs(announced(store.storage, now=time.time())),
            now=time.time(),
            keep=keep,
            grace=grace,
            candidates=candidates,
            on_deleted=on_deleted,
        )
    with announce(store.storage, role="collector", what="store gc") as lease:
        return _collect(
            store,
            lease=lease,
            jobs=_jobs(lease.others()),
            now=lease.time(),
            keep=keep,
            grace=grace,
            candidates=candidates,
            on_deleted=on_deleted,
        )


def _collect(
    store: Store,
    *,
    lease: Lease | None,
    jobs: Sequence[Announced],
    now: float,
    keep: int,
    grace: float,
    candidates: Callable[[Sequence[Snapshot]], Collection[str]] | None,
    on_deleted: Callable[[Entry], None] | None,
) -> Garbage:
    spare = _Spared(jobs)
    kept, dropped = _sift(store, keep=keep, young=now - grace, spare=spare)
    needed = {path for snapshot in kept for path in shards_of(snapshot)}
    needed_candidates = None if candidates is None or jobs else set(candidates(kept))
    needed |= _indexes_of(store, kept={snapshot.id for snapshot in kept})
    found = Garbage(kept=tuple(snapshot.id for snapshot in kept), jobs=tuple(jobs))

    def is_garbage(entry: Entry) -> bool:
        kind = kind_of(entry.path)
        age = now - entry.modified
        if kind in (TEMPORARY, "leases"):  # a lease is renewed while its process lives
            return age > TEMPORARY_SECONDS
        if kind in ("candidates", "train-runs"):
            name = entry.path.split("/")[1]
            return needed_candidates is not None and name not in needed_candidates and age > grace
        if kind in ("statistics", "places"):  # written before their snapshot, by a job that runs
            return not jobs and of_snapshot(entry.path) not in found.kept and age > grace
        if kind == "indexes":  # a search may be at work on what is young
            return entry.path not in needed and age > grace
        if kind not in ("samples", "embeddings", "quarantine") or entry.path in needed:
            return False
        if age <= grace or spare.shard(entry.path, kind=kind):
            found.spared.add(entry.size)
            return False
        return True

    def delete(entries: Iterable[Entry]) -> None:
        remaining = iter(entries)
        while batch := list(islice(remaining, DELETE_AT_ONCE)):
            if lease is not None:
                lease.check()
                store.storage.delete(entry.path for entry in batch)
            for entry in batch:
                found.kinds.setdefault(kind_of(entry.path), Amount()).add(entry.size)
                if on_deleted:
                    on_deleted(entry)

    # A snapshot goes before its shards, so that one that is there is whole; and an embedding
    # shard before its quarantine, so that a job that finds the first finds both.
    delete(dropped)
    first = ("embeddings", "quarantine", "samples")
    for folder in (*first, *(kind for kind in KINDS if kind not in first)):
        delete(filter(is_garbage, store.storage.walk(folder)))
    return found


def _indexes_of(store: Store, *, kept: Collection[str]) -> set[str]:
    """Paths of the files of the indexes over kept snapshots (see `workflows.space.parts`)."""
    needed: set[str] = set()
    manifests_of_kept = {f"of-{id}.json" for id in kept}
    spaces: dict[str, list[str]] = {}
    for entry in store.storage.walk("indexes"):
        folder, _, name = entry.path.rpartition("/")
        spaces.setdefault(folder, []).append(name)
    for folder, names in spaces.items():
        manifests = [name for name in names if name in manifests_of_kept]
        parts = {
            part
            for name in manifests
            for part in json.loads(store.storage.read(f"{folder}/{name}"))["parts"]
        }
        needed |= {
            f"{folder}/{name}"
            for name in names
            if name in manifests
            or name.partition(".")[0] in parts
            or (manifests and name.startswith("recall-"))
        }
    return needed


def of_snapshot(path: str) -> str:
    """Id of the snapshot that a file stands beside."""
    return path.rpartition("/")[2].partition(".")[0]


class _Spared:
    """What the jobs that run may need, beside what snapshots name."""

    def __init__(self, jobs: Sequence[Announced]) -> None:
        self._any = bool(jobs)
        self._all = any(job.encoders is None for job in jobs)
        self._encoders = {encoder for job in jobs for encoder in job.encoders or ()}

    def shard(self, path: str, *, kind: str) -> bool:
        """A job may come upon any sample shard, and upon all shards of its encoders."""
        return self._any if kind == "samples" else self._has(path.split("/")[1])

    def snapshot(self, snapshot: Snapshot) -> bool:
        """A job may train on it, or find that it is the one that it is about to commit."""
        return any(self._has(part.encoder_fingerprint) for part in snapshot.modalities.values())

    def _has(self, encoder: str) -> bool:
        return self._all or encoder in self._encoders


def _jobs(others: Sequence[Announced]) -> list[Announced]:
    return [other for other in others if other.role == "job"]


def _sift(
    store: Store, *, keep: int, young: float, spare: _Spared
) -> tuple[list[Snapshot], list[Entry]]:
    """The snapshots that are kept, and the files of those that are not."""
    entries = [e for e in store.storage.walk("snapshots") if kind_of(e.path) == "snapshots"]
    entries.sort(key=lambda entry: -entry.modified)
    pointers = read_pointers(store)
    lacking = set(pointers) - {entry.path for entry in entries}
    if lacking:
        path = min(lacking)
        raise StoreDamaged(
            f"{', '.join(pointers[path])} names {path}, which is not there; nothing is deleted. "
            "Embed again, which writes it, then collect"
        )
    count: dict[str, int] = {}
    kept, dropped = [], []
    for entry in entries:
        snapshot = read_snapshot(store, entry.path)
        count[snapshot.name] = count.get(snapshot.name, 0) + 1
        is_kept = entry.path in pointers or count[snapshot.name] <= keep
        if is_kept or entry.modified >= young or spare.snapshot(snapshot):
            kept.append(snapshot)
        else:
            dropped.append(entry)
    return kept, dropped
