"""Sample shards read, from the store or the table, and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from features.integrity import Marks, marks_of
from features.plan import Plan
from features.sample_rows import SampleColumns
from features.samples import SampleShard, make_shard
from features.scan import read_rows
from features.scan_tasks import LEAST_UNITS, Run
from features.sources import RowReader, Source, SourceError
from features.store import READERS, Store

MOST_AHEAD = 4 * READERS
"""Sample shards that are read ahead, or wait to be written."""
SHARDS_A_TASK = 64
"""Sample shards that one task writes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class WriteTask:
    """Some sample shards to read from the table and write."""

    store: Store
    source: Source
    columns: SampleColumns
    shards: tuple[SampleShard, ...]


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
        dataset = self._columns.dataset
        names = ["sample_id", "split", *(f"key.{m}" for m in modalities)]
        names += ["group"] if dataset.split.keeps_group(id=dataset.id) else []
        names += [f"target.{name}" for name in self._columns.targets]

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


def write_samples(plan: Plan, *, store: Store, run: Run | None = None) -> None:
    """Write the sample shards that are not in the store, and remember the scan.

    Reads the rows of those shards again; `run` does it in pieces beside one another. Raises
    SourceError if the table is no longer the one that was planned.
    """
    listed = store.storage.list("samples")
    absent = [shard for shard in plan.samples if f"{shard.fingerprint}.parquet" not in listed]
    if absent:
        if run is None or len(absent) < LEAST_UNITS * SHARDS_A_TASK:
            run, step = map, len(absent)
        else:
            step = SHARDS_A_TASK
        tasks = [
            WriteTask(store=store, source=plan.source, columns=plan.columns, shards=some)
            for some in _in_tasks(absent, step=step, seekable=plan.source.format == "parquet")
        ]
        for _ in run(write_shards, tasks):
            pass
    if plan.record is not None:
        store.write_scan(plan.name, plan.record)


def _in_tasks(
    shards: Sequence[SampleShard], *, step: int, seekable: bool
) -> Iterator[tuple[SampleShard, ...]]:
    """Shards in pieces of work: of `step`, or where a file ends if it is read from its start."""
    some: list[SampleShard] = []
    for shard in shards:
        same_file = bool(some) and shard.ranges[0].file == some[-1].ranges[0].file
        if len(some) >= step and (seekable or not same_file):
            yield tuple(some)
            some = []
        some.append(shard)
    if some:
        yield tuple(some)
