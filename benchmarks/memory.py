"""Peak memory of a job over tables of 1, 4 and 16 times as many rows.

    python -m benchmarks.memory [--quick] [--rows N] [--folder DIR]

The memory is that of all processes together, Ray's own among them, as PSS.
"""

from __future__ import annotations

from benchmarks import command, job
from benchmarks.results import Target, report
from benchmarks.tables import lists, texts, vectors, write_pipeline, write_table

DIM = 64
FACTORS = (1, 4, 16)


def main() -> None:
    options = command.parse(__doc__, rows=25_000, quick=5_000)
    lines, peaks = [], []
    encoders = {
        "text": {"column": "text", "encoder": {"type": "hashing", "dim": DIM}},
        "vector": {"column": "vector", "encoder": {"type": "vector", "dim": DIM}},
    }
    for factor in FACTORS:
        rows = options.rows * factor
        folder = options.folder / str(rows)
        if not (folder / "table").exists():
            for first in range(0, rows, options.rows):
                columns = {
                    "text": texts(options.rows, seed=first),
                    "vector": lists(vectors(options.rows, dim=DIM, seed=first)),
                }
                write_table(folder, columns, first=first)
        pipeline = write_pipeline(folder, features=encoders)
        watched = job.embed(pipeline)
        peaks.append(watched.peak)
        lines.append(
            [
                f"{rows:,}",
                f"{len(job.shard_files(pipeline)):,}",
                f"{watched.seconds:.0f}",
                f"{watched.peak / 1e9:.2f}",
                f"{watched.root_peak / 1e9:.2f}",
            ]
        )
        print("  ", *lines[-1], flush=True)
    report(
        "memory",
        head=("rows", "embedding shards", "seconds", "all processes, GB", "driver, GB"),
        rows=lines,
        targets=[
            Target(
                what=f"memory at {factor} × the rows, as a multiple",
                limit=1.25,
                found=peak / peaks[0],
            )
            for factor, peak in zip(FACTORS[1:], peaks[1:], strict=True)
        ],
        remarks=[
            f"Texts by `hashing` and vectors by `vector`, width {DIM}, from an empty store. "
            "Bounded means: within a quarter of the smallest table's."
        ],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
