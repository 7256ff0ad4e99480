"""Stage 2: fit the candidates that are not yet fitted to a snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from features.by_name import code_digest
from features.encoders import EncoderSpec
from features.encoders.fitted import FittedSpec
from features.lease import announce_job
from features.sample_rows import SampleColumns
from features.snapshot import ModalityShards, Snapshot
from features.store import Store
from training.agenda import Due, Standing
from training.candidate import CandidateRecord
from training.evaluation.metrics import metrics_of
from training.passes import divide, names_of
from training.search.walk import Search
from training.tuning.spec import FinetuneSpec
from workflows.cluster import Connection
from workflows.console import duration, progress, several
from workflows.outcome import Outcome
from workflows.pipeline import Pipeline, StageError
from workflows.plan import warn_of_code
from workflows.promotion.outlook import limits_without_rows
from workflows.search import described, standing


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What stage 2 leaves behind."""

    records: tuple[CandidateRecord, ...]
    """In the order of the YAML."""
    searches: tuple[Search, ...]
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
            target_kind=spec.task.target_kind,
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


def train(
    pipeline: Pipeline,
    *,
    snapshot: Snapshot,
    connection: Connection,
    console: Console,
    confirm: Callable[[], None] | None = None,
    outcome: Outcome | None = None,
) -> Trained:
    """Run stage 2.

    StageError if not a single candidate could be fitted, or none could be promoted afterwards.
    `confirm` is called before anything is fitted; it may raise.
    """
    before = standing(pipeline, snapshot=snapshot)
    print_standing(before, workers=pipeline.spec.training.workers, console=console)
    changed = before.next() is not None
    if changed:
        _check_metric(pipeline, snapshot=snapshot)
        print_outlook(pipeline, snapshot=snapshot, console=console)
        if confirm is not None:
            confirm()
        done = _fit(
            pipeline,
            snapshot=snapshot,
            outcome=outcome or Outcome(pipeline=pipeline.name),
            connection=connection,
            console=console,
        )
        for search in done.searches:
            console.print(f"[bold]search[/bold]   {escape(described(search))}")
    else:
        done = before
        console.print("         nothing to do: every candidate is in the store")
    found = trained(done, changed=changed)
    failed = [record for record in found.records if record.status == "failed"]
    for record in failed:
        failure = record.failure or {}
        console.print(
            f"         [red]{record.name} failed[/red]: {escape(str(failure.get('reason')))} "
            f"(epoch {failure.get('epoch')}, step {failure.get('step')})"
        )
    if len(failed) == len(found.records):
        raise StageError("no candidate could be fitted")
    return found


def trained(standing: Standing, *, changed: bool) -> Trained:
    """What stage 2 leaves behind when nothing is to be fitted any more."""
    records = tuple(c.record for c in standing.candidates if c.record is not None)
    assert len(records) == len(standing.candidates), "a candidate has no record after the training"
    return Trained(records=records, searches=tuple(standing.searches), changed=changed)


def print_standing(found: Standing, *, workers: int | None = None, console: Console) -> None:
    """What there is, what is to be fitted, and how far the searches have come."""
    waiting = found.rounds[-1].missing()
    known = several(len(found.candidates), "candidate")
    console.print(
        f"[bold]train[/bold]    {known}, {len(waiting)} to fit"
        + (f" on {several(workers, 'worker')}" if workers and found.next() else "")
        + (f": {escape(', '.join(c.spec.name for c in waiting))}" if waiting else "")
    )
    for candidate in found.candidates:
        now, record = code_digest(type(candidate.spec)), candidate.record
        if record is not None and record.code is not None and record.code != now:
            warn_of_code(
                f"candidates.{candidate.spec.name}",
                name=candidate.spec.type,
                version=candidate.spec.version,
                made="it was fitted",
                console=console,
            )
    for search in found.searches:
        console.print(f"[bold]search[/bold]   {escape(described(search))}")


def planned_passes(due: Due) -> list[str]:
    """How the candidates that a round has to fit are divided into passes, in lines of text.

    A job that goes on after an interruption begins with the group that it was at, and one whose
    embeddings do not fit into memory fits each alone.
    """
    passes = divide(due.missing(), training=due.training)
    return list(described_passes(names_of(passes.together), apart=names_of(passes.apart)))


