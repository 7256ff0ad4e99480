"""Stage 1: plan, compute the missing shards, check the bad-row budget, commit the snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape

from features.broken_encoder import BrokenEncoder, refuse_broken_snapshot
from features.commit import draft_snapshot, make_snapshot
from features.embedding import ShardResult
from features.kept_statistics import keep_statistics
from features.label_changes import label_changes
from features.lease import Lease, announce_job
from features.plan import Plan, is_there
from features.quarantine import QuarantineCount, count_quarantine, read_quarantine
from features.retry import retry_work, with_patches
from features.sample_shards import write_samples
from features.scan_tasks import Run
from features.snapshot import Snapshot
from features.sources import SourceError
from features.store import Store
from workflows.cluster import Connection
from workflows.console import count, duration, progress, several
from workflows.drift import find_drift, print_drift, print_label_changes
from workflows.outcome import Outcome
from workflows.pipeline import Pipeline, StageError
from workflows.plan import check_trainable, plan_embedding, print_changed_code, print_work
from workflows.quarantine import quarantine_table
from workflows.repeats import print_repeats, print_shares, print_untrained


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What stage 1 leaves behind."""

    plan: Plan
    snapshot: Snapshot
    quarantine: Mapping[str, QuarantineCount]
    changed: bool
    """Whether anything was computed or a new snapshot committed."""


class BudgetExceeded(Exception):
    """More payloads are bad than `dataset.max_bad_fraction` allows."""

    def __init__(
        self, counts: Mapping[str, QuarantineCount], *, rows: pa.Table, limit: float
    ) -> None:
        over = [item for item in counts.values() if item.fraction > limit]
        parts = [
            f"{item.modality}: {item.bad} of {item.payloads} payloads"
            + (
                " (is its column the right one, and do its paths start from the table's folder?)"
                if item.bad == item.payloads
                else ""
            )
            for item in over
        ]
        super().__init__(
            f"more bad payloads than max_bad_fraction {limit:g} allows: {'; '.join(parts)}"
        )
        self.counts = counts
        self.rows = rows


