"""Stage 2: fit the candidates that are not yet fitted to a snapshot, and show them side by side."""

from __future__ import annotations

import math
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
from training.ensemble_spec import is_pending, with_members
from training.grouping import group
from training.metrics import Metric
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.tuning_spec import FinetuneSpec
from workflows.cluster import Connection
from workflows.console import count, duration, progress, several, table
from workflows.findings import Estimate, Lead
from workflows.pipeline import Pipeline, StageError
from workflows.search import described, searches


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


def planned(pipeline: Pipeline, *, snapshot: Snapshot) -> list[PlannedCandidate]:
    """The pipeline's candidates over a snapshot, then those that its searches have found: which are
    fitted, which are not. Of a search that is not over, what is to be fitted next; and no ensembles
    of what it will find.
    """
    spec, store, found = pipeline.spec, pipeline.open_store(), searches(pipeline, snapshot=snapshot)

    def plan(
        candidates: Sequence[CandidateSpec], *, training: TrainingSpec
    ) -> list[PlannedCandidate]:
        return plan_candidates(
            store, snapshot=snapshot, task=spec.task, candidates=candidates, training=training
        )

    over = {search.spec.name: search.candidates for search in found if search.round is None}
    known_members = with_members(spec.candidates, task=spec.task, searches=spec.search, found=over)
    own = plan([c for c in known_members if not is_pending(c)], training=spec.training)
    for search in found:
        if search.round is None:
            # What a candidate of the YAML's has too is fitted and compared once.
            known = {candidate.fingerprint for candidate in own}
            more = plan(search.candidates, training=spec.training)
            own += [candidate for candidate in more if candidate.fingerprint not in known]
        else:
            more = plan(search.round.candidates, training=search.round.training)
            own += [candidate for candidate in more if candidate.record is None]
    return own


def train(
    pipeline: Pipeline, *, snapshot: Snapshot, connection: Connection, console: Console
) -> Trained:
    """Run stage 2. StageError if not a single candidate could be fitted."""
    searched = _search(pipeline, snapshot=snapshot, connection=connection, console=console)
    before = planned(pipeline, snapshot=snapshot)
    missing = [candidate for candidate in before if candidate.record is None]
    workers = pipeline.spec.training.workers
    console.print(
        f"[bold]train[/bold]    {several(len(before), 'candidate')}, {len(missing)} to fit"
        + (f" on {several(workers, 'worker')}" if missing else "")
    )
    if missing:
        for line in passes(missing, training=pipeline.spec.training):
            console.print(f"         {escape(line)}")
        _fit(
            pipeline,
            snapshot=snapshot,
            candidates=[candidate.spec for candidate in before],
            training=pipeline.spec.training,
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
    return Trained(records=records, changed=bool(missing) or searched)


def _search(
    pipeline: Pipeline, *, snapshot: Snapshot, connection: Connection, console: Console
) -> bool:
    """Fit the rounds of the pipeline's searches until all are over; whether there were any."""
    searched = False
    while True:
        found = searches(pipeline, snapshot=snapshot, keep=True)
        search = next((search for search in found if search.round is not None), None)
        if search is None or search.round is None:
            break
        console.print(f"[bold]search[/bold]   {escape(described(search))}")
        of_round = plan_candidates(
            pipeline.open_store(),
            snapshot=snapshot,
            task=pipeline.spec.task,
            candidates=search.round.candidates,
            training=search.round.training,
        )
        _fit(
            pipeline,
            snapshot=snapshot,
            candidates=search.round.candidates,
            training=search.round.training,
            missing=sum(candidate.record is None for candidate in of_round),
            connection=connection,
            console=console,
        )
        searched = True
    for search in found:
        console.print(f"[bold]search[/bold]   {escape(described(search))}")
    return searched


def passes(missing: Sequence[PlannedCandidate], *, training: TrainingSpec) -> Iterator[str]:
    """What is fitted together in one pass over the data, and what takes a pass of its own."""
    groups = group(
        missing,
        specs=[candidate.spec for candidate in missing],
        modalities=[candidate.modalities for candidate in missing],
        training=training,
    )
    for together in groups:
        if len(together) > 1:
            yield f"together, in one pass: {', '.join(c.spec.name for c in together)}"
    alone = [together[0].spec.name for together in groups if len(together) == 1]
    if alone and len(alone) < len(missing):
        yield f"in turn, each on all workers: {', '.join(alone)}"


def candidate_table(
    records: Sequence[CandidateRecord],
    *,
    metric: Metric,
    test: Mapping[str, Estimate],
    leads: Mapping[str, Lead],
    winner: str | None,
    confidence: float,
) -> Table:
    """The candidates side by side: what they are, their metric with its interval, and how surely
    the winner is better.
    """
    interval, behind = f"test, {confidence:.0%} interval", "winner ahead by"
    made = table(
        "candidate", "validation", interval, behind, "parameters", "epochs", "time",
        numbers=("validation", interval, behind, "parameters", "epochs", "time"),
    )  # fmt: skip
    for record in records:
        if record.status == "failed" or record.metrics is None:
            made.add_row(record.name, "", "failed", style="red")
            continue
        estimate = test[record.name]
        made.add_row(
            record.name,
            f"{record.metrics['validation'].get(metric.name, math.nan):.3f}",
            f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]",
            _ahead(leads.get(record.name)),
            count(record.parameters),
            f"{len(record.epochs)}",
            duration(record.seconds),
            style="bold green" if record.name == winner else None,
        )
    return made


def _ahead(lead: Lead | None) -> str:
    if lead is None:
        return ""
    return f"{lead.gain.value:+.3f} {'surely' if lead.sure else 'unsure'}"


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
    candidates: Sequence[CandidateSpec],
    training: TrainingSpec,
    missing: int,
    connection: Connection,
    console: Console,
) -> None:
    from training.job import FitProgress, TrainingError, fit
    from training.live_payloads import PayloadSource

    begun = time.perf_counter()
    store: Store = pipeline.open_store()
    with (
        _announced(store, snapshot=snapshot, pipeline=pipeline, console=console),
        progress(console) as bar,
    ):
        task = bar.add_task("train", total=missing, note="starting workers")
        finished: set[str] = set()

        def on_progress(update: FitProgress) -> None:
            if update.done:
                finished.add(update.candidate)
            bar.update(
                task, completed=len(finished), note=f"{update.candidate}, epoch {update.epoch}"
            )
            if update.done and not console.is_terminal:
                console.print(f"         {update.candidate} {escape(update.failure or 'fitted')}")

        try:
            connection.open()
            fit(
                store_root=store.storage.root,
                snapshot_id=snapshot.id,
                task=pipeline.spec.task,
                candidates=candidates,
                training=training,
                payloads=PayloadSource(
                    source=pipeline.open_source(),
                    columns={m: f.payload_columns for m, f in pipeline.spec.features.items()},
                    key_by=pipeline.spec.dataset.payload_key,
                    limits=pipeline.spec.dataset.limits,
                )
                if any(isinstance(candidate, FinetuneSpec) for candidate in candidates)
                else None,
                on_progress=on_progress,
            )
        except TrainingError as error:
            raise StageError(str(error)) from error
    console.print(
        f"         {several(missing, 'candidate')} fitted in "
        f"{duration(time.perf_counter() - begun)}"
    )
