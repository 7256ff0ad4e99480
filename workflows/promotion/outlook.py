"""What of a gate can be told before anything is fitted: limits on rows that are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow.compute as pc

from features.fingerprint import nearest_hint
from features.snapshot import Snapshot
from features.store import Store
from workflows.promotion.compare import as_text
from workflows.promotion.spec import PromotionSpec

MOST_VALUES = 8
"""Values of a slice column that are named."""


def limits_without_rows(
    store: Store, *, snapshot: Snapshot, spec: PromotionSpec
) -> Iterator[tuple[int, str]]:
    """The limits on slices with too few test rows for the gate to judge: it would refuse.

    Each with its place in `promotion.limits`, and the reason in words. Two columns are read, sample
    shard by sample shard; what is kept are counts by value.
    """
    wanted = [(i, limit.slice) for i, limit in enumerate(spec.limits) if limit.slice]
    columns = sorted({column for _, of in wanted for column in of} & set(snapshot.slices))
    if not columns:
        return
    counts = dict.fromkeys([i for i, _ in wanted], 0)
    values: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for shard in snapshot.samples:
        table = store.read_table(
            shard.path, columns=["split", *(f"slice.{column}" for column in columns)]
        )
        table = table.filter(pc.equal(table["split"], "test"))
        texts = {column: as_text(table[f"slice.{column}"].to_pylist()) for column in columns}
        for column in columns:
            values[column].update(texts[column].tolist())
        for i, of in wanted:
            chosen = [texts[column] == value for column, value in of.items() if column in texts]
            counts[i] += int(np.logical_and.reduce(chosen).sum()) if chosen else 0
    for i, of in wanted:
        if counts[i] >= spec.min_slice_rows:
            continue
        where = ", ".join(f"{column}: {value}" for column, value in of.items())
        hints = []
        for column, value in of.items():
            there = sorted(values.get(column, ()))
            if value not in there:
                more = " …" if len(there) > MOST_VALUES else ""
                shown = ", ".join(there[:MOST_VALUES]) + more
                hints.append(f"; {nearest_hint(value, there)}{column} is one of {shown}")
        what = f"{counts[i]} test rows are" if counts[i] else "no test row is"
        yield (
            i,
            (
                f"{what} of {where}, and the gate judges slices of {spec.min_slice_rows} or more "
                f"(min_slice_rows), so it will refuse{''.join(hints)}"
            ),
        )