def _tasks(connection: Connection) -> Run:
    """Functions called by Ray, which is started only if any is."""

    def run(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
        from features.job import in_tasks

        connection.open()
        return in_tasks(function, arguments)

    return run


def embed(
    pipeline: Pipeline,
    *,
    connection: Connection,
    console: Console,
    for_training: bool = False,
    retry: bool = False,
    confirm: Callable[[], None] | None = None,
    outcome: Outcome | None = None,
) -> Embedded:
    """Run stage 1. Raises BudgetExceeded, with nothing committed, if too many payloads are bad.

    `for_training` refuses, before any work, a table without labels in each split. `retry` tries
    the payloads in quarantine again, and lists what could be embedded as patches. `confirm` is
    called before anything is changed, and before the snapshot is committed; it may raise.
    """

    def make(run: Run | None) -> Plan:
        plan = plan_embedding(pipeline, run=run)
        if for_training:
            check_trainable(plan, pipeline=pipeline)
        return plan

    return embed_table(
        make,
        store=pipeline.open_store(),
        retry=retry,
        confirm=confirm,
        outcome=outcome or Outcome(pipeline=pipeline.name),
        connection=connection,
        console=console,
    )


def embed_table(
    make: Callable[[Run | None], Plan],
    *,
    store: Store,
    connection: Connection,
    console: Console,
    retry: bool = False,
    to_train: bool = True,
    confirm: Callable[[], None] | None = None,
    outcome: Outcome | None = None,
) -> Embedded:
    """Stage 1 for a plan that `make` makes, and makes again if what it relies on was deleted.

    As `embed`, which does it for a pipeline. What stands on two sides of a split, and which classes
    have no training row, is told of a table `to_train` on alone.
    """
    plan = make(_tasks(connection))
    print_changed_code(plan, store=store, console=console)
    with _announced(
        plan, make=make, store=store, retry=retry, confirm=confirm, console=console
    ) as held:
        plan, lease = held
        return _embed(
            plan,
            store=store,
            lease=lease,
            retry=retry,
            to_train=to_train,
            confirm=confirm,
            outcome=outcome or Outcome(pipeline=plan.name),
            connection=connection,
            console=console,
        )


@contextmanager
def _announced(
    plan: Plan,
    *,
    make: Callable[[Run | None], Plan],
    store: Store,
    retry: bool,
    confirm: Callable[[], None] | None,
    console: Console,
) -> Iterator[tuple[Plan, Lease | None]]:
    """Keep what the plan relies on from being collected; a new plan, if some of it was.

    Nobody is told of a plan that leads to the latest snapshot: what that names is kept anyway.
    """
    latest = plan.previous
    idle = not plan.work and latest is not None and draft_snapshot(plan).id == latest.id
    if idle and not retry:
        yield plan, None
        return
    if confirm is not None:
        confirm()
    encoders = {part.encoder_fingerprint for part in plan.modalities.values()}
    try:
        with announce_job(
            store.storage,
            encoders=encoders,
            what=f"embed {plan.name}",
            on_wait=lambda who: console.print(f"[bold]embed[/bold]    waiting for {escape(who)}"),
        ) as lease:
            if not is_there(plan, store=store):
                plan = make(None)
            yield plan, lease
    except OSError as error:
        raise StageError(str(error)) from error


def _embed(
    plan: Plan,
    *,
    store: Store,
    lease: Lease | None,
    retry: bool,
    to_train: bool,
    confirm: Callable[[], None] | None,
    outcome: Outcome,
    connection: Connection,
    console: Console,
) -> Embedded:
    """Do what is planned, and commit the snapshot."""
    outcome.rows = plan.rows
    console.print(
        f"[bold]embed[/bold]    {several(plan.rows, 'sample')} in "
        f"{several(len(plan.samples), 'shard')}, {several(len(plan.modalities), 'modality')} "
        f"(read in {duration(plan.seconds)})"
    )
    if plan.work:
        print_work(plan, console=console)
    # There is no work if splits alone have changed, and all to tell.
    if to_train and lease is not None:
        print_repeats(plan, console=console)
        print_shares(plan, console=console)
        print_untrained(plan, console=console)
    try:
        write_samples(plan, store=store, run=_tasks(connection))
        if plan.work:
            _compute(plan, store=store, outcome=outcome, connection=connection, console=console)
        if retry:
            plan = _try_again(plan, store=store, connection=connection, console=console)
        quarantine = count_quarantine(plan, store=store)
        snapshot = make_snapshot(plan, store=store, quarantine=quarantine)
        previous, statistics = plan.previous, None
        if previous is None or previous.id != snapshot.id:
            statistics = keep_statistics(store, snapshot, previous=previous)
            refuse_broken_snapshot(
                snapshot, quarantine=quarantine, statistics=statistics.modalities
            )
    except BrokenEncoder as error:
        raise StageError(str(error)) from error
    except (SourceError, OSError, ImportError, MemoryError) as error:
        raise StageError(f"{error}; run again, and only what is not done will be") from error
    if lease is not None:
        lease.check()
        if confirm is not None:
            confirm()
    limit = plan.dataset.max_bad_fraction
    if any(item.fraction > limit for item in quarantine.values()):
        store.keep_attempt(snapshot)
        raise BudgetExceeded(quarantine, rows=read_quarantine(store, snapshot), limit=limit)
    committed = store.commit(snapshot)
    bad = sum(item.bad for item in quarantine.values())
    outcome.on_snapshot(snapshot, quarantined=bad)
    if not plan.work and not retry:
        console.print("         nothing to do: every embedding is in the store")
    if bad:
        parts = ", ".join(f"{q.modality} {q.bad}" for q in quarantine.values() if q.bad)
        console.print(f"         {several(bad, 'bad payload')} in quarantine ({parts})")
        if plan.work or retry:
            console.print(quarantine_table(quarantine, rows=read_quarantine(store, snapshot)))
    console.print(f"         snapshot {snapshot.id[:12]}{'' if committed else ', unchanged'}")
    drift = find_drift(store, snapshot, previous=previous, statistics=statistics)
    if drift is not None:
        print_drift(drift, console=console)
        if previous is not None:
            print_label_changes(
                label_changes(store, before=previous, after=snapshot),
                samples=snapshot.rows,
                console=console,
            )
    return Embedded(
        plan=plan,
        snapshot=snapshot,
        quarantine=quarantine,
        changed=bool(plan.work) or committed,
    )


def _try_again(plan: Plan, *, store: Store, connection: Connection, console: Console) -> Plan:
    """The plan with patches over its shards, of the quarantined payloads that can be used now."""
    from features.job import embed as run_job

    work = retry_work(plan, store=store)
    tried = sum(len(one.only) for one in work)
    if not work:
        console.print("         nothing to try again: no payload is in quarantine")
        return plan
    with progress(console) as bar:
        task = bar.add_task("retry", total=len(work), note=several(tried, "payload"))
        connection.open()
        results = run_job(
            plan,
            storage=store.storage,
            work=work,
            on_shard=lambda _: bar.update(task, advance=1),
        )
    embedded = sum(result.embedded for result in results)
    console.print(
        f"         tried {several(tried, 'payload')} in quarantine again: "
        f"{count(embedded)} embedded, {count(tried - embedded)} still bad"
    )
    return with_patches(plan, results)


def _compute(
    plan: Plan, *, store: Store, outcome: Outcome, connection: Connection, console: Console
) -> None:
    from features.job import embed as run_job

    begun = time.perf_counter()
    with progress(console) as bar:
        task = bar.add_task("embed", total=len(plan.work), note="starting Ray")
        rows = 0

        def on_shard(result: ShardResult) -> None:
            nonlocal rows
            rows += result.embedded + result.copied
            outcome.on_shard(result)
            bar.update(task, advance=1, note=f"{count(rows)} rows")

        connection.open()
        results = run_job(plan, storage=store.storage, on_shard=on_shard)
    embedded = sum(result.embedded for result in results)
    copied = sum(result.copied for result in results)
    parts = [f"{several(embedded, 'payload')} embedded"]
    if copied:
        parts.append(f"{count(copied)} copied")
    console.print(
        f"         {', '.join(parts)}, {several(len(results), 'shard')} written in "
        f"{duration(time.perf_counter() - begun)}"
    )
