"""The three stages one after another, each of which does only what is not done, and the report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from features.commit import draft_snapshot
from features.plan import Plan
from features.snapshot import Snapshot
from training.candidate import CandidateRecord
from training.search.walk import Search
from workflows.cluster import Connection
from workflows.console import count, duration, progress, several
from workflows.drift import print_planned_changes
from workflows.embed import embed
from workflows.outcome import DeadlinePassed, Outcome
from workflows.overlap import OnOverlap, one_at_a_time
from workflows.pipeline import Pipeline, StageError, load_pipeline
from workflows.plan import check_trainable, plan_embedding, print_changed_code, print_work
from workflows.promotion.outcome import Promotion
from workflows.promotion.promote import promote
from workflows.repeats import print_repeats, print_shares, print_untrained
from workflows.reporting.collect import collect
from workflows.runs import without_passwords
from workflows.search import standing
from workflows.stopping import OutOfTime, stopping
from workflows.summary import print_summary
from workflows.tracking import log_report
from workflows.train import (
    Trained,
    last_snapshot,
    planned_passes,
    print_outlook,
    print_standing,
    train,
    trained,
)
from workflows.verdict_table import print_verdict

MOST_UNUSED = 12
"""Columns without a use that are named."""
DEMO_RECIPE = "digits.yaml"


def run(
    pipeline: Pipeline,
    *,
    console: Console,
    on_overlap: OnOverlap = "leave",
    deadline: float | None = None,
    outcome: Outcome | None = None,
) -> Promotion:
    """Embed, train, promote and report; an unchanged world costs seconds and changes nothing.

    One run of a pipeline changes things at a time (`features.turns`): where another is at work,
    this one waits for its end, or raises LeftToAnother. After `deadline` seconds it ends by
    DeadlinePassed, on SIGTERM by Terminated; what is done then is kept, and the next run goes on.
    `outcome` is told how far it comes.
    """
    outcome = outcome or Outcome()
    outcome.pipeline = pipeline.name
    begun = time.perf_counter()
    try:
        # The lease is given back first: Ray takes its time to end, and whoever stops a job may not.
        with stopping(deadline=deadline) as check, Connection() as connection:
            promotion, changed = one_at_a_time(
                pipeline,
                lambda confirm: _stages(
                    pipeline,
                    connection=connection,
                    confirm=confirm,
                    outcome=outcome,
                    console=console,
                ),
                on_overlap=on_overlap,
                check=check,
                outcome=outcome,
                console=console,
            )
    except OutOfTime:
        assert deadline is not None, "there is no other way to run out of time"
        raise DeadlinePassed(
            f"the deadline of {duration(deadline)} has passed; what is done is kept, and the "
            "next run goes on from there"
        ) from None
    if not changed:
        outcome.status = "unchanged"
        console.print(f"\nNothing to do: unchanged since the last run ({_since(begun)}).")
    else:
        outcome.status = "done"
        if promotion.refused and promotion.changed:
            outcome.status = "refused"
        elif promotion.waiting:
            outcome.status = "waiting"
        console.print(f"\nDone in {_since(begun)}.")
    return promotion


def _stages(
    pipeline: Pipeline,
    *,
    connection: Connection,
    confirm: Callable[[], None],
    outcome: Outcome,
    console: Console,
) -> tuple[Promotion, bool]:
    """Stage after stage and the report; whether anything was changed."""
    with outcome.stage("embed"):
        embedded = embed(
            pipeline,
            connection=connection,
            console=console,
            for_training=True,
            confirm=confirm,
            outcome=outcome,
        )
    snapshot = embedded.snapshot
    with outcome.stage("train"):
        done = train(
            pipeline,
            snapshot=snapshot,
            connection=connection,
            console=console,
            confirm=confirm,
            outcome=outcome,
        )
    with outcome.stage("promote"):
        promotion = _promote(
            pipeline, snapshot=snapshot, records=done.records, console=console, confirm=confirm
        )
    outcome.promotion = promotion
    changed = embedded.changed or done.changed or promotion.changed
    # A mounted ConfigMap cannot be written to; the report is kept in MLflow alone then.
    writable = os.access(pipeline.folder, os.W_OK)
    if changed or (writable and not pipeline.report_path.exists()):
        with outcome.stage("report"), tempfile.TemporaryDirectory() as elsewhere:
            write_report(
                pipeline,
                snapshot=snapshot,
                records=done.records,
                searches=done.searches,
                promotion=promotion,
                out=None if writable else Path(elsewhere) / pipeline.report_path.name,
            )
    print_summary(
        pipeline, snapshot=snapshot, records=done.records, promotion=promotion, console=console
    )
    return promotion, changed


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
        f"[bold]data[/bold]     {escape(str(directory / 'samples.parquet'))}"
        + (f" (made in {_since(begun)})" if made else " is there")
    )
    recipe = directory / DEMO_RECIPE
    if not recipe.exists():
        text = (resources.files("workflows") / "recipes" / DEMO_RECIPE).read_text(encoding="utf-8")
        recipe.write_text(text, encoding="utf-8")
    return load_pipeline(recipe)


def print_plan(pipeline: Pipeline, *, console: Console) -> None:
    """What `run` would do, stage by stage. Writes nothing."""
    plan = plan_embedding(pipeline)
    splits = ", ".join(f"{name or 'no split'} {count(n)}" for name, n in plan.splits.items())
    console.print(
        f"[bold]embed[/bold]    {several(plan.rows, 'sample')} ({splits}) in "
        f"{several(len(plan.samples), 'shard')}"
    )
    _print_unused(plan, pipeline=pipeline, console=console)
    print_work(plan, console=console)
    store = pipeline.open_store()
    print_changed_code(plan, store=store, console=console)
    print_repeats(plan, console=console)
    print_shares(plan, console=console)
    print_untrained(plan, console=console)
    print_planned_changes(plan, console=console)
    check_trainable(plan, pipeline=pipeline)
    snapshot = draft_snapshot(plan)
    found = standing(pipeline, snapshot=snapshot)
    print_standing(found, console=console)
    last = store.latest(pipeline.name)
    if last is not None and last.samples == snapshot.samples:
        print_outlook(pipeline, snapshot=last, console=console)
    for due in found.rounds:
        for line in planned_passes(due):
            console.print(f"         {escape(line)}")


def _print_unused(plan: Plan, *, pipeline: Pipeline, console: Console) -> None:
    """The columns of the table that the pipeline makes no use of, on one line."""
    unused = [name for name in plan.source.columns() if name not in pipeline.columns_read]
    if unused:
        more = f" and {len(unused) - MOST_UNUSED} more" if len(unused) > MOST_UNUSED else ""
        names = escape(", ".join(unused[:MOST_UNUSED]))
        console.print(f"[dim]         columns not used: {names}{more}[/dim]", soft_wrap=True)


def promote_last(
    pipeline: Pipeline,
    *,
    dry_run: bool,
    console: Console,
    confirm: Callable[[], None] | None = None,
) -> Promotion:
    """Stage 3 alone, on the last snapshot; StageError if a candidate is not fitted yet."""
    snapshot = last_snapshot(pipeline)
    return _promote(
        pipeline,
        snapshot=snapshot,
        records=_fitted(pipeline, snapshot=snapshot).records,
        dry_run=dry_run,
        console=console,
        confirm=confirm,
    )


def write_last_report(pipeline: Pipeline, *, out: Path | None, console: Console) -> None:
    """Write the report of the last run again, without changing anything else."""
    snapshot = last_snapshot(pipeline)
    done = _fitted(pipeline, snapshot=snapshot)
    promotion = promote(
        pipeline=pipeline,
        store=pipeline.open_store(),
        snapshot=snapshot,
        records=done.records,
        dry_run=True,
    )
    path = write_report(
        pipeline,
        snapshot=snapshot,
        records=done.records,
        searches=done.searches,
        promotion=promotion,
        out=out,
    )
    console.print(f"report   {escape(str(path))}", soft_wrap=True)


def write_report(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    searches: Sequence[Search],
    promotion: Promotion,
    out: Path | None = None,
) -> Path:
    """Write the HTML report whole, and keep it with the training's run in MLflow."""
    from workflows.promotion.registry import git_commit
    from workflows.reporting.report import render

    data = collect(
        pipeline=pipeline,
        store=pipeline.open_store(),
        snapshot=snapshot,
        records=records,
        promotion=promotion,
        searches=searches,
        git_commit=git_commit(pipeline.folder),
    )
    path = (out or pipeline.report_path).absolute()
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render(data), encoding="utf-8")
    temporary.replace(path)
    if promotion.parent is not None:
        log_report(path, uri=pipeline.tracking_uri, run=promotion.parent)
    return path


def _fitted(pipeline: Pipeline, *, snapshot: Snapshot) -> Trained:
    found = standing(pipeline, snapshot=snapshot)
    waiting = [candidate.spec.name for due in found.rounds for candidate in due.missing()]
    if waiting:
        raise StageError(
            f"not fitted yet: {', '.join(waiting)}; run `sensorium train {pipeline.path.name}`"
        )
    return trained(found, changed=False)


def _promote(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    records: tuple[CandidateRecord, ...],
    dry_run: bool = False,
    console: Console,
    confirm: Callable[[], None] | None = None,
) -> Promotion:
    place = escape(without_passwords(pipeline.tracking_uri))
    console.print(f"[bold]promote[/bold]  {pipeline.model} at {place}")
    promotion = promote(
        pipeline=pipeline,
        store=pipeline.open_store(),
        snapshot=snapshot,
        records=records,
        dry_run=dry_run,
        on_event=lambda text: console.print(f"         {escape(text)}"),
        confirm=confirm,
    )
    if promotion.verdict is not None and not promotion.earlier:
        print_verdict(promotion.verdict, console=console)
    console.print(f"         {escape(promotion.detail)}")
    return promotion


def _since(begun: float) -> str:
    return duration(time.perf_counter() - begun)
