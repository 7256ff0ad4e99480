"""What stage 1 would do: found out, checked for what comes after it, and shown."""

from __future__ import annotations

import os

from rich.console import Console
from rich.markup import escape

from features.by_name import code_digest
from features.plan import Plan
from features.planning import make_plan
from features.scan_tasks import Run
from features.sources import SourceError
from features.spec import SPLITS
from features.store import Store
from workflows.console import count, duration, share, size, table
from workflows.pipeline import Pipeline, StageError


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
            store=pipeline.open_store(),
            run=run,
        )
    except SourceError as error:
        raise pipeline.error(("dataset",), str(error)) from error
    except OSError as error:
        raise StageError(str(error)) from error


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


def print_work(plan: Plan, *, console: Console) -> None:
    """What would be embedded, modality by modality in rows, how much is reused, what it costs."""
    made = table(
        "modality", "encoder", "payloads", "reused", "copied", "to embed", "why",
        numbers=("payloads", "reused", "copied", "to embed"), wraps=("why",), folds=("encoder",),
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


def print_changed_code(plan: Plan, *, store: Store, console: Console) -> None:
    """A warning for each encoder of the user's own whose code is not that of its shards."""
    for part in plan.modalities.values():
        spec = part.feature.encoder
        now = code_digest(type(spec))
        before = None if now is None else store.code_of(part.encoder_fingerprint)
        if before is not None and before != now:
            warn_of_code(
                f"features.{part.modality}",
                name=spec.type,
                version=spec.version,
                made="its embeddings were computed",
                console=console,
            )


def warn_of_code(where: str, *, name: str, version: int, made: str, console: Console) -> None:
    """A line that reminds of `version` where the code of a user's class has changed."""
    console.print(
        f"[bold yellow]code[/bold yellow]     {escape(where)}: the file of {escape(name)} has "
        f"changed since {made}, which is kept: if the change tells in the result, raise its "
        f"`version` (it is {version})",
        soft_wrap=True,
    )


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
