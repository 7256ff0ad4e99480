"""Stage 3: record the candidates, register the best, and let it through the gate or not.

The alias `champion` moves last, and only if the gate passes. Whatever is killed on the way is
found by its tags and completed by the next run; what was judged once is not judged again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord
from training.evaluation.metrics import Metric, metrics_of
from training.settings import over_seeds
from training.task import parse_task
from workflows import tracking
from workflows.pipeline import Pipeline, StageError
from workflows.promotion import registry
from workflows.promotion.contest import Contest
from workflows.promotion.deciding import decide, known_verdict
from workflows.promotion.frozen import RawRows
from workflows.promotion.history import ChampionMoved
from workflows.promotion.outcome import Promotion
from workflows.promotion.registry import number_of, tags_of
from workflows.promotion.verdict import Verdict
from workflows.runs import without_passwords
from workflows.search import kept_searches

if TYPE_CHECKING:
    from workflows.tracking import MlflowClient, ModelVersion

OnEvent = Callable[[str], None]
ATTEMPTS = 3
"""How often a winner is compared whose champion moves meanwhile."""


def promote(
    *,
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    raw_rows: RawRows | None = None,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
    confirm: Callable[[], None] | None = None,
) -> Promotion:
    """Record all candidates, register the winner, judge it, and move `champion` if it passes.

    A champion whose encoders are not the snapshot's answers the rows of the pipeline's table,
    or those that `raw_rows` gives. A dry run judges, and writes nothing. `confirm` is called
    before anything is recorded or registered, and before the alias moves; it may raise.

    Raises StageError if no candidate was fitted, no test row is labelled, the champion cannot
    be asked (its encoders or the table have changed), or other jobs were quicker again and again.
    """
    contest = Contest(
        pipeline=pipeline,
        store=store,
        snapshot=snapshot,
        winner=choose_winner(records, metric=pipeline.metric),
        raw_rows=raw_rows,
    )
    uri = pipeline.tracking_uri
    if dry_run and not tracking.there_is_a_database(uri):
        return _dry(contest, client=None)
    with tracking.connected(uri) as client:
        if dry_run:
            return _dry(contest, client=client)
        return _promote(
            contest,
            client=client,
            records=records,
            say=on_event or (lambda _: None),
            confirm=confirm or (lambda: None),
        )


def choose_winner(records: Sequence[CandidateRecord], *, metric: Metric) -> CandidateRecord:
    """The fitted candidate that is best on the validation split; of equals the smallest, then by
    name.

    Candidates that differ in nothing but their seed are one setting: settings are compared by
    their mean over the seeds, so that a lucky seed wins nothing by itself, and of the best setting
    the best fit is taken. A setting of which most fits failed comes after all others. The test
    split has no say in it: it is kept for the comparison with the champion. A candidate whose
    validation rows do not define the metric cannot win.
    """
    reached = {
        record.fingerprint: record.metrics["validation"][metric.name]
        for record in records
        if record.status == "fitted"
        and record.metrics
        and metric.name in record.metrics["validation"]
    }
    fitted = [record for record in records if record.status == "fitted" and record.metrics]
    if fitted and not reached:
        there = {name for r in fitted for name in (r.metrics or {})["validation"]}
        known = [name for name in metrics_of(parse_task(fitted[0].task)) if name in there]
        taken = f"it is taken of {metric.of}, and " if metric.of else ""
        raise StageError(
            f"promotion.metric: none of the fitted candidates has {metric.name!r} on the "
            f"validation rows ({taken}where these define it); take another: {', '.join(known)}"
        )
    if not reached:
        reasons = "; ".join(f"{r.name}: {(r.failure or {}).get('reason')}" for r in records)
        raise StageError(f"no candidate was fitted, so none can be promoted ({reasons or 'none'})")
    settled = over_seeds(records, reached=reached)
    return min(
        (record for record in records if record.fingerprint in reached),
        key=lambda record: (
            not settled[record.fingerprint].sound,
            -metric.gain(settled[record.fingerprint].mean, 0),
            -metric.gain(reached[record.fingerprint], 0),
            record.parameters,
            record.name,
        ),
    )


def _dry(contest: Contest, *, client: MlflowClient | None) -> Promotion:
    version = champion = verdict = None
    if client is not None:
        model = contest.pipeline.model
        version = registry.find_version(client, model=model, key=contest.key)
        champion = registry.champion_of(client, model=model)
    is_champion = version is not None and number_of(version) == number_of(champion)
    if client is not None and version is not None:
        verdict = known_verdict(contest, client=client, version=version, champion=champion)
    earlier = verdict is not None
    human = contest.pipeline.spec.promotion.require == "human"
    if is_champion:
        detail = f"version {number_of(version)} is the champion already"
    else:
        verdict = verdict or contest.judge(champion, version=version)
        detail = f"dry run: {verdict.sentence}; nothing was recorded or moved"
    return _result(
        contest,
        version=version,
        before=champion,
        after=champion,
        verdict=verdict,
        logged=None,
        changed=False,
        earlier=earlier,
        detail=detail,
        waiting=human and earlier and not is_champion and verdict is not None and verdict.passed,
    )


def _promote(
    contest: Contest,
    *,
    client: MlflowClient,
    records: Sequence[CandidateRecord],
    say: OnEvent,
    confirm: Callable[[], None],
) -> Promotion:
    logged = _record(contest, client=client, records=records, say=say, confirm=confirm)
    version, registered = _register(contest, client=client, logged=logged, say=say, confirm=confirm)
    changed = logged.changed or registered
    for left in reversed(range(ATTEMPTS)):
        try:
            found = decide(contest, client=client, version=version, say=say, confirm=confirm)
            break
        except ChampionMoved as error:
            if not left:
                raise
            say(f"{str(error).partition(': another job')[0]}: they are compared again")
            changed = True
            version = client.get_model_version(version.name, str(version.version))
    return _result(
        contest,
        version=found.version,
        before=found.before,
        after=found.version if found.moved else found.before,
        verdict=found.verdict,
        logged=logged,
        changed=changed or found.changed,
        earlier=found.earlier,
        detail=found.detail,
        waiting=found.waiting,
    )


def _record(
    contest: Contest,
    *,
    client: MlflowClient,
    records: Sequence[CandidateRecord],
    say: OnEvent,
    confirm: Callable[[], None],
) -> tracking.LoggedTraining:
    def log_model(record: CandidateRecord) -> str:
        from workflows import scoring

        return scoring.log_model(store=contest.store, record=record, inputs=contest.inputs(record))

    pipeline = contest.pipeline
    return tracking.log_training(
        client,
        experiment=pipeline.experiment,
        uri=pipeline.tracking_uri,
        name=pipeline.name,
        description=pipeline.spec.model_dump(mode="json"),
        store=contest.store,
        snapshot=contest.snapshot,
        records=records,
        log_model=log_model,
        on_event=say,
        searches=kept_searches(pipeline, store=contest.store, snapshot=contest.snapshot),
        confirm=confirm,
    )


def _register(
    contest: Contest,
    *,
    client: MlflowClient,
    logged: tracking.LoggedTraining,
    say: OnEvent,
    confirm: Callable[[], None],
) -> tuple[ModelVersion, bool]:
    """The winner's version, and whether it was registered just now."""
    pipeline, winner = contest.pipeline, contest.winner
    known = registry.find_version(client, model=pipeline.model, key=contest.key)
    if known is not None:
        return known, False
    confirm()
    inputs = contest.inputs(winner)
    version = registry.register(
        client,
        model=pipeline.model,
        key=contest.key,
        uri=logged.models[winner.fingerprint],
        tags={
            "name": winner.name,
            "candidate": winner.fingerprint,
            "snapshot": contest.snapshot.id,
            "encoders": json.dumps({m: item.encoder_fingerprint for m, item in inputs.items()}),
            "pipeline": pipeline.digest,
            "git_commit": registry.git_commit(pipeline.folder),
            "sources": json.dumps([without_passwords(file) for file in contest.snapshot.files]),
            "store": without_passwords(contest.store.storage.root),
            "run": logged.runs[winner.fingerprint],
        },
    )
    say(
        f"registered {pipeline.model} version {version.version} ({winner.name}, best on validation)"
    )
    return version, True


def _result(
    contest: Contest,
    *,
    version: ModelVersion | None,
    before: ModelVersion | None,
    after: ModelVersion | None,
    verdict: Verdict | None,
    logged: tracking.LoggedTraining | None,
    changed: bool,
    earlier: bool,
    detail: str,
    waiting: bool = False,
) -> Promotion:
    return Promotion(
        winner=contest.winner.name,
        candidate=contest.winner.fingerprint,
        model=contest.pipeline.model,
        version=number_of(version),
        champion_before=number_of(before),
        champion_after=number_of(after),
        verdict=verdict,
        parent=logged.parent if logged else None,
        runs=logged.runs if logged else {},
        changed=changed,
        dry_run=logged is None,
        earlier=earlier,
        detail=detail,
        waiting=waiting,
        taken_back=(
            version is not None
            and number_of(version) != number_of(after)
            and "taken_back" in tags_of(version)
        ),
    )
