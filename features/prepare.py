"""Rows of the table, made ready for an encoder by threads: read, fetched, decoded, prepared.

A window is some consecutive rows that are prepared and then encoded together. It ends after a
fixed number of rows, or when what is prepared grows too large; both depend on the rows alone,
so which rows share a batch does not depend on the machine.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import islice
from typing import Any

from features.columns import PayloadColumns
from features.decoders.base import DEFAULT_LIMITS, BadPayload, Limits
from features.encoders import Encoder, Kind
from features.encoding import Bad, Prepared
from features.payload_keys import depends_on_files, payload_key
from features.payloads import open_payload
from features.sources import SourceError

WINDOW_ROWS: dict[Kind, int] = {
    "text": 4096,
    "image": 256,
    "audio": 128,
    "video": 16,
    "series": 4096,
    "table": 4096,
    "vector": 4096,
}
"""Rows that are prepared and encoded together at most."""
FIRST_ROWS: dict[Kind, int] = {"image": 32, "audio": 32, "video": 4}
"""Rows of a shard's first window, for which the encoder waits; each is twice that before it."""
READ_ROWS: dict[Kind, int] = {"image": 64, "audio": 64, "video": 4, "series": 256}
"""Rows that are read from the table at once, where an inline payload may be large."""
WINDOW_BYTES = 256 * 2**20
"""Size of the prepared payloads after which a window ends."""
THREADS = max(2, min(8, os.cpu_count() or 2))
AHEAD_ROWS = 4 * THREADS
"""Rows beyond a window that are prepared before the encoder takes from the one before it."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How payloads become what an encoder takes."""

    columns: PayloadColumns
    encoder: Encoder
    folder: str
    """Folder that relative paths start from."""
    key_by: str
    """How a payload behind a URI is known; see `payload_key`."""
    limits: Limits = DEFAULT_LIMITS


@dataclass(kw_only=True)
class Window:
    """Rows that are encoded together."""

    prepared: list[Prepared] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """What the encoder counts of its payloads, such as those that it truncates."""
    bytes: int = 0
    seconds: float = 0.0
    """Time of the threads that decoded and prepared it, all together."""

    @property
    def rows(self) -> int:
        return len(self.prepared) + len(self.bad)


class Pace:
    """How far preparing one by one may be ahead of encoding: a window and a few rows.

    Threads that prepare whole windows as fast as they can fight the encoder for the CPUs, and
    then leave them to it alone, of which it cannot use all. Held to the encoder's own pace, they
    fill the gaps that it leaves.
    """

    def __init__(self, kind: Kind) -> None:
        self._free = WINDOW_ROWS[kind] + AHEAD_ROWS
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> None:
        """Wait for room for one more row."""
        with self._changed:
            self._changed.wait_for(lambda: self._free > 0 or self._closed)
            self._free -= 1

    def give(self, rows: int) -> None:
        """So many rows have gone to the encoder, or are not for it."""
        with self._changed:
            self._free += rows
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody will encode any more: let all go on that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def prepared_windows(
    rows: Sequence[int],
    *,
    read: Callable[[Sequence[int]], list[Any]],
    keys: Sequence[bytes | None],
    opening: Opening,
    pool: ThreadPoolExecutor,
    pace: Pace | None = None,
) -> Iterator[Window]:
    """The rows of a shard in windows. `read` gives the payloads of some rows, in their order.

    Holds one window, and the payloads that the threads of `pool` are at work on. With a `pace`,
    whoever takes a window gives its rows back as they are encoded.
    SourceError if a payload is no longer the one whose key is given.
    """
    kind = opening.columns.kind
    most = FIRST_ROWS.get(kind, WINDOW_ROWS[kind])
    window = Window()
    items = _prepared(rows, read=read, keys=keys, opening=opening, pool=pool, pace=pace)
    for item, seconds in items:
        window.seconds += seconds
        if isinstance(item, Bad):
            window.bad.append(item)
        else:
            window.prepared.append(item)
            window.bytes += bytes_of(item.payload)
            _count(item, encoder=opening.encoder, into=window.counts)
        if window.rows >= most or window.bytes >= WINDOW_BYTES:
            yield window
            window = Window()
            most = min(2 * most, WINDOW_ROWS[kind])
    if window.rows:
        yield window


def _prepared(
    rows: Sequence[int],
    *,
    read: Callable[[Sequence[int]], list[Any]],
    keys: Sequence[bytes | None],
    opening: Opening,
    pool: ThreadPoolExecutor,
    pace: Pace | None,
) -> Iterator[tuple[Prepared | Bad, float]]:
    """The rows in their order, one by one, and the seconds that each took a thread.

    A bounded number is worked on ahead.
    """
    kind = opening.columns.kind
    step = READ_ROWS.get(kind, WINDOW_ROWS[kind])
    parts = (rows[start : start + step] for start in range(0, len(rows), step))
    values = ((row, value) for part in parts for row, value in zip(part, read(part), strict=True))
    if hasattr(opening.encoder, "prepare_all"):
        while chunk := list(islice(values, WINDOW_ROWS[kind])):
            begun = time.perf_counter()
            items = _prepare_all(chunk, keys=keys, opening=opening, pool=pool)
            share = (time.perf_counter() - begun) / len(items)
            yield from ((item, share) for item in items)
        return
    ahead = []
    for row, value in values:
        if pace is not None:
            pace.take()
        ahead.append(pool.submit(_prepare, row, value, key=keys[row], opening=opening))
        if len(ahead) > 2 * THREADS:
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()


