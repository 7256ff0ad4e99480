"""The three stages one after another, each of which does only what is not done, and the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console

from features.store import Snapshot, Store, vectors
from training.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from training.candidate import CandidateRecord, read_predictions
from workflows.cluster import Connection
from workflows.console import count, duration, progress
from workflows.embed import embed, open_store, plan_embedding, print_work
from workflows.pipeline import Pipeline, StageError, load_pipeline
from workflows.promote import Promotion, choose_winner, promote
from workflows.runs import without_passwords
from workflows.tracking import log_report
from workflows.train import candidate_table, last_snapshot, planned, train

DEMO_RECIPE = "digits.yaml"


def run(pipeline: Pipeline, *, console: Console) -> Promotion:
    """Embed, train, promote and report; an unchanged world costs seconds and changes nothing."""
    begun = time.perf_counter()
    with Connection() as connection:
        embedded = embed(pipeline, connection=connection, console=console)
        snapshot = embedded.snapshot
        trained = train(pipeline, snapshot=snapshot, connection=connection, console=console)
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
    print_work(plan, console=console)
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
        dry_run=True,
    )
    path = write_report(pipeline, snapshot=snapshot, records=records, promotion=promotion, out=out)
    console.print(f"report   {path}")


def write_report(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    promotion: Promotion,
    out: Path | None = None,
) -> Path:
    """Write the HTML report whole, and keep it with the training's run in MLflow."""
    from workflows.collect import collect
    from workflows.registry import git_commit
    from workflows.report import render

    data = collect(
        pipeline=pipeline,
        store=open_store(pipeline),
        snapshot=snapshot,
        records=records,
        promotion=promotion,
        git_commit=git_commit(pipeline.folder),
    )
    path = (out or pipeline.report_path).absolute()
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(render(data))
    temporary.replace(path)
    if promotion.parent is not None:
        log_report(path, uri=pipeline.tracking_uri, run=promotion.parent)
    return path


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
    console.print(
        f"[bold]promote[/bold]  {pipeline.model} at {without_passwords(pipeline.tracking_uri)}"
    )
    promotion = promote(
        pipeline=pipeline,
        store=open_store(pipeline),
        snapshot=snapshot,
        records=records,
        dry_run=dry_run,
        on_event=lambda text: console.print(f"         {text}"),
    )
    console.print(f"         {promotion.detail}")
    return promotion


def _since(begun: float) -> str:
    return duration(time.perf_counter() - begun)


def _summary(
    pipeline: Pipeline,
    *,
    records: Sequence[CandidateRecord],
    promotion: Promotion,
    console: Console,
) -> None:
    """The candidates, what fusion gains, the champion, and where to look further."""
    store = open_store(pipeline)
    right = {r.name: answers_on_test(store, record=r) for r in records if r.status == "fitted"}
    accuracy = {name: bootstrap_interval(answers) for name, answers in right.items()}
    console.print(candidate_table(records, test=accuracy, winner=promotion.winner))
    gain = fusion_gain(records, right=right)
    if gain is not None:
        console.print(
            f"fusion   {gain.fusion} beats {gain.single}, the best single modality, by "
            f"{gain.interval.mean:+.3f} [{gain.interval.low:+.3f}, {gain.interval.high:+.3f}] "
            "on the test split"
            if gain.interval.low > 0
            else f"fusion   {gain.fusion} against {gain.single}, the best single modality: "
            f"{gain.interval.mean:+.3f} [{gain.interval.low:+.3f}, {gain.interval.high:+.3f}] "
            "on the test split, which is no clear gain"
        )
    verdict = promotion.verdict
    if promotion.champion_after is None:
        console.print(f"champion [bold]none yet[/bold] of {promotion.model}")
    elif promotion.promoted and verdict is not None:
        console.print(
            f"champion [bold green]{promotion.model} version {promotion.champion_after}"
            f"[/bold green] ({promotion.winner}), test accuracy {verdict.accuracy:.3f} "
            f"[{verdict.accuracy_low:.3f}, {verdict.accuracy_high:.3f}]"
        )
    else:
        console.print(
            f"champion [bold]{promotion.model} version {promotion.champion_after}[/bold] stays"
        )
    console.print(f"report   {pipeline.report_path}", soft_wrap=True)
    uri = without_passwords(pipeline.tracking_uri)
    shown = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    console.print(f"MLflow   {shown}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class FusionGain:
    """What the best fusion gains over the best single modality, row by row on the test split."""

    fusion: str
    single: str
    interval: Interval


def fusion_gain(
    records: Sequence[CandidateRecord], *, right: Mapping[str, np.ndarray]
) -> FusionGain | None:
    """Compare the best of both kinds, each chosen on the validation split; None if one lacks."""
    fitted = [record for record in records if record.name in right]
    singles = [record for record in fitted if len(record.modalities) == 1]
    fusions = [record for record in fitted if len(record.modalities) > 1]
    if not singles or not fusions:
        return None
    fusion, single = choose_winner(fusions).name, choose_winner(singles).name
    return FusionGain(
        fusion=fusion,
        single=single,
        interval=paired_bootstrap(right[fusion], right[single]),
    )


def answers_on_test(store: Store, *, record: CandidateRecord) -> np.ndarray:
    """Whether each labelled test row was answered rightly, float64 `[N]`, in row order."""
    table = read_predictions(store, record.fingerprint)
    table = table.filter(pc.equal(table["split"], "test"))
    probabilities = vectors(table["probabilities"])
    order = np.argsort(table["row"].to_numpy())
    right = probabilities.argmax(axis=1) == table["target"].to_numpy()
    return right[order].astype(np.float64)
