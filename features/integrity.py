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
LABELS = np.dtype([("label", object), ("split", "u1")])
MOST_SUSPECTS = 1000
"""Repeated ids, and payloads on two given sides, that are looked up at most. Those on two sides
are more than are shown, so that a few of them are soon found."""
MOST_CLASSES = 100_000
"""Classes of which it is looked at whether they have training rows; of more, it is not."""
SHOWN = 5

Marks = Mapping[str, np.ndarray]
"""Hashes of some rows of samples, by column: `sample_id`, `group` and each `key.<modality>`; of
`target.<column>` the labels that there are, each once a split."""
Rows = Callable[[SampleShard, list[str]], pa.Table]
"""Reads some columns of a shard's rows."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """How often a payload (or a group) is the same as another."""

    values: int
    """Rows that have one."""
    distinct: int
    repeated: int
    """Rows whose own stands in another row too, as the statistics of a snapshot count them."""
    divided: Mapping[str, int] = field(default_factory=dict)
    """Distinct ones that are on two sides, by the names of the splits: `train/test`."""
    examples: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """By the same names, a few of them: ids of two samples that share one, in the same order."""


def marks_of(rows: pa.Table) -> Marks:
    """The marks of some rows of samples; what is missing has none."""
    marks = {"sample_id": _text_hashes(rows["sample_id"]).astype(IDS)}
    codes = _codes(rows["split"])
    for name in rows.column_names:
        if name.startswith("target."):
            marks[name] = _labels(rows[name], codes=codes)
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
        self._classes: dict[object, int] = {}
        """Per label: the splits that it is in, a bit each."""

    def add(self, marks: Marks) -> None:
        """Look at some rows of samples, by their marks."""
        for name, records in marks.items():
            if name == "sample_id":
                self._ids.add(records)
                continue
            if name.startswith("target."):
                self._add_labels(records)
                continue
            if name not in self._sides:
                self._sides[name] = self._stack.enter_context(Spill(SIDES))
            self._sides[name].add(records)

    def _add_labels(self, records: np.ndarray) -> None:
        if len(self._classes) > MOST_CLASSES:
            return
        for label, split in records.tolist():
            self._classes[label] = self._classes.get(label, 0) | split

    def untrained(self) -> tuple[str, ...]:
        """Classes that some row is labelled with, and no row of the training split."""
        if len(self._classes) > MOST_CLASSES:
            return ()
        train = 1 << SPLITS.index("train")
        lacking = [label for label, splits in self._classes.items() if not splits & train]
        return tuple(map(str, sorted(lacking, key=lambda label: (str(type(label)), label))))

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
        wanted: dict[str, dict[str, np.ndarray]] = {}
        for name, spill in self._sides.items():
            found[_modality(name)], divided = _repeats(spill)
            if divided:
                wanted[name] = divided
        for name, pairs in _examples(wanted, shards=shards, rows=rows).items():
            modality = _modality(name)
            found[modality] = replace(found[modality], examples=pairs)
        return found


def _repeats(spill: Spill) -> tuple[Repeats, dict[str, np.ndarray]]:
    """Counts, and hashes of some that are on two sides, by the names of the splits."""
    values = distinct = repeated = 0
    pairs = {
        f"{SPLITS[one]}/{SPLITS[other]}": np.uint8(1 << one | 1 << other)
        for one, other in combinations(range(len(SPLITS)), 2)
    }
    divided = dict.fromkeys(pairs, 0)
    hashes = dict.fromkeys(pairs, np.empty(0, np.uint64))
    for records in spill.groups():
        firsts = first_of_runs(records)
        values, distinct = values + len(records), distinct + len(firsts)
        if not len(firsts):
            continue
        lengths = np.diff(np.append(firsts, len(records)))
        repeated += int(lengths[lengths > 1].sum())
        sides = np.bitwise_or.reduceat(records["split"], firsts)
        for name, both in pairs.items():
            shared = records["hash"][firsts[sides & both == both]]
            divided[name] += len(shared)
            hashes[name] = np.append(hashes[name], shared)[:MOST_SUSPECTS]
    counted = Repeats(
        values=values,
        distinct=distinct,
        repeated=repeated,
        divided={name: count for name, count in divided.items() if count},
    )
    return counted, {name: hashes[name] for name in counted.divided}


def _examples(
    divided: Mapping[str, Mapping[str, np.ndarray]], *, shards: Iterable[SampleShard], rows: Rows
) -> dict[str, dict[str, tuple[tuple[str, str], ...]]]:
    """Per column and two splits: pairs of samples that share one of these hashes, a few of them.

    Reads on until they are found.
    """
    searches = {
        (name, sides): _PairSearch(sides, hashes=hashes)
        for name, by_sides in divided.items()
        for sides, hashes in by_sides.items()
    }
    for shard in shards:
        waiting = list(dict.fromkeys(n for (n, _), one in searches.items() if not one.done))
        if not waiting:
            break
        table = rows(shard, ["sample_id", "split", *waiting])
        for (name, _), search in searches.items():
            if not search.done:
                search.add(table, name=name)
    found: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {}
    for (name, sides), search in searches.items():
        found.setdefault(name, {})[sides] = tuple(search.pairs[:SHOWN])
    return found


class _PairSearch:
    """Two samples on given sides that share one of some hashes."""

    def __init__(self, sides: str, *, hashes: np.ndarray) -> None:
        self._sides = sides.split("/")
        self._hashes = hashes
        self._enough = min(SHOWN, len(hashes))
        self._waiting: dict[int, dict[str, str]] = {}
        """Per hash: the first sample on each side."""
        self.pairs: list[tuple[str, str]] = []

    @property
    def done(self) -> bool:
        return len(self.pairs) >= self._enough

    def add(self, table: pa.Table, *, name: str) -> None:
        """Look at some rows, in the column of that name."""
        column = table[name]
        hashes = _hashes(column)
        hit = np.isin(hashes, self._hashes) & column.is_valid().to_numpy()
        some = table.select(["sample_id", "split"]).filter(pa.array(hit))
        ids, splits = some["sample_id"].to_pylist(), some["split"].to_pylist()
        for shared, sample, split in zip(hashes[hit].tolist(), ids, splits, strict=True):
            firsts = self._waiting.setdefault(shared, {})
            if split in self._sides and split not in firsts:
                firsts[split] = sample
                if len(firsts) == len(self._sides):
                    self.pairs.append((firsts[self._sides[0]], firsts[self._sides[1]]))


def _modality(column: str) -> str:
    """The modality whose keys a column holds; an empty name for the group."""
    return "" if column == "group" else column.removeprefix("key.")


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    """A 64-bit hash of each payload key or group, uint64 `[N]`; of no meaning for what is null."""
    if pa.types.is_fixed_size_binary(column.type):
        return key_hashes(column)
    return _text_hashes(column)


def _labels(column: pa.ChunkedArray, *, codes: np.ndarray) -> np.ndarray:
    """The labels that there are, each once a split, `[L]`."""
    pairs = pa.table({"label": column, "split": codes}).filter(column.is_valid())
    found = pairs.group_by(["label", "split"]).aggregate([])
    records = np.empty(found.num_rows, LABELS)
    records["label"], records["split"] = found["label"].to_pylist(), found["split"].to_numpy()
    return records


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