def _prepare(
    row: int, value: Any, *, key: bytes | None, opening: Opening
) -> tuple[Prepared | Bad, float]:
    begun = time.perf_counter()
    item = _prepared_row(row, value, key=key, opening=opening)
    return item, time.perf_counter() - begun


def _prepared_row(row: int, value: Any, *, key: bytes | None, opening: Opening) -> Prepared | Bad:
    payload = _open(row, value, key=key, opening=opening)
    if isinstance(payload, Bad):
        return payload
    try:
        prepared = opening.encoder.prepare(payload)
    except ValueError as error:
        return _refused(row, error)
    except (OSError, MemoryError, SourceError):
        raise  # of the machine, and no fault of the row
    except Exception as error:  # a fault of the encoder's code, which this row has brought out
        return Bad(row=row, stage="prepare", reason=f"{type(error).__name__}: {error}", fault=True)
    return Prepared(row=row, payload=prepared, size=opening.encoder.size(prepared))


def _prepare_all(
    chunk: Sequence[tuple[int, Any]],
    *,
    keys: Sequence[bytes | None],
    opening: Opening,
    pool: ThreadPoolExecutor,
) -> list[Prepared | Bad]:
    """Rows prepared by one call of the encoder, which uses threads of its own if it can.

    Those in files are fetched by the threads of `pool`.
    """

    def open_row(item: tuple[int, Any]) -> tuple[int, Any]:
        row, value = item
        return row, _open(row, value, key=keys[row], opening=opening)

    in_files = any(depends_on_files(value, columns=opening.columns) for _, value in chunk)
    opened = list(pool.map(open_row, chunk) if in_files else map(open_row, chunk))
    good = [(row, payload) for row, payload in opened if not isinstance(payload, Bad)]
    results: list[Any] = opening.encoder.prepare_all([p for _, p in good]) if good else []  # type: ignore[attr-defined]
    found: dict[int, Prepared | Bad] = {r: p for r, p in opened if isinstance(p, Bad)}
    for (row, _), prepared in zip(good, results, strict=True):
        if isinstance(prepared, ValueError):
            found[row] = _refused(row, prepared)
        else:
            size = opening.encoder.size(prepared)
            found[row] = Prepared(row=row, payload=prepared, size=size)
    return [found[row] for row, _ in chunk]


def _refused(row: int, error: ValueError) -> Bad:
    """A row that the encoder refuses; of a video, what is damaged is found only now."""
    stage = error.stage if isinstance(error, BadPayload) else "prepare"
    return Bad(row=row, stage=stage, reason=str(error))


def _open(row: int, value: Any, *, key: bytes | None, opening: Opening) -> Any:
    """The decoded payload of a row, or why there is none."""
    columns, folder = opening.columns, opening.folder
    if (
        value is None
        or payload_key(value, columns=columns, folder=folder, by=opening.key_by) != key
    ):
        raise SourceError(
            f"the payload {_shown(value)} is not the one that the job was planned for; leave "
            "the table and its files alone while they are read, and run again"
        )
    try:
        return open_payload(
            value,
            columns=columns,
            folder=folder,
            limits=opening.limits,
            pillow=getattr(opening.encoder, "takes_pillow", False),
        )
    except BadPayload as error:
        return Bad(row=row, stage=error.stage, reason=error.reason)


def _count(item: Prepared, *, encoder: Encoder, into: dict[str, int]) -> None:
    counts = getattr(encoder, "counts", None)
    if counts is not None:
        for name, number in counts(item.payload).items():
            into[name] = into.get(name, 0) + int(number)


def bytes_of(prepared: Any) -> int:
    """About how much memory a prepared payload takes: its `nbytes`, or that of all its parts."""
    match prepared:
        case str() | bytes():
            return len(prepared)
        case dict():
            return sum(bytes_of(value) for value in prepared.values())
        case list() | tuple() if prepared and not isinstance(prepared[0], int | float):
            return sum(bytes_of(value) for value in prepared)
        case list() | tuple():
            return 8 * len(prepared)
    size = getattr(prepared, "nbytes", None)
    if size is None and is_dataclass(prepared):
        size = sum(bytes_of(getattr(prepared, part.name)) for part in fields(prepared))
    return 64 if size is None else int(size)


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bytes) else f"of {len(value)} bytes"
    return text if len(text) <= 80 else f"{text[:77]}..."
