"""The three stages one after another, each of which does only what is not done, and the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from features.sources import RowRange, RowReader
from features.store import Snapshot
from training.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from training.candidate import CandidateRecord
from workflows.console import count, duration, progress
from workflows.embed import embed, open_store, plan_embedding, plan_table
from workflows.pipeline import Pipeline, StageError, load_pipeline
from workflows.promote import Promotion, promote
from workflows.train import candidate_table, last_snapshot, planned, train

if TYPE_CHECKING:
    import pandas as pd

DEMO_RECIPE = "digits.yaml"


def run(pipeline: Pipeline, *, console: Console) -> Promotion:
    """Embed, train, promote and report; an unchanged world costs seconds and changes nothing."""
    begun = time.perf_counter()
    embedded = embed(pipeline, console=console)
    trained = train(pipeline, snapshot=embedded.snapshot, console=console)
    promotion = _promote(
        pipeline, snapshot=embedded.snapshot, records=trained.records, console=console
    )
    changed = embedded.changed or trained.changed or promotion.changed
    if changed or not pipeline.report_path.exists():
        write_report(
            pipeline, snapshot=embedded.snapshot, records=trained.records, promotion=promotion
        )
    _summary(pipeline, records=trained.records, promotion=promotion, console=console)
    if not changed:
        console.print(f"\nNothing to do: unchanged since the last run ({_since(begun)}).")
    else:
        console.print(f"\nDone in {_since(begun)}.")
    return promotion


def run_demo(directory: Path, *, samples: int | None, console: Console) -> Pipeline:
    """Make the demo's data and pipeline file in a folder, unless they are there."""
    from workflows.demo import make_digits

    directory = directory.absolute()
    with progress(console) as bar:
        task = bar.add_task("data", total=None, note="digits spoken, written and drawn")
        begun = time.perf_counter()
        made = not (directory / "samples.parquet").exists()
        try:
            make_digits(
                folder=directory,
                samples=samples,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except ModuleNotFoundError as error:
            raise StageError(str(error)) from error
        except ValueError as error:
            raise StageError(f"{error}; choose another --dir") from error
    console.print(
        f"[bold]data[/bold]     {directory / 'samples.parquet'}"
        + (f" (made in {_since(begun)})" if made else " is there")
    )
    recipe = directory / DEMO_RECIPE
    if not recipe.exists():
        text = (resources.files("workflows") / "recipes" / DEMO_RECIPE).read_text()
        recipe.write_text(text)
    return load_pipeline(recipe)


def print_plan(pipeline: Pipeline, *, console: Console) -> None:
    """What `run` would do, stage by stage. Writes nothing."""
    plan = plan_embedding(pipeline, write_samples=False)
    splits = ", ".join(f"{name or 'no split'} {count(n)}" for name, n in plan.splits.items())
    console.print(
        f"[bold]embed[/bold]    {count(plan.rows)} samples ({splits}) in "
        f"{count(len(plan.samples))} shards"
    )
    console.print(plan_table(plan))
    if not plan.work:
        console.print("         nothing to embed")
    latest = open_store(pipeline).latest(pipeline.name)
    if plan.work or latest is None:
        console.print(
            f"[bold]train[/bold]    {len(pipeline.spec.candidates)} candidates; which of them "
            "need fitting is known once the embeddings are there"
        )
        return
    candidates = planned(pipeline, snapshot=latest)
    waiting = [candidate.spec.name for candidate in candidates if candidate.record is None]
    console.print(
        f"[bold]train[/bold]    {len(candidates)} candidates, {len(waiting)} to fit"
        + (f": {', '.join(waiting)}" if waiting else "")
    )


def promote_last(pipeline: Pipeline, *, dry_run: bool, console: Console) -> Promotion:
    """Stage 3 alone, on the last snapshot; StageError if a candidate is not fitted yet."""
    snapshot = last_snapshot(pipeline)
    return _promote(
        pipeline,
        snapshot=snapshot,
        records=_fitted(pipeline, snapshot=snapshot),
        dry_run=dry_run,
        console=console,
    )


def write_last_report(pipeline: Pipeline, *, out: Path | None, console: Console) -> None:
    """Write the report of the last run again, without changing anything else."""
    snapshot = last_snapshot(pipeline)
    records = _fitted(pipeline, snapshot=snapshot)
    promotion = promote(
        pipeline=pipeline,
        store=open_store(pipeline),
        snapshot=snapshot,
        records=records,
        raw_rows=raw_rows(pipeline, snapshot=snapshot),
        dry_run=True,
    )
    path = write_report(
        pipeline, snapshot=snapshot, records=records, promotion=promotion, out=out
    )
    console.print(f"report   {path}")


def raw_rows(pipeline: Pipeline, *, snapshot: Snapshot) -> Callable[[np.ndarray], pd.DataFrame]:
    """A reader of the table's rows by their numbers in a snapshot, with the modalities' columns."""

    def read(rows: np.ndarray) -> pd.DataFrame:
        columns = list(dict.fromkeys(f.column for f in pipeline.spec.features.values()))
        reader = RowReader(pipeline.open_source(), columns=columns)
        return reader.read([_place(snapshot, int(row)) for row in rows]).to_pandas()

    return read


def _place(snapshot: Snapshot, row: int) -> RowRange:
    """Where a row of a snapshot stands in the source."""
    shard = int(np.searchsorted(snapshot.first_rows, row, side="right")) - 1
    row -= snapshot.first_rows[shard]
    for part in snapshot.samples[shard].ranges:
        if row < part.stop - part.start:
            return RowRange(file=part.file, start=part.start + row, stop=part.start + row + 1)
        row -= part.stop - part.start
    raise IndexError(f"row {row} is beyond the shard's {snapshot.samples[shard].rows} rows")


def _fitted(pipeline: Pipeline, *, snapshot: Snapshot) -> tuple[CandidateRecord, ...]:
    candidates = planned(pipeline, snapshot=snapshot)
    waiting = [candidate.spec.name for candidate in candidates if candidate.record is None]
    if waiting:
        raise StageError(
            f"not fitted yet: {', '.join(waiting)}; run `sensorium train {pipeline.path.name}`"
        )
    return tuple(candidate.record for candidate in candidates if candidate.record is not None)


def _promote(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    records: tuple[CandidateRecord, ...],
    dry_run: bool = False,
    console: Console,
) -> Promotion:
    console.print(f"[bold]promote[/bold]  {pipeline.model} at {pipeline.tracking_uri}")
    promotion = promote(
        pipeline=pipeline,
        store=open_store(pipeline),
        snapshot=snapshot,
        records=records,
        raw_rows=raw_rows(pipeline, snapshot=snapshot),
        dry_run=dry_run,
        on_event=lambda text: console.print(f"         {text}"),
    )
    console.print(f"         {promotion.detail}")
    return promotion


def _since(begun: float) -> str:
    return duration(time.perf_counter() - begun)
