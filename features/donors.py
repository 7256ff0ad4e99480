"""Which shards of an earlier snapshot hold embeddings that a missing shard can copy.

The keys of both are brought together on a local disk, so memory is bounded whatever is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.sample_rows import key_hashes
from features.shard_names import embedding_path
from features.snapshot import ModalityShards
from features.spill import Spill, first_of_runs
from features.store import READERS, Store

_KEY = np.dtype([("hash", "<u8"), ("shard", "<i4"), ("wanted", "u1")])


@dataclass(frozen=True, kw_only=True)
class Held:
    """Shards that hold some of the payloads of a missing one, and how many they hold."""

    shards: tuple[str, ...]
    rows: int


class DonorSearch:
    """Finds the donors of one modality's missing shards; what it keeps goes with the stack."""

    def __init__(
        self, modality: str, *, donors: Sequence[ModalityShards], stack: ExitStack
    ) -> None:
        self.modality = modality
        self._donors = donors
        self._spill = stack.enter_context(Spill(_KEY))
        self._missing: list[str] = []

    @property
    def has_donors(self) -> bool:
        """Whether there is any to ask."""
        return bool(self._donors)

    def add(self, shard: str, *, hashes: np.ndarray) -> None:
        """A missing shard and the hashes of its payload keys, as `key_hashes` has them."""
        self._add(hashes, number=len(self._missing), wanted=True)
        self._missing.append(shard)

    def find(self, store: Store, *, listed: Collection[str]) -> dict[str, Held]:
        """The donors of each missing shard that has some; those `listed` anyway are none.

        Costs a read of the payload keys of each donor.
        """
        if not self._missing:
            return {}
        holders: list[str] = []
        for shard, keys in self._keys(store, listed=listed):
            self._add(key_hashes(keys), number=len(holders), wanted=False)
            holders.append(shard)
        found: dict[int, set[int]] = {}
        rows = np.zeros(len(self._missing), np.int64)
        for records in self._spill.groups() if holders else ():
            firsts = first_of_runs(records)
            ends = np.append(firsts[1:], len(records))
            runs = np.repeat(np.arange(len(firsts)), ends - firsts)
            wanted = records["wanted"] == 1
            holder = np.full(len(firsts), -1)
            holder[runs[~wanted][::-1]] = records["shard"][~wanted][::-1]
            asked, from_shard = records["shard"][wanted], holder[runs[wanted]]
            asked, from_shard = asked[from_shard >= 0], from_shard[from_shard >= 0]
            np.add.at(rows, asked, 1)
            for pair in np.unique(np.stack([asked, from_shard], axis=1), axis=0).tolist():
                found.setdefault(pair[0], set()).add(pair[1])
        return {
            self._missing[number]: Held(
                shards=tuple(holders[other] for other in sorted(others)), rows=int(rows[number])
            )
            for number, others in found.items()
        }

    def _add(self, hashes: np.ndarray, *, number: int, wanted: bool) -> None:
        records = np.empty(len(hashes), _KEY)
        records["hash"], records["shard"], records["wanted"] = hashes, number, wanted
        self._spill.add(records)

    def _keys(
        self, store: Store, *, listed: Collection[str]
    ) -> Iterator[tuple[str, pa.ChunkedArray]]:
        """The payload keys of the donors that are there still, several read at once."""
        shards = {
            shard: part.encoder_fingerprint
            for part in self._donors
            for over in part.shards
            for shard in over
            if shard not in listed
        }

        def read(item: tuple[str, str]) -> tuple[str, pa.ChunkedArray] | None:
            path = embedding_path(encoder=item[1], shard=item[0])
            try:
                return item[0], store.read_table(path, columns=["payload_key"])["payload_key"]
            except FileNotFoundError:
                return None

        pairs = list(shards.items())
        with ThreadPoolExecutor(max_workers=READERS) as pool:
            for start in range(0, len(pairs), 4 * READERS):
                for found in pool.map(read, pairs[start : start + 4 * READERS]):
                    if found is not None:
                        yield found
