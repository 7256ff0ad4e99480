"""What of a gate can be told before anything is fitted: limits on rows that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.compute as pc

from features.fingerprint import nearest_hint
from features.snapshot import Snapshot
from features.store import READERS, Store
from workflows.promotion.compare import as_text
from workflows.promotion.spec import PromotionSpec

MOST_VALUES = 8
"""Values of a slice column that are named."""
MOST_KEPT = 256
"""Values of a column that are kept to name some of them, and to find the nearest spelling."""


def limits_without_rows(
    store: Store, *, snapshot: Snapshot, spec: PromotionSpec
) -> Iterator[tuple[int, str]]:
    """The limits on slices with too few test rows for the gate to judge: it would refuse.

    Each with its place in `promotion.limits`, and the reason in words. Some columns of the sample
    shards are read, until each limit has its rows: of a table in which slices are spread, that is
    after few. What is kept are counts, and MOST_KEPT values a column.
    """
    wanted = {i: limit.slice for i, limit in enumerate(spec.limits) if limit.slice}
    columns = sorted({column for of in wanted.values() for column in of} & set(snapshot.slices))
    if not columns:
        return
    counts = dict.fromkeys(wanted, 0)
    values: dict[str, set[str]] = {column: set() for column in columns}

    def read(path: str) -> dict[str, np.ndarray]:
        table = store.read_table(path, columns=["split", *(f"slice.{name}" for name in columns)])
        table = table.filter(pc.equal(table["split"], "test"))
        return {name: as_text(table[f"slice.{name}"].to_pylist()) for name in columns}

    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(snapshot.samples), 2 * READERS):
            some = snapshot.samples[first : first + 2 * READERS]
            for texts in pool.map(read, [shard.path for shard in some]):
                for name in columns:
                    if len(values[name]) < MOST_KEPT:
                        values[name].update(np.unique(texts[name]).tolist())
                for i, of in wanted.items():
                    chosen = [texts[name] == value for name, value in of.items() if name in texts]
                    counts[i] += int(np.logical_and.reduce(chosen).sum()) if chosen else 0
            if all(count >= spec.min_slice_rows for count in counts.values()):
                return
    for i, of in wanted.items():
        if counts[i] < spec.min_slice_rows:
            yield i, _told(of, rows=counts[i], values=values, least=spec.min_slice_rows)


def _told(of: Mapping[str, str], *, rows: int, values: Mapping[str, set[str]], least: int) -> str:
    hints = []
    for name, value in of.items():
        there = sorted(values.get(name, ()))
        if value not in there:
            more = " …" if len(there) > MOST_VALUES else ""
            shown = ", ".join(there[:MOST_VALUES]) + more
            hints.append(f"; {nearest_hint(value, there)}{name} is one of {shown}")
    where = ", ".join(f"{name}: {value}" for name, value in of.items())
    what = f"{rows} test rows are" if rows else "no test row is"
    return (
        f"{what} of {where}, and the gate judges slices of {least} or more (min_slice_rows), so it "
        f"will refuse{''.join(hints)}"
    )
