"""A second run on unchanged input: seconds and memory, for a million rows in a thousand shards.

python -m benchmarks.unchanged [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import statistics

from benchmarks import command, job
from benchmarks.measure import short
from benchmarks.results import Target, report
from benchmarks.tables import lists, vectors, write_pipeline, write_table

DIM = 16
FILES = 20
SHARD_ROWS = {"min": 500, "target": 500, "max": 4000}
"""About 1,000 samples a shard."""


def main() -> None:
    options = command.parse(__doc__, rows=1_000_000, quick=50_000)
    folder = options.folder / str(options.rows)
    if not (folder / "table").exists():
        step = options.rows // FILES
        for first in range(0, options.rows, step):
            values = vectors(min(step, options.rows - first), dim=DIM, seed=first)
            write_table(folder, {"vector": lists(values)}, first=first)
    encoder = {"type": "vector", "dim": DIM, "dtype": "float32"}
    features = {"vector": {"column": "vector", "encoder": encoder}}
    pipeline = write_pipeline(folder, features=features, shard_rows=SHARD_ROWS)
    first = job.embed(pipeline, afresh=False, interval=1)
    print(f"  the run before: {first.seconds:.0f} s", flush=True)
    shards = job.shard_files(pipeline)
    runs = [job.embed(pipeline, afresh=False) for _ in range(options.repeats)]
    assert job.shard_files(pipeline) == shards, "a run with nothing to do has written shards"
    seconds = [run.seconds for run in runs]
    peak = max(run.peak for run in runs) / 1e9
    report(
        "unchanged",
        head=("rows", "shards", "seconds", "least–most", "CPU s", "memory, GB", "others' CPUs"),
        rows=[
            [
                f"{options.rows:,}",
                f"{len(shards):,}",
                short(statistics.median(seconds)),
                f"{short(min(seconds))}–{short(max(seconds))}",
                short(statistics.median(run.share.cpu_seconds for run in runs)),
                f"{peak:.2f}",
                f"{statistics.median(run.share.foreign for run in runs):.1f}",
            ]
        ],
        targets=[
            Target(what="seconds", limit=10, found=statistics.median(seconds), unit="s"),
            Target(what="memory of all its processes", limit=1, found=peak, unit="GB"),
        ],
        remarks=[f"`sensorium embed` from a cold process; vectors of {DIM}, {FILES} files."],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