def described_passes(
    groups: Sequence[Sequence[str]], *, apart: Sequence[Sequence[str]]
) -> Iterator[str]:
    """What single workers fit side by side, what is fitted in one pass over the data by all, and
    what takes a pass of its own.
    """
    if apart:
        yield f"side by side, each by one worker: {' | '.join(map(', '.join, apart))}"
    for together in groups:
        if len(together) > 1:
            yield f"together, in one pass: {', '.join(together)}"
    alone = [together[0] for together in groups if len(together) == 1]
    if alone and (apart or len(alone) < len(groups)):
        yield f"in turn, each on all workers: {', '.join(alone)}"


def print_outlook(pipeline: Pipeline, *, snapshot: Snapshot, console: Console) -> None:
    """A warning for each limit that the gate will refuse whatever is fitted."""
    found = limits_without_rows(
        pipeline.open_store(), snapshot=snapshot, spec=pipeline.spec.promotion
    )
    for i, text in found:
        console.print(
            f"[bold red]warning[/bold red]  promotion.limits.{i}: {escape(text)}", soft_wrap=True
        )


def _check_metric(pipeline: Pipeline, *, snapshot: Snapshot) -> None:
    """StageError if what is to decide is not taken of so many classes as the table has."""
    from training.data.targets import Untrainable
    from training.tasks import output_count

    task, metric = pipeline.spec.task, pipeline.metric
    if not metric.of:
        return
    samples = pipeline.open_store().read_samples(
        snapshot, columns=[f"target.{name}" for name in task.targets]
    )
    try:
        count = output_count(task, {name: samples[f"target.{name}"] for name in task.targets})
    except Untrainable as error:
        raise StageError(str(error)) from error
    if not metric.applies(count):
        others = [m.name for m in metrics_of(task).values() if m.applies(count)]
        raise StageError(
            f"promotion.metric: {metric.name!r} is taken of {metric.of}, and the table has "
            f"{count}; take another in {pipeline.path.name}: {', '.join(others)}"
        )


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
    outcome: Outcome,
    connection: Connection,
    console: Console,
) -> Standing:
    """Fit all that is not done in one job; where that leaves the pipeline."""
    from training.job import TrainingError, fit
    from training.progress import FitProgress, RoundProgress
    from training.tuning.payloads import PayloadSource

    begun = time.perf_counter()
    store: Store = pipeline.open_store()
    with (
        _announced(store, snapshot=snapshot, pipeline=pipeline, console=console),
        progress(console) as bar,
    ):
        task = bar.add_task("train", total=None, note="starting workers")
        finished: set[str] = set()
        known = 0

        def on_round(update: RoundProgress) -> None:
            nonlocal known
            known = len(finished) + sum(map(len, (*update.apart, *update.groups)))
            bar.update(task, total=known, note=update.title)
            if update.search is not None:
                console.print(f"         {escape(f'{update.search}: {update.title}')}")
            for line in described_passes(update.groups, apart=update.apart):
                console.print(f"         {escape(line)}")

        def on_progress(update: FitProgress) -> None:
            if update.done:
                finished.add(update.candidate)
                outcome.on_fitted(update.candidate, update.failure)
            bar.update(
                task, completed=len(finished), note=f"{update.candidate}, epoch {update.epoch}"
            )
            if update.done and not console.is_terminal:
                console.print(f"         {update.candidate} {escape(update.failure or 'fitted')}")

        try:
            connection.open()
            done = fit(
                store_root=store.storage.root,
                snapshot_id=snapshot.id,
                agenda=pipeline.agenda,
                payloads=PayloadSource(
                    source=pipeline.open_source(),
                    columns={m: f.payload_columns for m, f in pipeline.spec.features.items()},
                    key_by=pipeline.spec.dataset.payload_key,
                    limits=pipeline.spec.dataset.limits,
                )
                if any(isinstance(spec, FinetuneSpec) for spec in pipeline.spec.candidates)
                else None,
                on_round=on_round,
                on_progress=on_progress,
                on_wait=lambda text: console.print(f"         {escape(text)}"),
            )
        except TrainingError as error:
            raise StageError(str(error)) from error
    console.print(
        f"         {several(len(finished), 'candidate')} fitted in "
        f"{duration(time.perf_counter() - begun)}"
    )
    return done
