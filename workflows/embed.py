"""Stage 1: plan, compute the missing shards, check the bad-row budget, commit the snapshot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from features.commit import QuarantineCount, count_quarantine, make_snapshot, refuse_broken
from features.embedding import BrokenEncoder, ShardResult
from features.kept_statistics import keep_statistics
from features.lease import Lease, announce_job
from features.plan import Plan, draft_snapshot, is_there, make_plan, write_samples
from features.retry import retry_work, with_patches
from features.scan_units import Run
from features.snapshot import Snapshot
from features.sources import SourceError
from features.spec import SPLITS
from features.storage import open_storage
from features.store import Store
from workflows.cluster import Connection
from workflows.console import count, duration, progress, several, share, size, table
from workflows.drift import find_drift, print_drift
from workflows.pipeline import Pipeline, StageError
from workflows.quarantine import group_reasons
from workflows.repeats import print_repeats


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
            + (" (is its column the right one?)" if item.bad == item.payloads else "")
            for item in over
        ]
        super().__init__(
            f"more bad payloads than max_bad_fraction {limit:g} allows: {'; '.join(parts)}"
        )
        self.counts = counts
        self.rows = rows


def open_store(pipeline: Pipeline) -> Store:
    """The pipeline's store; ConfigurationError if there can be none at its place."""
    try:
        return Store(open_storage(pipeline.store_root))
    except (ValueError, OSError, ImportError) as error:
        raise pipeline.error(("store",), str(error)) from error


def plan_embedding(pipeline: Pipeline, *, run: Run | None = None) -> Plan:
    """Compare the table with the store; ConfigurationError for what is not as described.

    `run` reads many changed files beside one another.
    """
    source = pipeline.open_source()
    spec = pipeline.spec
    for modality, feature in spec.features.items():
        try:
            feature.encoder.fingerprint()
        except (ValueError, OSError, ImportError) as error:
            raise pipeline.error(("features", modality, "encoder"), str(error)) from error
    try:
        return make_plan(
            name=pipeline.name,
            source=source,
            dataset=spec.dataset,
            features=spec.features,
            target=spec.task.target,
            target_kind=spec.task.target_kind,
            store=open_store(pipeline),
            run=run,
        )
    except SourceError as error:
        raise pipeline.error(("dataset",), str(error)) from error
    except OSError as error:
        raise StageError(str(error)) from error


def _tasks(connection: Connection) -> Run:
    """Functions called by Ray, which is started only if any is."""

    def run(function: Callable[[Any], Any], arguments: Sequence[Any]) -> Iterator[Any]:
        from features.job import in_tasks

        connection.open()
        return in_tasks(function, arguments)

    return run


def check_trainable(plan: Plan, *, pipeline: Pipeline) -> None:
    """Refuse, before any work, what cannot be trained: no labels in a split, too many workers."""
    workers, cpus = pipeline.spec.training.workers, os.cpu_count() or 1
    if workers > cpus and not os.environ.get("RAY_ADDRESS"):
        raise pipeline.error(
            ("training", "workers"),
            f"{workers} workers need a CPU each, and this machine has {cpus}; lower it, or name "
            "a cluster in RAY_ADDRESS",
        )
    lacking = [split for split in SPLITS if not plan.labelled.get(split)]
    if lacking:
        splits = ", ".join(f"{name or 'no split'} {count(n)}" for name, n in plan.splits.items())
        raise pipeline.error(
            ("dataset", "split"),
            f"no sample with a label in {' and '.join(lacking)}; each split needs some "
            f"(samples: {splits}; with a label: {count(sum(plan.labelled.values()))})",
        )


def embed(
    pipeline: Pipeline,
    *,
    connection: Connection,
    console: Console,
    for_training: bool = False,
    retry: bool = False,
) -> Embedded:
    """Run stage 1. Raises BudgetExceeded, with nothing committed, if too many payloads are bad.

    `for_training` refuses, before any work, a table without labels in each split and sequences
    that no candidate can take. `retry` tries the payloads in quarantine again, and lists what
    could be embedded as patches.
    """
    if for_training:
        pipeline.refuse_sequences()
    plan = plan_embedding(pipeline, run=_tasks(connection))
    if for_training:
        check_trainable(plan, pipeline=pipeline)
    store = open_store(pipeline)
    with _announced(plan, pipeline=pipeline, store=store, retry=retry, console=console) as held:
        plan, lease = held
        return _embed(
            plan, store=store, lease=lease, retry=retry, connection=connection, console=console
        )


@contextmanager
def _announced(
    plan: Plan, *, pipeline: Pipeline, store: Store, retry: bool, console: Console
) -> Iterator[tuple[Plan, Lease | None]]:
    """Keep what the plan relies on from being collected; a new plan, if some of it was.

    Nobody is told of a plan that leads to the latest snapshot: what that names is kept anyway.
    """
    latest = plan.previous
    idle = not plan.work and latest is not None and draft_snapshot(plan).id == latest.id
    if idle and not retry:
        yield plan, None
        return
    encoders = {part.encoder_fingerprint for part in plan.modalities.values()}
    try:
        with announce_job(
            store.storage,
            encoders=encoders,
            what=f"embed {plan.name}",
            on_wait=lambda who: console.print(f"[bold]embed[/bold]    waiting for {escape(who)}"),
        ) as lease:
            if not is_there(plan, store=store):
                plan = plan_embedding(pipeline)
            yield plan, lease
    except OSError as error:
        raise StageError(str(error)) from error


