"""One row in a hundred changed: how much of the full run is computed again.

    python -m benchmarks.changes [--quick] [--rows N] [--folder DIR]

What counts is rows that go through the encoder, as the shards' own footers tell it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks import command, job
from benchmarks.results import Target, report
from benchmarks.tables import texts, write_pipeline, write_table
from workflows.cluster import Connection
from workflows.embed import embed
from workflows.pipeline import load_pipeline

Rows = list[tuple[str, str]]
"""Id and text of each row."""
SHARE = 0.01


def insert(rows: Rows, chance: random.Random) -> Rows:
    """New rows in one place in the middle."""
    new = [
        (f"new{i}", f"inserted {text}")
        for i, (_, text) in enumerate(rows[: int(len(rows) * SHARE)])
    ]
    middle = len(rows) // 2
    return rows[:middle] + new + rows[middle:]


def scatter(rows: Rows, chance: random.Random) -> Rows:
    """New rows here and there."""
    found = list(rows)
    for i, (_, text) in enumerate(rows[: int(len(rows) * SHARE)]):
        found.insert(chance.randrange(len(found)), (f"new{i}", f"inserted {text}"))
    return found


def delete(rows: Rows, chance: random.Random) -> Rows:
    """Rows gone, here and there."""
    gone = set(chance.sample(range(len(rows)), int(len(rows) * SHARE)))
    return [row for i, row in enumerate(rows) if i not in gone]


def edit(rows: Rows, chance: random.Random) -> Rows:
    """Other texts in rows here and there."""
    edited = set(chance.sample(range(len(rows)), int(len(rows) * SHARE)))
    return [(id, f"edited {text}" if i in edited else text) for i, (id, text) in enumerate(rows)]


def sort(rows: Rows, chance: random.Random) -> Rows:
    """The same rows in another order."""
    return sorted(rows, key=lambda row: row[1])


CHANGES: dict[str, Callable[[Rows, random.Random], Rows]] = {
    "1 % inserted in the middle": insert,
    "1 % inserted here and there": scatter,
    "1 % deleted": delete,
    "1 % edited": edit,
    "sorted another way": sort,
}


def main() -> None:
    options = command.parse(__doc__, rows=100_000, quick=20_000)
    base = options.folder / "base"
    shutil.rmtree(options.folder)
    rows = [(f"t{i:09d}", text) for i, text in enumerate(texts(options.rows, most=60))]
    encoder = {"type": "hashing", "dim": 32}
    lines, targets = [], []
    with Connection() as connection:

        def run(folder: Path, table: Rows) -> int:
            """Rows that were encoded."""
            shutil.rmtree(folder / "table", ignore_errors=True)
            ids, payloads = [list(column) for column in zip(*table, strict=True)]
            write_table(folder, {"text": payloads}, ids=ids)
            features = {"text": {"column": "text", "encoder": encoder}}
            pipeline = write_pipeline(folder, features=features)
            before = set(job.shard_files(pipeline))
            embed(load_pipeline(pipeline), connection=connection, console=Console(quiet=True))
            made = job.shard_files(pipeline)
            return sum(made[path].embedded for path in made.keys() - before)

        full = run(base, rows)
        for name, change in CHANGES.items():
            folder = options.folder / change.__name__
            shutil.copytree(base, folder)
            encoded = run(folder, change(rows, random.Random(7)))
            lines.append([name, f"{full:,}", f"{encoded:,}", f"{100 * encoded / full:.2f} %"])
            targets.append(Target(what=name, limit=2, found=100 * encoded / full, unit="%"))
            print("  ", *lines[-1], flush=True)
            shutil.rmtree(folder)
    report(
        "changes",
        head=("change", "rows encoded at first", "rows encoded after", "share"),
        rows=lines,
        targets=targets,
        remarks=["Shards of the default size; the other rows of a changed shard are copied."],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
