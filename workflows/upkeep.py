"""The upkeep of a store: what it holds, whether it is whole, and what is deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from features.garbage import Garbage, collect_garbage
from features.lease import Announced
from features.snapshot import Snapshot
from features.storage import open_storage
from features.store import Store
from features.upkeep import StoreDamaged, inventory, read_pointers
from features.verification import Verification, verify
from workflows.console import count, progress, several, size, table
from workflows.inventory import SHOWN, encoders_table, kinds_table, snapshots_table
from workflows.pipeline import Pipeline, StageError, load_pipeline

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def find_store(place: str) -> tuple[Store, Pipeline | None]:
    """The store at a folder, file:// or s3:// URI, or of a pipeline's YAML file.

    BadParameter, which ends in exit code 2, or ConfigurationError if there is none.
    """
    if place.endswith((".yaml", ".yml")) or os.path.isfile(place):
        pipeline = load_pipeline(place)
        store = pipeline.open_store()
    else:
        pipeline = None
        try:
            store = Store(open_storage(place))
        except (ValueError, ImportError) as error:
            raise typer.BadParameter(str(error)) from error
    root = store.storage.root
    if "://" not in root and not os.path.isdir(root):
        raise typer.BadParameter(f"there is no store at {root}")
    return store, pipeline


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `12h`, `7d` or `2w`; BadParameter for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is no duration; write 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * UNITS[found[2]]


def list_store(store: Store, *, console: Console) -> bool:
    """Show what a store holds by kind, encoder and snapshot; False if a snapshot lacks shards."""
    _head(store, console=console)
    with _readable():
        found = inventory(store)
    if not found.kinds:
        console.print("         nothing: no job has written to it")
        return True
    console.print(kinds_table(found))
    if found.encoders:
        console.print(encoders_table(found))
    if found.snapshots:
        console.print(snapshots_table(found))
    free = [use.unreferenced for use in found.encoders.values() if use.unreferenced.files]
    if free:
        console.print(
            f"         named by no snapshot: {several(sum(a.files for a in free), 'shard')} of "
            f"embeddings ({size(sum(a.bytes for a in free))}); `sensorium store gc --dry-run` says "
            "what of them would go",
            soft_wrap=True,
        )
    lacking = [path for use in found.snapshots for path in use.lacking]
    if lacking:
        console.print(
            f"         [bold red]lost[/bold red]: {several(len(lacking), 'shard')} that snapshots "
            f"name, {lacking[0]} for one; embed again, which computes what is not there",
            soft_wrap=True,
        )
    _jobs(found.jobs, console=console)
    return not lacking


def verify_store(
    store: Store, pipeline: Pipeline | None, *, wanted: str | None, every: bool, console: Console
) -> bool:
    """Read the latest snapshots of a store (a pipeline's alone), or others; True if all is well.

    `wanted` is the id of a snapshot, or its beginning. BadParameter if there is none of it.
    """
    ids = wanted_snapshots(store, pipeline, wanted=wanted, every=every)
    _head(store, console=console)
    if not ids:
        console.print("         nothing to verify: there is no snapshot")
        return True
    good = True
    for id in ids:
        try:
            snapshot = store.read_snapshot(id)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            console.print(
                f"         snapshot {id[:12]} [bold red]cannot be read[/bold red]: "
                f"{escape(str(error))}",
                soft_wrap=True,
            )
            good = False
            continue
        found = _verify(store, snapshot, console=console)
        _say_verified(snapshot, found, console=console)
        good = good and not found.damages
    return good


def collect(
    store: Store,
    pipeline: Pipeline | None,
    *,
    keep: int,
    grace: float,
    candidates: bool,
    dry_run: bool,
    console: Console,
) -> Garbage:
    """Delete what no kept snapshot names and no job may need, and show it by kind."""
    _head(store, console=console)
    needed = None
    if candidates:
        if pipeline is None:
            raise typer.BadParameter(
                "--candidates needs a pipeline's YAML file in the place of a store, since the "
                "registry of its models says which candidates are registered"
            )
        needed = _needed_candidates(store, pipeline)
    with _readable(), progress(console) as bar:
        task = bar.add_task("collect", total=None, note="")
        found = collect_garbage(
            store,
            keep=keep,
            grace=grace,
            dry_run=dry_run,
            candidates=needed,
            on_deleted=lambda entry: bar.update(task, advance=1),
        )
    if found.kinds:
        made = table("kind", "files", "size", numbers=("files", "size"))
        for kind, amount in found.kinds.items():
            made.add_row(kind, count(amount.files), size(amount.bytes))
        console.print(made)
    said = "nothing to delete"
    if found.files:
        done = "would be deleted" if dry_run else "deleted"
        said = f"{several(found.files, 'file')} ({size(found.bytes)}) {done}"
    console.print(f"         {said}; {several(len(found.kept), 'snapshot')} kept")
    if found.spared.files:
        why = "too young, or may be needed by a running job" if found.jobs else "too young"
        console.print(
            f"         {several(found.spared.files, 'further shard')} "
            f"({size(found.spared.bytes)}) that no kept snapshot names: {why}"
        )
    if candidates and found.jobs:
        console.print("         candidates are left alone while a job runs")
    _jobs(found.jobs, console=console)
    return found


@contextmanager
def _readable() -> Iterator[None]:
    """What cannot be read in the store fails the command, and says what to do."""
    try:
        yield
    except StoreDamaged as error:
        raise StageError(str(error)) from error


def _head(store: Store, *, console: Console) -> None:
    console.print(f"[bold]store[/bold]    {escape(store.storage.root)}", soft_wrap=True)


def _jobs(jobs: Sequence[Announced], *, console: Console) -> None:
    for job in jobs:
        console.print(f"         at work: {escape(job.who)}", soft_wrap=True)


def wanted_snapshots(
    store: Store, pipeline: Pipeline | None, *, wanted: str | None, every: bool
) -> list[str]:
    """Ids of the snapshots that are meant: by the beginning of an id, all, or the latest ones."""
    if wanted is not None or every:
        there = sorted(
            name.removesuffix(".json")
            for name in store.storage.list("snapshots")
            if name.endswith(".json")
        )
        found = there if wanted is None else [id for id in there if id.startswith(wanted)]
        if wanted is not None and len(found) != 1:
            said = "several snapshots begin" if found else "no snapshot begins"
            raise typer.BadParameter(
                f"{said} with {wanted!r} in {store.storage.root}; `sensorium store ls` lists them"
            )
        return found
    if pipeline is not None:
        latest = store.latest(pipeline.name)
        if latest is None:
            raise typer.BadParameter(
                f"{pipeline.name} has no snapshot yet; run `sensorium embed {pipeline.path.name}`"
            )
        return [latest.id]
    with _readable():
        paths = read_pointers(store)
    return [path.removeprefix("snapshots/").removesuffix(".json") for path in sorted(paths)]


def _verify(store: Store, snapshot: Snapshot, *, console: Console) -> Verification:
    with progress(console) as bar:
        task = bar.add_task("verify", total=len(snapshot.samples), note="")
        return verify(store, snapshot, on_shard=lambda _: bar.update(task, advance=1))


def _say_verified(snapshot: Snapshot, found: Verification, *, console: Console) -> None:
    state = "[green]whole[/green]"
    if found.damages:
        state = f"[bold red]{several(len(found.damages), 'fault')}[/bold red]"
    console.print(
        f"         snapshot {snapshot.id[:12]} of {escape(snapshot.name)}: "
        f"{several(found.rows, 'sample')}, {several(found.files, 'file')} read, {state}"
    )
    if found.unsummed:
        console.print(
            f"         {several(found.unsummed, 'embedding shard')} without a checksum, written by "
            "an older version: finite, but not compared",
            soft_wrap=True,
        )
    if found.damages:
        for damage in found.damages[:SHOWN]:
            console.print(f"         [red]{escape(damage.path)}[/red]", soft_wrap=True)
            console.print(f"             {escape(damage.reason)}", soft_wrap=True)
        if len(found.damages) > SHOWN:
            console.print(f"         … {len(found.damages) - SHOWN} more")
        console.print(
            "         Move these files away and embed again: what is not there is computed."
        )


def _needed_candidates(
    store: Store, pipeline: Pipeline
) -> Callable[[Sequence[Snapshot]], Collection[str]]:
    """The candidates that kept snapshots or registered models need, given those snapshots."""
    from training.candidate import read_record

    registered = _registered_snapshots(pipeline)

    def needed(kept: Sequence[Snapshot]) -> Collection[str]:
        found = set()
        names = {e.path.split("/")[1] for e in store.storage.walk("candidates")}
        for name in names:
            record = read_record(store, name)
            if record is None:
                continue  # a training that was killed; its own grace period runs
            if record.snapshot in registered or any(
                set(record.modalities) <= set(snapshot.modalities)
                and snapshot.part(modalities=tuple(record.modalities)) == record.part
                for snapshot in kept
            ):
                found.add(name)
        return found

    return needed


def _registered_snapshots(pipeline: Pipeline) -> set[str]:
    """Ids of the snapshots that registered model versions of the pipeline's registry name."""
    from workflows.promotion.registry import tags_of
    from workflows.tracking import connected

    found: set[str] = set()
    with connected(pipeline.tracking_uri) as client:
        page = client.search_model_versions()
        while True:
            found.update(tags_of(v)["snapshot"] for v in page if "snapshot" in tags_of(v))
            if not page.token:
                return found
            page = client.search_model_versions(page_token=page.token)
