"""Pieces of a scan that are done beside one another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from features.integrity import Marks
from features.sample_rows import SampleColumns
from features.scan import Scan, ScannedShard, ScannedUnit, Scanner
from features.sources import Source

LEAST_UNITS = 4
"""Units from which it is worth the while to start processes for them."""

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Calls a function for each of some arguments, and gives the results in their order: `map`, or
the same on the machines of a cluster."""


@dataclass(frozen=True, kw_only=True)
class ScanTask:
    """Some files to scan by themselves."""

    source: Source
    columns: SampleColumns


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