def _embed(
    plan: Plan,
    *,
    store: Store,
    lease: Lease | None,
    retry: bool,
    connection: Connection,
    console: Console,
) -> Embedded:
    """Do what is planned, and commit the snapshot."""
    console.print(
        f"[bold]embed[/bold]    {several(plan.rows, 'sample')} in "
        f"{several(len(plan.samples), 'shard')}, {several(len(plan.modalities), 'modality')} "
        f"(read in {duration(plan.seconds)})"
    )
    if plan.work:
        print_work(plan, console=console)
        print_repeats(plan, console=console)
    try:
        write_samples(plan, store=store, run=_tasks(connection))
        if plan.work:
            _compute(plan, store=store, connection=connection, console=console)
        if retry:
            plan = _try_again(plan, store=store, connection=connection, console=console)
        quarantine = count_quarantine(plan, store=store)
        snapshot = make_snapshot(plan, store=store, quarantine=quarantine)
        previous, statistics = plan.previous, None
        if previous is None or previous.id != snapshot.id:
            statistics = keep_statistics(store, snapshot, previous=previous)
            refuse_broken(snapshot, quarantine=quarantine, statistics=statistics.modalities)
    except BrokenEncoder as error:
        raise StageError(str(error)) from error
    except (SourceError, OSError, ImportError, MemoryError) as error:
        raise StageError(f"{error}; run again, and only what is not done will be") from error
    if lease is not None:
        lease.check()
    limit = plan.dataset.max_bad_fraction
    if any(item.fraction > limit for item in quarantine.values()):
        store.keep_attempt(snapshot)
        raise BudgetExceeded(quarantine, rows=store.read_quarantine(snapshot), limit=limit)
    committed = store.commit(snapshot)
    bad = sum(item.bad for item in quarantine.values())
    if not plan.work and not retry:
        console.print("         nothing to do: every embedding is in the store")
    if bad:
        parts = ", ".join(f"{q.modality} {q.bad}" for q in quarantine.values() if q.bad)
        console.print(f"         {several(bad, 'bad payload')} in quarantine ({parts})")
        if plan.work or retry:
            console.print(quarantine_table(quarantine, rows=store.read_quarantine(snapshot)))
    console.print(f"         snapshot {snapshot.id[:12]}{'' if committed else ', unchanged'}")
    drift = find_drift(store, snapshot, previous=previous, statistics=statistics)
    if drift is not None:
        print_drift(drift, console=console)
    return Embedded(
        plan=plan,
        snapshot=snapshot,
        quarantine=quarantine,
        changed=bool(plan.work) or committed,
    )


def print_work(plan: Plan, *, console: Console) -> None:
    """What would be embedded, modality by modality in rows, how much is reused, what it costs."""
    made = table(
        "modality", "encoder", "payloads", "reused", "copied", "to embed", "why",
        numbers=("payloads", "reused", "copied", "to embed"), wraps=("why",),
    )  # fmt: skip
    parts = plan.modalities.values()
    for part in parts:
        new = f"[bold]{count(part.to_embed)}[/bold]" if part.to_embed else "0"
        numbers = [count(n) for n in (part.payloads, part.reused, part.copied)]
        encoder = part.feature.encoder.type
        made.add_row(part.modality, encoder, *numbers, new, escape(part.reason))
    console.print(made)
    payloads = sum(part.payloads for part in parts)
    kept = sum(part.reused + part.copied for part in parts)
    to_embed = sum(part.to_embed for part in parts)
    missing = sum(part.missing for part in parts)
    said = (
        f"{count(to_embed)} of {count(payloads)} payloads to embed, {share(kept, payloads)} reused"
    )
    changing = [part for part in parts if part.reason]
    if changing and all(part.bytes is not None for part in changing):
        written = sum(part.bytes or 0 for part in changing)
        seconds = sum(part.seconds or 0.0 for part in changing)
        said += f"; about {size(written)} to write, {duration(seconds)} on one worker"
    said = said if plan.work else "nothing to embed"
    console.print(f"         {said} ({count(missing)} are missing)", soft_wrap=True)
    print_cautions(plan, console=console)


def print_cautions(plan: Plan, *, console: Console) -> None:
    """What the encoders that have work to do say of it; nothing where other machines do the work.

    One line for each sentence, naming all modalities that it is about.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    about: dict[str, list[str]] = {}
    for part in plan.modalities.values():
        said = part.feature.encoder.caution() if part.to_embed else None
        if said is not None:
            about.setdefault(said, []).append(part.modality)
    for said, modalities in about.items():
        console.print(
            f"[bold red]warning[/bold red]  {escape(', '.join(modalities))}: {escape(said)}",
            soft_wrap=True,
        )


def quarantine_table(counts: Mapping[str, QuarantineCount], *, rows: pa.Table) -> Table:
    """Bad payloads by modality, stage and kind of reason, with the first samples of each."""
    made = table(
        "modality", "stage", "reason", "rows", "share", "samples",
        numbers=("rows", "share"), wraps=("reason", "samples"),
    )  # fmt: skip
    for group in group_reasons(rows):
        more = ", …" if group.rows > len(group.samples) else ""
        made.add_row(
            group.modality,
            group.stage,
            escape(group.reason),
            count(group.rows),
            share(group.rows, counts[group.modality].payloads),
            escape(", ".join(group.samples)) + more,
        )
    return made


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


def _compute(plan: Plan, *, store: Store, connection: Connection, console: Console) -> None:
    from features.job import embed as run_job

    begun = time.perf_counter()
    with progress(console) as bar:
        task = bar.add_task("embed", total=len(plan.work), note="starting Ray")
        rows = 0

        def on_shard(result: ShardResult) -> None:
            nonlocal rows
            rows += result.embedded + result.copied
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
