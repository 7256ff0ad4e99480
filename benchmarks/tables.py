"""Tables to embed, made here and the same every time, and the pipelines over them."""

from __future__ import annotations

import itertools
import math
import random
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

LEAST_WORDS, MEDIAN_WORDS, MOST_WORDS, SIGMA = 5, 40, 200, 0.85
"""Lengths of the texts: log-normal, and cut at both ends."""


@cache
def words() -> list[str]:
    """Running English words, from the licences and read-me files of the installed packages."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*")):
        name = path.name.lower()
        named = "license" in name or name.startswith("readme") or name == "metadata"
        if not named or not path.is_file() or path.stat().st_size > 400_000:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [
            w for w in text.split() if len(w) <= 18 and sum(map(str.isalpha, w)) > 0.7 * len(w)
        ]
        if len(found) > 500_000:
            break
    return found


def texts(rows: int, *, seed: int = 7, most: int = MOST_WORDS) -> list[str]:
    """Spans of running words of mixed lengths, the median 40 words."""
    source, chance = words(), random.Random(seed)
    found = []
    for _ in range(rows):
        drawn = int(chance.lognormvariate(math.log(MEDIAN_WORDS), SIGMA))
        length = max(LEAST_WORDS, min(most, drawn))
        start = chance.randrange(len(source) - length)
        found.append(" ".join(source[start : start + length]))
    return found


def vectors(rows: int, *, dim: int, seed: int = 7) -> np.ndarray:
    """float32 `[rows, dim]` of length 1, at random."""
    values = np.random.default_rng(seed).standard_normal((rows, dim), np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def lists(values: np.ndarray) -> pa.FixedSizeListArray:
    """A matrix as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write_table(
    folder: Path, columns: Mapping[str, Any], *, first: int = 0, ids: Sequence[str] = ()
) -> None:
    """Write the part of `folder/table` that begins with row `first`, with ids and labels added."""
    (folder / "table").mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + len(next(iter(columns.values()))))
    own = {"id": list(ids) or [f"t{i:09d}" for i in numbers], "label": [i % 3 for i in numbers]}
    path = folder / "table" / f"part-{first:010d}.parquet"
    pq.write_table(pa.table(own | dict(columns)), path, compression="zstd", row_group_size=8192)


def write_text_table(folder: Path, *, rows: int, files: int = 8) -> None:
    """A table of texts in several files, unless it is there."""
    if (folder / "table").exists():
        return
    made = texts(rows)
    bounds = [rows * i // files for i in range(files + 1)]
    for start, stop in itertools.pairwise(bounds):
        write_table(folder, {"text": made[start:stop]}, first=start)


def write_pipeline(
    folder: Path, *, features: Mapping[str, Any], shard_rows: Mapping[str, int] | None = None
) -> Path:
    """The YAML file of a pipeline over `folder/table`, with its store beside it."""
    dataset: dict[str, Any] = {"path": "table", "id": "id", "split": {"group": "id"}}
    if shard_rows:
        dataset["shard_rows"] = dict(shard_rows)
    spec = {
        "name": "benchmark",
        "dataset": dataset,
        "features": dict(features),
        "task": {"type": "classification", "target": "label"},
        "candidates": [{"type": "single", "modality": next(iter(features))}],
        "store": "store",
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path
