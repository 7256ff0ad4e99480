"""Whether a table can be trusted: ids that are unique, and nothing on two sides of a split.

A 64-bit hash of each id, payload key and group is brought together with its equals on a local
disk: 8 bytes for an id and 9 for each of the others, and memory for none but a part at a time.
Ids that seem repeated, and samples of what is on two sides, are then looked up in a second pass,
which a table without either does not cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa

from features.sample_rows import key_hashes
from features.samples import SampleShard
from features.sources import SourceError
from features.spec import SPLITS
from features.spill import Spill, first_of_runs

IDS = np.dtype([("hash", "<u8")])
SIDES = np.dtype([("hash", "<u8"), ("split", "u1")])
MOST_SUSPECTS = 1000
"""Repeated ids that are looked up, at most."""
SHOWN = 5

Marks = Mapping[str, np.ndarray]
"""Hashes of some rows of samples, by column: `sample_id`, `group` and each `key.<modality>`."""
Rows = Callable[[SampleShard, list[str]], pa.Table]
"""Reads some columns of a shard's rows."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often a payload (or a group) is the same as another."""

    values: int
    """Rows that have one."""
    distinct: int
    divided: Mapping[str, int] = field(default_factory=dict)
    """Distinct ones that are on two sides, by the names of the splits: `train/test`."""
    examples: tuple[str, ...] = ()
    """Ids of samples whose payload is on two sides, a few of them."""

    @property
    def repeated(self) -> int:
        """Rows whose payload another row before has too."""
        return self.values - self.distinct


def marks_of(rows: pa.Table) -> Marks:
    """The marks of some rows of samples; what is missing has none."""
    marks = {"sample_id": _text_hashes(rows["sample_id"]).astype(IDS)}
    codes = _codes(rows["split"])
    for name in rows.column_names:
        if name != "group" and not name.startswith("key."):
            continue
        present = rows[name].is_valid().to_numpy()
        hashes = _hashes(rows[name])
        records = np.empty(int(present.sum()), SIDES)
        records["hash"], records["split"] = hashes[present], codes[present]
        marks[name] = records
    return marks


class Integrity:
    """Looks at all rows of a table, then says what is wrong; what it keeps goes with the stack."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._ids = stack.enter_context(Spill(IDS))
        self._sides: dict[str, Spill] = {}

    def add(self, marks: Marks) -> None:
        """Look at some rows of samples, by their marks."""
        for name, records in marks.items():
            if name == "sample_id":
                self._ids.add(records)
                continue
            if name not in self._sides:
                self._sides[name] = self._stack.enter_context(Spill(SIDES))
            self._sides[name].add(records)

    def refuse_repeated_ids(
        self, *, column: str, shards: Iterable[SampleShard], rows: Rows
    ) -> None:
        """Raise SourceError, with ids and rows, if an id stands in two rows."""
        suspects: list[np.ndarray] = []
        for records in self._ids.groups():
            hashes = records["hash"]
            suspects.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        wanted = np.concatenate(suspects)[:MOST_SUSPECTS]
        if not len(wanted):
            return
        found: dict[str, list[int]] = {}
        first = 0
        for shard in shards:
            ids = rows(shard, ["sample_id"])["sample_id"]
            for row in np.flatnonzero(np.isin(_text_hashes(ids), wanted)).tolist():
                found.setdefault(ids[row].as_py(), []).append(first + row)
            first += shard.rows
        repeated = {value: at for value, at in found.items() if len(at) > 1}
        if not repeated:
            return
        shown = [
            f"{value!r} in rows {', '.join(map(str, at[:SHOWN]))}"
            + (f" and {len(at) - SHOWN} more" if len(at) > SHOWN else "")
            for value, at in repeated.items()
        ]
        more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        raise SourceError(
            f"column {column!r}: ids must be unique, but {'; '.join(shown[:SHOWN])}{more} "
            "(rows are counted from 0)"
        )

    def repeats(self, *, shards: Iterable[SampleShard], rows: Rows) -> dict[str, Repeats]:
        """What is repeated, by modality, and by the group under the name of an empty modality."""
        found: dict[str, Repeats] = {}
        divided: dict[str, np.ndarray] = {}
        for name, spill in self._sides.items():
            counted, hashes = _repeats(spill)
            found[_modality(name)] = counted
            if len(hashes):
                divided[name] = hashes
        for name, ids in _examples(divided, shards=shards, rows=rows).items():
            modality = _modality(name)
            found[modality] = replace(found[modality], examples=tuple(ids))
        return found


def _repeats(spill: Spill) -> tuple[Repeats, np.ndarray]:
    """Counts, and hashes of a few that are on two sides."""
    values = distinct = 0
    divided = dict.fromkeys(combinations(range(len(SPLITS)), 2), 0)
    examples = [np.empty(0, np.uint64)]
    for records in spill.groups():
        firsts = first_of_runs(records)
        values, distinct = values + len(records), distinct + len(firsts)
        if not len(firsts):
            continue
        sides = np.bitwise_or.reduceat(records["split"], firsts)
        for one, other in divided:
            both = np.uint8(1 << one | 1 << other)
            divided[one, other] += int((sides & both == both).sum())
        on_two = np.isin(sides & 7, [0, 1, 2, 4], invert=True)
        examples.append(records["hash"][firsts[on_two]][:SHOWN])
    named = {f"{SPLITS[a]}/{SPLITS[b]}": n for (a, b), n in divided.items() if n}
    counted = Repeats(values=values, distinct=distinct, divided=named)
    return counted, np.concatenate(examples)[:SHOWN]


def _examples(
    divided: Mapping[str, np.ndarray], *, shards: Iterable[SampleShard], rows: Rows
) -> dict[str, list[str]]:
    """Ids of samples with these hashes, a few for each column; reads on until they are found."""
    found: dict[str, list[str]] = {name: [] for name in divided}
    waiting = dict(divided)
    for shard in shards:
        if not waiting:
            break
        table = rows(shard, ["sample_id", *waiting])
        for name, wanted in list(waiting.items()):
            column = table[name]
            hit = np.isin(_hashes(column), wanted) & column.is_valid().to_numpy()
            found[name] += table["sample_id"].filter(pa.array(hit)).to_pylist()
            if len(found[name]) >= SHOWN:
                found[name] = found[name][:SHOWN]
                del waiting[name]
    return found


def _modality(column: str) -> str:
    """The modality whose keys a column holds; an empty name for the group."""
    return "" if column == "group" else column.removeprefix("key.")


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    """A 64-bit hash of each payload key or group, uint64 `[N]`; of no meaning for what is null."""
    if pa.types.is_fixed_size_binary(column.type):
        return key_hashes(column)
    return _text_hashes(column)


def _codes(splits: pa.ChunkedArray) -> np.ndarray:
    """One bit a split, uint8 `[N]`; 0 for a sample that is not used."""
    names = splits.to_numpy(zero_copy_only=False)
    codes = np.zeros(len(names), np.uint8)
    for number, name in enumerate(SPLITS):
        codes[names == name] = 1 << number
    return codes


def _text_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """A 64-bit hash of each text, uint64 `[N]`; of no meaning where there is none."""
    texts = column.fill_null("").to_numpy(zero_copy_only=False)
    return pd.util.hash_array(texts.astype(object), categorize=False)
