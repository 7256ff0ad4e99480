"""Bytes that embeddings take on disk, and how fast they are read back into one array.

python -m benchmarks.disk [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import command, job
from benchmarks.measure import Series, in_turn, short
from benchmarks.processes import timed
from benchmarks.results import Target, report
from benchmarks.tables import lists, vectors, write_pipeline, write_table
from features.shard import vectors as decoded
from features.stored_embeddings import read_embeddings

DIM = 384


def main() -> None:
    options = command.parse(__doc__, rows=200_000, quick=20_000, repeats=15)
    folder = options.folder / str(options.rows)
    if not (folder / "table").exists():
        for first in range(0, options.rows, 20_000):
            values = vectors(min(20_000, options.rows - first), dim=DIM, seed=first)
            write_table(folder, {"vector": lists(values)}, first=first)
    features = {"vector": {"column": "vector", "encoder": {"type": "vector", "dim": DIM}}}
    pipeline = write_pipeline(folder, features=features)
    job.embed(pipeline, afresh=False)
    store, snapshot = job.open_store(pipeline)
    values = read_embeddings(store, snapshot, modality="vector").values
    assert values.shape == (options.rows, DIM) and values.dtype == np.float16
    files = sorted((folder / "store" / "embeddings").rglob("*.parquet"))
    raw = values.nbytes
    sizes = {"as it is stored": sum(path.stat().st_size for path in files)}
    parts = column_bytes(files)
    flat = folder / "flat.npy"
    np.save(flat, values)
    others = folder / "others"
    shutil.rmtree(others, ignore_errors=True)
    others.mkdir()
    pq.write_table(pa.table({"embedding": lists(values)}), others / "default.parquet")
    sizes["Parquet as pyarrow writes it"] = (others / "default.parquet").stat().st_size
    del values

    def read_store() -> np.ndarray:
        return read_embeddings(store, snapshot, modality="vector").values

    def read_map() -> np.ndarray:
        return np.array(np.load(flat, mmap_mode="r"))

    def read_parquet() -> np.ndarray:
        return decoded(pq.read_table(others / "default.parquet")["embedding"])

    reads: dict[str, Callable[[], np.ndarray]] = {
        "numpy.memmap": read_map,
        "the store": read_store,
        "Parquet as pyarrow writes it": read_parquet,
    }
    for read in reads.values():
        assert read().shape == (options.rows, DIM)  # and warms the page cache
    slow = {name: reads.pop(name) for name in ("Parquet as pyarrow writes it",)}
    found = _in_turn(reads, rows=options.rows, repeats=options.repeats)
    found |= _in_turn(slow, rows=options.rows, repeats=min(2, options.repeats))
    limit = found["numpy.memmap"].rate
    rows = [[f"bytes, {name}", f"{size / raw:.4f} × raw", "", ""] for name, size in sizes.items()]
    rows += [
        [f"… of it {name}", f"{100 * size / raw:.3f} % of raw", "", ""]
        for name, size in parts.items()
    ]
    rows += [
        [f"read, {name}", f"{short(series.rate * DIM * 2 / 1e6)} MB/s",
         f"{short(min(series.rates) * DIM * 2 / 1e6)}–{short(max(series.rates) * DIM * 2 / 1e6)}",
         f"{series.rate / limit:.2f}"]
        for name, series in found.items()
    ]  # fmt: skip
    report(
        "disk",
        head=("what", "measured", "least–most", "of numpy.memmap"),
        rows=rows,
        targets=[
            Target(what="bytes, of raw float16", limit=1.02, found=sizes["as it is stored"] / raw),
            Target(
                what="read, of numpy.memmap",
                limit=0.7,
                found=found["the store"].rate / limit,
                at_least=True,
            ),
        ],
        remarks=[
            f"{options.rows:,} vectors of {DIM} float16, {len(files)} shards, the page cache warm; "
            f"`numpy.memmap` is copied into an array of its own, as the store's are."
        ],
        write=not options.quick,
    )


def column_bytes(files: list[Path]) -> dict[str, int]:
    """What each column takes, and what is around them."""
    found: dict[str, int] = {}
    total = 0
    for path in files:
        metadata = pq.read_metadata(path)
        total += path.stat().st_size
        for group in range(metadata.num_row_groups):
            for i in range(metadata.num_columns):
                column = metadata.row_group(group).column(i)
                name = column.path_in_schema.partition(".")[0]
                found[name] = found.get(name, 0) + column.total_compressed_size
    found["footers"] = total - sum(found.values())
    return found


def _in_turn(
    reads: Mapping[str, Callable[[], np.ndarray]], *, rows: int, repeats: int
) -> dict[str, Series]:
    variants = {name: (rows, functools.partial(timed, read)) for name, read in reads.items()}
    return in_turn(variants, repeats=repeats)


if __name__ == "__main__":
    main()
