"""Stage 2: fit the candidates that are not yet fitted to a snapshot, and show them side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from features.encoders import EncoderSpec
from features.encoders.fitted import FittedSpec
from features.lease import announce_job
from features.sample_rows import SampleColumns
from features.snapshot import ModalityShards, Snapshot
from features.store import Store
from training.candidate import CandidateRecord, PlannedCandidate, plan_candidates
from workflows.cluster import Connection
from workflows.console import count, duration, progress, several, table
from workflows.findings import Estimate
from workflows.pipeline import Pipeline, StageError


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What stage 2 leaves behind."""

    records: tuple[CandidateRecord, ...]
    """In the order of the YAML."""
    changed: bool
    """Whether anything was fitted."""


def last_snapshot(pipeline: Pipeline) -> Snapshot:
    """The snapshot that stage 1 committed last; StageError if it is not of this pipeline."""
    store = pipeline.open_store()
    snapshot = store.latest(pipeline.name)
    command = f"sensorium embed {pipeline.path.name}"
    if snapshot is None:
        raise StageError(f"{pipeline.name} has no snapshot yet; run `{command}` first")
    spec = pipeline.spec
    same = set(spec.features) == set(snapshot.modalities) and all(
        _is_of(snapshot.modalities[modality], encoder=feature.encoder)
        for modality, feature in spec.features.items()
    )
    record = store.read_scan(pipeline.name)
    if record is not None and spec.dataset.split.stratify is None:
        # Of what the table was scanned for: by which columns, and divided how.
        columns = SampleColumns(
            dataset=spec.dataset,
            payloads={m: feature.payload_columns for m, feature in spec.features.items()},
            target=spec.task.target,
        )
        same = same and record.scan.columns == columns.identity()
    if not same or (snapshot.target, snapshot.slices) != (spec.task.target, spec.dataset.slices):
        raise StageError(
            "the last snapshot is of other features, columns, splits, slices or targets; "
            f"run `{command}` first"
        )
    return snapshot


def _is_of(part: ModalityShards, *, encoder: EncoderSpec) -> bool:
    """Whether shards are of an encoder, or of what it became when it was fitted."""
    if isinstance(encoder, FittedSpec) and encoder.needs_fit:
        return encoder.is_fitted_to(part.encoder)
    return encoder.fingerprint() == part.encoder_fingerprint


def planned(pipeline: Pipeline, *, snapshot: Snapshot) -> list[PlannedCandidate]:
    """The pipeline's candidates over a snapshot: which are fitted, which are not."""
    spec = pipeline.spec
    return plan_candidates(
        pipeline.open_store(),
        snapshot=snapshot,
        task=spec.task,
        candidates=spec.candidates,
        training=spec.training,
    )


def train(
    pipeline: Pipeline, *, snapshot: Snapshot, connection: Connection, console: Console
) -> Trained:
    """Run stage 2. StageError if not a single candidate could be fitted."""
    before = planned(pipeline, snapshot=snapshot)
    missing = [candidate for candidate in before if candidate.record is None]
    workers = pipeline.spec.training.workers
    console.print(
        f"[bold]train[/bold]    {several(len(before), 'candidate')}, {len(missing)} to fit"
        + (f" on {several(workers, 'worker')}" if missing else "")
    )
    if missing:
        _fit(
            pipeline,
            snapshot=snapshot,
            missing=len(missing),
            connection=connection,
            console=console,
        )
    else:
        console.print("         nothing to do: every candidate is in the store")
    done = planned(pipeline, snapshot=snapshot) if missing else before
    records = tuple(candidate.record for candidate in done if candidate.record is not None)
    assert len(records) == len(done), "a candidate has no record after the training"
    failed = [record for record in records if record.status == "failed"]
    for record in failed:
        failure = record.failure or {}
        console.print(
            f"         [red]{record.name} failed[/red]: {escape(str(failure.get('reason')))} "
            f"(epoch {failure.get('epoch')}, step {failure.get('step')})"
        )
    if len(failed) == len(records):
        raise StageError("no candidate could be fitted")
    return Trained(records=records, changed=bool(missing))


def candidate_table(
    records: Sequence[CandidateRecord],
    *,
    test: Mapping[str, Estimate],
    winner: str | None,
    confidence: float,
) -> Table:
    """The candidates side by side: what they are, and their accuracy with its interval."""
    interval = f"test, {confidence:.0%} interval"
    made = table(
        "candidate", "validation", interval, "parameters", "epochs", "time",
        numbers=("validation", interval, "parameters", "epochs", "time"),
    )  # fmt: skip
    for record in records:
        if record.status == "failed" or record.metrics is None:
            made.add_row(record.name, "", "failed", style="red")
            continue
        estimate = test[record.name]
        made.add_row(
            record.name,
            f"{record.metrics['validation']['accuracy']:.3f}",
            f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]",
            count(record.parameters),
            f"{len(record.epochs)}",
            duration(record.seconds),
            style="bold green" if record.name == winner else None,
        )
    return made


@contextmanager
def _announced(
    store: Store, *, snapshot: Snapshot, pipeline: Pipeline, console: Console
) -> Iterator[None]:
    """Keep the snapshot from being collected while it is trained on."""
    encoders = {part.encoder_fingerprint for part in snapshot.modalities.values()}
    with announce_job(
        store.storage,
        encoders=encoders,
        what=f"train {pipeline.name}",
        on_wait=lambda who: console.print(f"         waiting for {escape(who)}"),
    ):
        try:
            store.read_snapshot(snapshot.id)
        except FileNotFoundError:
            raise StageError(
                f"snapshot {snapshot.id} was deleted meanwhile by `sensorium store gc`, since a "
                "newer one is there; run again"
            ) from None
        yield


def _fit(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    missing: int,
    connection: Connection,
    console: Console,
) -> None:
    from training.job import FitProgress, TrainingError, fit

    begun = time.perf_counter()
    store: Store = pipeline.open_store()
    with (
        _announced(store, snapshot=snapshot, pipeline=pipeline, console=console),
        progress(console) as bar,
    ):
        task = bar.add_task("train", total=missing, note="starting workers")

        def on_progress(update: FitProgress) -> None:
            done = update.number - (0 if update.done else 1)
            bar.update(task, completed=done, note=f"{update.candidate}, epoch {update.epoch}")
            if update.done and not console.is_terminal:
                console.print(f"         {update.candidate} {escape(update.failure or 'fitted')}")

        try:
            connection.open()
            fit(
                store_root=store.storage.root,
                snapshot_id=snapshot.id,
                task=pipeline.spec.task,
                candidates=pipeline.spec.candidates,
                training=pipeline.spec.training,
                on_progress=on_progress,
            )
        except TrainingError as error:
            raise StageError(str(error)) from error
    console.print(
        f"         {several(missing, 'candidate')} fitted in "
        f"{duration(time.perf_counter() - begun)}"
    )
