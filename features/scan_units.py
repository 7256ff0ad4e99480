"""Pieces of a scan that are done beside one another, and sample shards read and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from features.integrity import Marks, marks_of
from features.sample_rows import SampleColumns
from features.samples import SampleShard, make_shard
from features.scan import Scan, ScannedShard, ScannedUnit, Scanner, read_rows
from features.sources import RowReader, Source, SourceError
from features.store import READERS, Store

MOST_AHEAD = 4 * READERS
"""Sample shards that are read ahead, or wait to be written."""
LEAST_UNITS = 4
"""Units from which it is worth the while to start processes for them."""
SHARDS_A_TASK = 64
"""Sample shards that one task writes."""

T = TypeVar("T")
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function for each of some arguments, and gives the results in their order: `map`, or
the same on the machines of a cluster."""


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """Some files to scan by themselves."""

    source: Source
    columns: SampleColumns


@dataclass(frozen=True, kw_only=True)
class WriteTask:
    """Some sample shards to read from the table and write."""

    store: Store
    source: Source
    columns: SampleColumns
    shards: tuple[SampleShard, ...]


def scan_unit(task: ScanTask) -> ScannedUnit:
    """Scan some files as if they were the whole table."""
    scanner = Scanner(task.source, columns=task.columns)
    marks = [found for _, found in scanner.shards() if found is not None]
    return ScannedUnit(files=task.source.numbers, scan=scanner.result(), marks=tuple(marks))


def scan_table(
    source: Source, *, columns: SampleColumns, before: Scan | None, run: Run | None
) -> tuple[Scanner, Iterator[tuple[ScannedShard, Marks | None]]]:
    """A scan, and its shards as they come; several units of new files are scanned by `run`."""
    scanner = Scanner(source, columns=columns, before=before)
    units = list(_units(source, numbers=scanner.unknown_files()))
    if run is None or len(units) < LEAST_UNITS:
        return scanner, scanner.shards()
    tasks = [ScanTask(source=source.subset(unit), columns=columns) for unit in units]
    return scanner, scanner.shards(run(scan_unit, tasks), firsts={unit.start for unit in units})


def _units(source: Source, *, numbers: Sequence[int]) -> Iterator[range]:
    """Pieces of work among some files."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            run = range(numbers[start], numbers[place - 1] + 1)
            yield from source.subset(run).units()
            start = place


class SampleReader:
    """Rows of sample shards, from the store or, if they are not there yet, from the table."""

    def __init__(self, store: Store, *, source: Source, columns: SampleColumns) -> None:
        self._store = store
        self._columns = columns
        self._reader = RowReader(source, columns=columns.names, text=columns.text_names)

    def read(self, shard: SampleShard, columns: Sequence[str]) -> pa.Table:
        """Some columns of a shard's rows. SourceError if the table has changed meanwhile."""
        try:
            return self._store.read_table(shard.path, columns=columns)
        except FileNotFoundError:
            return self._anew(shard).select(columns)

    def marks(self, shards: Sequence[SampleShard]) -> Iterator[Marks]:
        """The marks of each shard, several read ahead."""
        modalities = list(self._columns.payloads)
        split = self._columns.dataset.split
        names = ["sample_id", "split", *(f"key.{m}" for m in modalities)]
        names += ["group"] if split.column is not None and split.group is not None else []
        target = self._columns.target
        names += [] if target is None else [f"target.{target}"]

        def stored(shard: SampleShard) -> Marks | None:
            try:
                return marks_of(self._store.read_table(shard.path, columns=names))
            except FileNotFoundError:
                return None

        for shard, found in zip(shards, read_ahead(shards, read=stored), strict=True):
            yield marks_of(self._anew(shard)) if found is None else found

    def _anew(self, shard: SampleShard) -> pa.Table:
        return read_shard(shard, reader=self._reader, columns=self._columns)


def read_ahead(shards: Sequence[SampleShard], *, read: Callable[[SampleShard], T]) -> Iterator[T]:
    """What is read of each shard, in their order; by threads, some shards ahead."""
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        for start in range(0, len(shards), MOST_AHEAD):
            yield from pool.map(read, shards[start : start + MOST_AHEAD])


def read_shard(shard: SampleShard, *, reader: RowReader, columns: SampleColumns) -> pa.Table:
    """A shard's rows out of the table; SourceError if they are no longer those of the shard."""
    rows = read_rows(shard.ranges, reader=reader, columns=columns)
    made, rows = make_shard([rows], ranges=shard.ranges)
    if made.fingerprint != shard.fingerprint:
        raise SourceError(
            "the table changed while it was read; leave it and its files alone, and run again"
        )
    return rows


def write_shards(task: WriteTask) -> None:
    """Read some sample shards out of the table, and write them."""
    reader = RowReader(task.source, columns=task.columns.names, text=task.columns.text_names)
    waiting: deque[Future[bool]] = deque()
    with ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="samples") as pool:
        for shard in task.shards:
            rows = read_shard(shard, reader=reader, columns=task.columns)
            waiting.append(pool.submit(task.store.write_samples, shard, rows=rows))
            while len(waiting) > MOST_AHEAD:
                waiting.popleft().result()
        for written in waiting:
            written.result()
