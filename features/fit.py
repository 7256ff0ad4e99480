"""What encoders are fitted on: a sample of the training payloads that any scan finds alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.columns import Cut, PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders.base import EncoderSpec
from features.payload_keys import depends_on_files
from features.payloads import open_payload
from features.sources import SourceError

SIZE = 65_536
"""Distinct payloads of a sample at most, where the encoder does not say."""
MAX_BYTES = 2**28
"""Bytes of all payloads of a sample at most, files not counted: those are read one by one."""
ROWS_A_PAYLOAD = 4
"""Up to this many rows for each place in the sample, repeated payloads count as often as they
stand in the table; beyond, their numbers are brought down in proportion."""
THREADS = 16
"""Files that are read at once."""


@dataclass(kw_only=True)
class _Held:
    """A payload of the sample, and how many rows have it."""

    payload: Any
    rows: int
    size: int


class FitSample:
    """The training payloads whose keys are least: up to `size` of them, and up to `max_bytes`.

    Keys are hashes, so this is a random sample of the distinct payloads, and yet it depends on
    the payloads alone: not on the order of the rows, nor on how a scan is divided between
    processes, each of which fills a sample of its own; `merge` makes them one. It can be pickled.
    If the payloads of the least keys are more than `max_bytes`, the sample ends before the first
    that is too much (and holds one at least). How many training rows have a payload is counted
    too, exactly, for those in the sample.

    Memory is bounded by twice `size` payloads or twice `max_bytes`, whichever is less, and the
    payloads of one row more.
    """

    def __init__(self, *, size: int = SIZE, max_bytes: int = MAX_BYTES) -> None:
        if size < 1 or max_bytes < 1:
            raise ValueError(f"a sample has room for something: {size} payloads, {max_bytes} bytes")
        self.size = size
        self.max_bytes = max_bytes
        self._held: dict[bytes, _Held] = {}
        self._bytes = 0
        self._ceiling: bytes | None = None
        """The least key that had no room: nor has any above it, seen before or after."""

    def __len__(self) -> int:
        self._trim()
        return len(self._held)

    @property
    def keys(self) -> list[bytes]:
        """The keys of the sample, ascending."""
        self._trim()
        return sorted(self._held)

    @property
    def rows(self) -> int:
        """Training rows whose payloads are in the sample."""
        self._trim()
        return sum(held.rows for held in self._held.values())

    def add(
        self,
        keys: Sequence[bytes | None],
        payloads: Sequence[Any],
        is_train: Sequence[bool] | np.ndarray,
    ) -> None:
        """Look at some rows: each one's payload key, its payload and whether it is for training.

        The payloads are as `PayloadColumns.payloads` gives them, None if missing. What is kept of
        them is copied, so the table they came from can go.
        """
        for key, payload, train in zip(keys, payloads, np.asarray(is_train).tolist(), strict=True):
            if not train or key is None or payload is None:
                continue
            if self._ceiling is not None and key >= self._ceiling:
                continue
            held = self._held.get(key)
            if held is not None:
                held.rows += 1
                continue
            self._hold(key, _Held(payload=_own(payload), rows=1, size=_size(payload)))

    def merge(self, other: FitSample) -> None:
        """Take in what another sample of the same size has seen, of other rows."""
        if (self.size, self.max_bytes) != (other.size, other.max_bytes):
            raise ValueError("samples of unlike size cannot be made one")
        if other._ceiling is not None:
            self._lower_ceiling(other._ceiling)
        for key, theirs in other._held.items():
            if self._ceiling is not None and key >= self._ceiling:
                continue
            held = self._held.get(key)
            if held is not None:
                held.rows += theirs.rows
            else:
                self._hold(key, _Held(payload=theirs.payload, rows=theirs.rows, size=theirs.size))

    def fit(
        self,
        spec: EncoderSpec,
        *,
        columns: PayloadColumns,
        folder: str,
        limits: Limits = DEFAULT_LIMITS,
    ) -> EncoderSpec:
        """The spec with the statistics of the sample; the spec itself if it needs none.

        Bad payloads do not count. SourceError if no payload is left; OSError for a fault of the
        medium.
        """
        if not spec.needs_fit:
            return spec
        names = ", ".join(map(repr, columns.columns))
        asked = f"the encoder {spec.type!r} of {names} takes statistics of the training split, but "
        if not len(self):
            raise SourceError(
                f"{asked}no training sample has a payload there; look at the split, or write the "
                "statistics into the encoder's `statistics`"
            )
        reasons: Counter[str] = Counter()

        def usable() -> Iterator[Any]:
            for payload, rows in self._opened(
                columns=columns, folder=folder, limits=limits, reasons=reasons
            ):
                for _ in range(rows):
                    yield payload

        try:
            return spec.fitted(usable())
        except ValueError as error:
            if reasons.total() < len(self):
                raise SourceError(f"{asked}they cannot be had: {error}") from error
            told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
            raise SourceError(
                f"{asked}none of the {len(self)} payloads that were looked at can be used: {told}"
            ) from error

    def _opened(
        self, *, columns: PayloadColumns, folder: str, limits: Limits, reasons: Counter[str]
    ) -> Iterator[tuple[Any, int]]:
        """The decoded payloads in the order of their keys, each with how often it counts."""

        def opened(held: _Held) -> Any:
            try:
                return open_payload(held.payload, columns=columns, folder=folder, limits=limits)
            except BadPayload as error:
                return error

        ordered = [self._held[key] for key in self.keys]
        weights = self._weights(ordered)
        files = any(depends_on_files(held.payload, columns=columns) for held in ordered)
        step = 4 * THREADS if files else 1
        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="fit") as pool:
            for start in range(0, len(ordered), step):
                some = ordered[start : start + step]
                found = pool.map(opened, some) if files else map(opened, some)
                for payload, weight in zip(found, weights[start : start + step], strict=True):
                    if isinstance(payload, BadPayload):
                        reasons[payload.reason] += 1
                    else:
                        yield payload, weight

    def _weights(self, ordered: Sequence[_Held]) -> list[int]:
        total, most = sum(held.rows for held in ordered), ROWS_A_PAYLOAD * self.size
        if total <= most:
            return [held.rows for held in ordered]
        return [max(1, (held.rows * most + total // 2) // total) for held in ordered]

    def _hold(self, key: bytes, held: _Held) -> None:
        self._held[key] = held
        self._bytes += held.size
        if len(self._held) > 2 * self.size or self._bytes > 2 * self.max_bytes:
            self._trim()

    def _trim(self) -> None:
        """Keep the least keys that there is room for."""
        if len(self._held) <= self.size and self._bytes <= self.max_bytes:
            return
        total = 0
        for place, key in enumerate(sorted(self._held)):
            total += self._held[key].size
            if place and (place >= self.size or total > self.max_bytes):
                self._lower_ceiling(key)
                return

    def _lower_ceiling(self, key: bytes) -> None:
        if self._ceiling is not None and self._ceiling <= key:
            return
        self._ceiling = key
        self._held = {mine: held for mine, held in self._held.items() if mine < key}
        self._bytes = sum(held.size for held in self._held.values())


def _own(payload: Any) -> Any:
    """The payload without the memory of the table that it is a part of."""
    match payload:
        case np.ndarray():
            return payload.copy()
        case tuple():
            return tuple(map(_own, payload))
    return payload


def _size(payload: Any) -> int:
    """Bytes that a payload takes, about; the same in every process."""
    match payload:
        case np.ndarray():
            return payload.nbytes + 100
        case bytes() | str():
            return len(payload) + 50
        case tuple() | list():
            return 50 + sum(map(_size, payload))
        case Cut():
            return 100 + _size(payload.whole)
    return 30
