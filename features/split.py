"""Which split a sample is in: by a column that says so, or by the hash of its group's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import as_text
from features.fingerprint import DIGEST_BYTES, nearest_hint
from features.sources import Source, SourceError
from features.spec import SPLITS, DatasetSpec, SplitSpec

MOST_GROUPS = 2**22
"""Groups that can be divided by strata, since all are held for that: 200 bytes each, or so."""


@dataclass(frozen=True, kw_only=True)
class Strata:
    """How groups are divided so that every stratum has its share in every split."""

    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Per stratum: the place of a group below which it is in the test split, and the one below
    which it is in the validation split."""
    mixed: Mapping[str, str] = field(default_factory=dict)
    """The stratum of the groups whose rows are of several: the first by the alphabet."""
    digest: str = ""
    """The hash of both, made once, since there may be millions of them."""


def split_of(group: str, *, split: SplitSpec) -> str:
    """The split of a group: where the hash of its name falls in 0..1."""
    return _side(_place(group), test=split.test, validation=split.test + split.validation)


def splits_of(table: pa.Table, *, dataset: DatasetSpec, strata: Strata | None = None) -> pa.Array:
    """The split of each row, null for those that are not used. SourceError for an unknown one."""
    spec = dataset.split
    if spec.column is not None:
        return _named_splits(table, column=spec.column)
    assert spec.group is not None
    groups = as_text(table[spec.group], name=spec.group).to_pylist()
    if strata is None:
        found = [None if g is None else split_of(g, split=spec) for g in groups]
        return pa.array(found, pa.string())
    own = _stratum_column(table, spec=spec)
    return pa.array(
        [
            None
            if group is None
            else _in_stratum(group, stratum=strata.mixed.get(group, stratum), strata=strata)
            for group, stratum in zip(groups, own, strict=True)
        ],
        pa.string(),
    )


def find_strata(source: Source, *, spec: SplitSpec) -> Strata:
    """The strata of the groups of a table that is divided by some.

    Costs a pass over two columns, and memory for all groups while it runs; SourceError if there
    are more than MOST_GROUPS, of which hashes alone give each stratum its share well enough.
    """
    if spec.stratify is None or spec.group is None:
        raise ValueError("the split names no `group`, or no `stratify`")
    names = [spec.group, spec.stratify]
    pairs: dict[str, str] = {}
    mixed: set[str] = set()
    for chunk in source.scan(columns=names, text=names):
        groups = as_text(chunk.table[spec.group], name=spec.group).to_pylist()
        for group, stratum in zip(groups, _stratum_column(chunk.table, spec=spec), strict=True):
            if group is None:
                continue
            known = pairs.setdefault(group, stratum)
            if known != stratum:
                mixed.add(group)
                pairs[group] = min(known, stratum)
        if len(pairs) > MOST_GROUPS:
            raise SourceError(
                f"column {spec.group!r} has more than {MOST_GROUPS:,} groups, too many to be "
                "divided by `stratify`; leave it out: of so many, the hash alone gives each "
                "stratum its share"
            )
    by_stratum: dict[str, list[float]] = {}
    for group, stratum in pairs.items():
        by_stratum.setdefault(stratum, []).append(_place(group))
    limits = {s: _limits(np.sort(found), spec=spec) for s, found in by_stratum.items()}
    found = {group: pairs[group] for group in sorted(mixed)}
    text = json.dumps([sorted(limits.items()), list(found.items())])
    digest = hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
    return Strata(limits=limits, mixed=found, digest=digest)


def _limits(found: np.ndarray, *, spec: SplitSpec) -> tuple[float, float]:
    """Limits that give a stratum's groups, by their places, shares as near as can be."""
    count = len(found)
    test = round(count * spec.test)
    validation = min(count, test + round(count * spec.validation))
    ends = np.append(found, 1.0)
    return float(ends[test]), float(ends[validation])


def _in_stratum(group: str, *, stratum: str, strata: Strata) -> str:
    if stratum not in strata.limits:
        raise SourceError("the table changed while it was read; run again")
    test, validation = strata.limits[stratum]
    return _side(_place(group), test=test, validation=validation)


def _side(place: float, *, test: float, validation: float) -> str:
    if place < test:
        return "test"
    return "validation" if place < validation else "train"


def _place(group: str) -> float:
    digest = hashlib.blake2b(group.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little") / 2**64


def _stratum_column(table: pa.Table, *, spec: SplitSpec) -> Sequence[str]:
    """The stratum of each row as text; a null is a stratum of its own."""
    assert spec.stratify is not None
    values = as_text(table[spec.stratify], name=spec.stratify)
    return [str(value) for value in pc.fill_null(values, "").to_pylist()]


def _named_splits(table: pa.Table, *, column: str) -> pa.Array:
    splits = as_text(table[column], name=column)
    for found in pc.unique(splits).to_pylist():
        if found is not None and found not in SPLITS:
            raise SourceError(
                f"column {column!r} holds {found!r}; {nearest_hint(found, SPLITS)}"
                f"a split is one of {', '.join(SPLITS)}, or null for a sample that is not used"
            )
    return splits
