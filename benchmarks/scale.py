"""A table of millions of rows through `plan`, `embed`, and `embed` again: seconds and memory.

    python -m benchmarks.scale [--quick] [--rows N] [--folder DIR]

Texts by `hashing` and vectors by `vector`. The memory is that of all processes together, Ray's own
among them, as PSS, and is given for each fifth of the run: flat is what it should be.
"""

from __future__ import annotations

import shutil
import sys

from benchmarks import command, job
from benchmarks.measure import ENVIRONMENT, ROOT
from benchmarks.processes import Watched, run_watched
from benchmarks.results import Target, report
from benchmarks.tables import lists, texts, vectors, write_pipeline, write_table

DIM = 32
FILE_ROWS = 50_000
DISTINCT = 20_000
"""Texts that are drawn; a row's number before each makes them all unlike."""
PARTS = 5


def main() -> None:
    options = command.parse(__doc__, rows=2_000_000, quick=50_000, repeats=1)
    folder = options.folder / str(options.rows)
    shutil.rmtree(folder / "store", ignore_errors=True)
    if not (folder / "table").exists():
        drawn = texts(DISTINCT, most=30)
        for first in range(0, options.rows, FILE_ROWS):
            count = min(FILE_ROWS, options.rows - first)
            made = [f"{first + i} {drawn[(first + i) % DISTINCT]}" for i in range(count)]
            values = lists(vectors(count, dim=DIM, seed=first))
            write_table(folder, {"text": made, "vector": values}, first=first)
    features = {
        "text": {"column": "text", "encoder": {"type": "hashing", "dim": DIM}},
        "vector": {"column": "vector", "encoder": {"type": "vector", "dim": DIM}},
    }
    pipeline = write_pipeline(folder, features=features)
    planning = [sys.executable, "-m", "workflows", "plan", str(pipeline)]
    runs = {"plan": run_watched(planning, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, interval=1)}
    print(f"  plan: {runs['plan'].seconds:.0f} s", flush=True)
    runs["embed"] = job.embed(pipeline, interval=1)
    print(f"  embed: {runs['embed'].seconds:.0f} s", flush=True)
    runs["embed, nothing to do"] = job.embed(pipeline, afresh=False)
    shards = job.shard_files(pipeline)
    written = sum(path.stat().st_size for path in shards)
    fifths = memory_by_part(runs["embed"])
    report(
        "scale",
        head=("command", "seconds", "CPU s", "memory, GB", "driver, GB", "others' CPUs"),
        rows=[
            [
                name,
                f"{run.seconds:.1f}",
                f"{run.share.cpu_seconds:.0f}",
                f"{run.peak / 1e9:.2f}",
                f"{run.root_peak / 1e9:.2f}",
                f"{run.share.foreign:.1f}",
            ]
            for name, run in runs.items()
        ],
        targets=[
            Target(
                what="memory in the last fifth, of that in the second",
                limit=1.1,
                found=fifths[-1] / fifths[1],
            )
        ],
        remarks=[
            f"{options.rows:,} rows in {-(-options.rows // FILE_ROWS)} files, width {DIM}: "
            f"{len(shards):,} embedding shards, {written / 1e6:,.0f} MB. Greatest memory of "
            f"`embed` by fifths of the run: {', '.join(f'{size / 1e9:.2f}' for size in fifths)} GB."
        ],
        write=not options.quick,
    )


def memory_by_part(watched: Watched) -> list[float]:
    """The greatest memory in each part of a run, in bytes."""
    looks = watched.looks
    bounds = [len(looks) * i // PARTS for i in range(PARTS + 1)]
    return [
        max((look.pss for look in looks[bounds[i] : bounds[i + 1]]), default=1)
        for i in range(PARTS)
    ]


if __name__ == "__main__":
    main()
