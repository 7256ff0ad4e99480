"""Embeddings copied out of donors: shards of an earlier snapshot that hold the same payloads.

After an edit a shard has a donor or two, which are read whole. After a table was sorted anew it
may have them all, each for a few rows: then the payload keys of every donor are kept, within a
bound, and of the embeddings only those that are wanted are read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from features.fingerprint import DIGEST_BYTES
from features.plan import Work
from features.shard_names import embedding_path
from features.store import Store
from features.stored_embeddings import read_donor, read_some_embeddings

READ_WHOLE = 8
"""Donors up to which each is read whole."""
KEPT_BYTES = 2**29
"""Bytes of payload keys that are kept."""

_KEY = np.dtype(f"S{DIGEST_BYTES}")


class Copier:
    """Copies embeddings in one store; remembers the keys of donors from one shard to the next."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._bytes = 0

    def copied(self, work: Work, *, keys: Sequence[bytes | None]) -> dict[int, np.ndarray]:
        """The rows whose embeddings stand in donors: `[D]` each, or `[T, D]` of sequences."""
        if len(work.donors) <= READ_WHOLE:
            return self._by_whole_donors(work, keys=keys)
        wanted = np.array([row for row, key in enumerate(keys) if key is not None], np.int64)
        asked = _as_array([key for key in keys if key is not None])
        found: dict[int, np.ndarray] = {}
        for donor in work.donors:
            if not len(wanted):
                break
            try:
                held, rows = self._keys(donor, encoder=work.encoder)
                if not len(held):
                    continue
                place = np.minimum(np.searchsorted(held, asked), len(held) - 1)
                hit = held[place] == asked
                if not hit.any():
                    continue
                values = read_some_embeddings(
                    self._store, donor, encoder=work.encoder, rows=rows[place[hit]]
                )
            except FileNotFoundError:
                continue  # collected since the planning; its rows are computed like any others
            found.update(zip(wanted[hit].tolist(), values, strict=True))
            wanted, asked = wanted[~hit], asked[~hit]
        return found

    def _by_whole_donors(
        self, work: Work, *, keys: Sequence[bytes | None]
    ) -> dict[int, np.ndarray]:
        held: dict[bytes, np.ndarray] = {}
        for donor in work.donors:
            try:
                held.update(read_donor(self._store, donor, encoder=work.encoder))
            except FileNotFoundError:
                continue  # as above
        return {row: held[key] for row, key in enumerate(keys) if key is not None and key in held}

    def _keys(self, donor: str, *, encoder: str) -> tuple[np.ndarray, np.ndarray]:
        """A donor's payload keys, ascending, and the row of the file that each first stands in."""
        if donor in self._kept:
            self._kept.move_to_end(donor)
            return self._kept[donor]
        path = embedding_path(encoder=encoder, shard=donor)
        column = self._store.read_table(path, columns=["payload_key"])["payload_key"]
        keys, rows = np.unique(_as_array(column.to_pylist()), return_index=True)
        self._kept[donor] = keys, rows
        self._bytes += keys.nbytes + rows.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            _, (old, places) = self._kept.popitem(last=False)
            self._bytes -= old.nbytes + places.nbytes
        return keys, rows


def _as_array(keys: Sequence[bytes]) -> np.ndarray:
    """Keys as fixed-size bytes `[N]`; a key that ends in a zero byte keeps it, as equals do."""
    return np.array(keys, _KEY)
