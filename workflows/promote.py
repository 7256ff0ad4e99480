"""Stage 3: record the candidates, register the best, and let it through the gate or not.

The alias `champion` moves last, and only if the gate passes. Whatever is killed on the way is
found by its tags and completed by the next run; what was judged once is not judged again.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from features.fingerprint import fingerprint
from features.store import Snapshot, Store
from training.candidate import CandidateRecord
from workflows import tracking
from workflows.frozen import (
    RawRows,
    champion_predictions,
    frozen_rows,
    stored_predictions,
    table_rows,
)
from workflows.gate import Verdict, judge
from workflows.pipeline import Pipeline

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from workflows.scoring import Input

OnEvent = Callable[[str], None]


class ChampionMoved(RuntimeError):
    """Another job promoted a version while this one compared with the champion before it."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What stage 3 found and did."""

    winner: str
    """Name of the candidate that is best on the validation split."""
    candidate: str
    """Its fingerprint."""
    model: str
    """Name of the registered model."""
    version: str | None
    """The winner's registered version; None in a dry run, if it is not registered yet."""
    champion_before: str | None
    champion_after: str | None
    verdict: Verdict | None
    """None only if the winner was made champion by other hands than the gate's."""
    parent: str | None
    """Id of the training's parent run; None in a dry run."""
    runs: Mapping[str, str]
    """Per candidate fingerprint: id of its run; empty in a dry run."""
    changed: bool
    """Whether anything was recorded, registered, judged or moved."""
    detail: str
    """What happened, in one sentence."""

    @property
    def promoted(self) -> bool:
        """Whether the winner is the champion now."""
        return self.version is not None and self.version == self.champion_after

    @property
    def refused(self) -> bool:
        """Whether the gate keeps the winner out."""
        return self.verdict is not None and not self.verdict.passed and not self.promoted


def promote(
    *,
    pipeline: Pipeline,
    store: Store,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    raw_rows: RawRows | None = None,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> Promotion:
    """Record all candidates, register the winner, judge it, and move `champion` if it passes.

    A champion whose encoders are not the snapshot's answers the rows of the pipeline's table
    (or those that `raw_rows` gives). A dry run judges, and writes nothing.

    Raises ValueError if no candidate was fitted or no test row is labelled, EncoderMismatch or
    TableChanged if the champion cannot be asked, and ChampionMoved if another job was quicker.
    """
    winner = choose_winner(records)
    contest = _Contest(
        pipeline=pipeline, store=store, snapshot=snapshot, winner=winner, raw_rows=raw_rows
    )
    uri = pipeline.tracking_uri
    if dry_run and not tracking.there_is_a_database(uri):
        return _dry(contest, client=None)
    with tracking.connected(uri) as client:
        if dry_run:
            return _dry(contest, client=client)
        return _promote(contest, client=client, records=records, say=on_event or (lambda _: None))


def choose_winner(records: Sequence[CandidateRecord]) -> CandidateRecord:
    """The fitted candidate of the best validation accuracy; of equals the smallest, then by name.

    The test split has no say in it: it is kept for the comparison with the champion.
    """
    fitted = {r.fingerprint: r.metrics for r in records if r.status == "fitted" and r.metrics}
    if not fitted:
        reasons = "; ".join(f"{r.name}: {(r.failure or {}).get('reason')}" for r in records)
        raise ValueError(f"no candidate was fitted, so none can be promoted ({reasons or 'none'})")
    return min(
        (record for record in records if record.fingerprint in fitted),
        key=lambda r: (-fitted[r.fingerprint]["validation"]["accuracy"], r.parameters, r.name),
    )


@dataclass(frozen=True, kw_only=True)
class _Contest:
    """Who wants the place, and over which rows it is decided."""

    pipeline: Pipeline
    store: Store
    snapshot: Snapshot
    winner: CandidateRecord
    raw_rows: RawRows | None

    def judgement(self, champion: ModelVersion | None) -> str:
        """Identity of the question that the gate answers; asked once, it has its answer."""
        against = None
        if champion is not None:
            against = [str(champion.version), champion.tags.get(f"{tracking.TAG}key", "")]
        return fingerprint(
            {
                "challenger": self.winner.fingerprint,
                "champion": against,
                "snapshot": self.snapshot.id,
                "gate": self.pipeline.spec.promotion,
            }
        )

    def judge(self, champion: ModelVersion | None) -> Verdict:
        """Ask both for their answers to the frozen rows, and compare them."""
        frozen = frozen_rows(
            self.store,
            snapshot=self.snapshot,
            target=self.pipeline.spec.task.target,
            modalities=tuple(self.snapshot.modalities),
        )
        theirs = None
        if champion is not None and len(frozen.rows):
            from workflows import scoring

            source = self.pipeline.open_source()
            reader = self.raw_rows or table_rows(
                source,
                store=self.store,
                snapshot=self.snapshot,
                id_column=self.pipeline.spec.dataset.id,
            )
            theirs = champion_predictions(
                scoring.load(f"models:/{champion.name}/{champion.version}", base=source.folder),
                store=self.store,
                snapshot=self.snapshot,
                rows=frozen.rows,
                raw_rows=reader,
            )
        return judge(
            frozen=frozen,
            challenger=stored_predictions(self.store, record=self.winner),
            champion=theirs,
            spec=self.pipeline.spec.promotion,
        )

    def result(
        self,
        *,
        version: ModelVersion | None,
        before: ModelVersion | None,
        after: ModelVersion | None,
        verdict: Verdict | None,
        logged: tracking.LoggedTraining | None,
        changed: bool,
        detail: str,
    ) -> Promotion:
        return Promotion(
            winner=self.winner.name,
            candidate=self.winner.fingerprint,
            model=self.pipeline.model,
            version=_number(version),
            champion_before=_number(before),
            champion_after=_number(after),
            verdict=verdict,
            parent=logged.parent if logged else None,
            runs=logged.runs if logged else {},
            changed=changed,
            detail=detail,
        )


def _dry(contest: _Contest, *, client: MlflowClient | None) -> Promotion:
    from workflows import scoring

    version = champion = None
    if client is not None:
        model = contest.pipeline.model
        key = scoring.model_key(contest.winner, inputs=_inputs(contest, contest.winner))
        version = tracking.find_version(client, model=model, key=key)
        champion = tracking.champion_of(client, model=model)
    if version is not None and _number(version) == _number(champion):
        verdict, detail = None, f"version {_number(version)} is the champion already"
    else:
        verdict = contest.judge(champion)
        detail = f"dry run: {verdict.sentence}; nothing was recorded or moved"
    return contest.result(
        version=version,
        before=champion,
        after=champion,
        verdict=verdict,
        logged=None,
        changed=False,
        detail=detail,
    )


def _promote(
    contest: _Contest, *, client: MlflowClient, records: Sequence[CandidateRecord], say: OnEvent
) -> Promotion:
    model = contest.pipeline.model
    logged = _record(contest, client=client, records=records, say=say)
    version, registered = _register(contest, client=client, logged=logged, say=say)
    changed = logged.changed or registered
    run = version.tags.get(f"{tracking.TAG}run", logged.runs[contest.winner.fingerprint])
    tags = {key.removeprefix(tracking.TAG): value for key, value in version.tags.items()}
    champion = tracking.champion_of(client, model=model)
    number = _number(version)

    if _number(champion) == number:
        judgement = tags.get("judgement")
        if judgement and tags.get("gate") == "passed" and tags.get("promoted") != judgement:
            # An attempt was killed between moving the alias and saying so.
            _record_promotion(client, version, judgement=judgement, before=tags.get("against"))
            changed = True
        return contest.result(
            version=version,
            before=champion,
            after=champion,
            verdict=_read_verdict(client, run=run, judgement=judgement),
            logged=logged,
            changed=changed,
            detail=f"version {number} is the champion already",
        )

    judgement = contest.judgement(champion)
    verdict = None
    if tags.get("judgement") == judgement:
        verdict = _read_verdict(client, run=run, judgement=judgement)
    if verdict is None:
        verdict = contest.judge(champion)
        changed = True
        _record_verdict(
            client, version, run=run, judgement=judgement, champion=champion, verdict=verdict
        )
        say(verdict.sentence)
    after, detail = champion, f"version {number} stays out: {verdict.sentence}"
    if verdict.passed and tags.get("promoted") == judgement:
        detail = (
            f"version {number} was promoted on this verdict before and has been taken back since; "
            "it is left out"
        )
    elif verdict.passed:
        _move(client, version, champion=champion)
        _record_promotion(client, version, judgement=judgement, before=_number(champion))
        after, changed = version, True
        detail = f"version {number} is the champion now: {verdict.sentence}"
        say(detail)
    return contest.result(
        version=version,
        before=champion,
        after=after,
        verdict=verdict,
        logged=logged,
        changed=changed,
        detail=detail,
    )


def _record(
    contest: _Contest, *, client: MlflowClient, records: Sequence[CandidateRecord], say: OnEvent
) -> tracking.LoggedTraining:
    from workflows import scoring

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
        log_model=lambda record: scoring.log_model(
            store=contest.store, record=record, inputs=_inputs(contest, record)
        ),
        on_event=say,
    )


def _register(
    contest: _Contest, *, client: MlflowClient, logged: tracking.LoggedTraining, say: OnEvent
) -> tuple[ModelVersion, bool]:
    """The winner's version, and whether it was registered just now."""
    from workflows import scoring

    pipeline, winner = contest.pipeline, contest.winner
    inputs = _inputs(contest, winner)
    key = scoring.model_key(winner, inputs=inputs)
    known = tracking.find_version(client, model=pipeline.model, key=key)
    if known is not None:
        return known, False
    encoders = {name: item.encoder_fingerprint for name, item in inputs.items()}
    version = tracking.register(
        client,
        model=pipeline.model,
        key=key,
        uri=logged.models[winner.fingerprint],
        tags={
            "name": winner.name,
            "candidate": winner.fingerprint,
            "snapshot": contest.snapshot.id,
            "encoders": json.dumps(encoders),
            "pipeline": pipeline.digest,
            "git_commit": git_commit(pipeline.folder),
            "run": logged.runs[winner.fingerprint],
        },
    )
    say(f"registered {pipeline.model} version {version.version} ({winner.name})")
    return version, True


def _record_verdict(
    client: MlflowClient,
    version: ModelVersion,
    *,
    run: str,
    judgement: str,
    champion: ModelVersion | None,
    verdict: Verdict,
) -> None:
    client.log_text(run, verdict.to_json(), _verdict_path(judgement))
    tags = {
        "gate": "passed" if verdict.passed else "refused",
        "gate_summary": _summary(verdict),
        "against": _number(champion) or "",
        "judgement": judgement,
    }
    tracking.tag_version(client, version, tags)


def _move(client: MlflowClient, version: ModelVersion, *, champion: ModelVersion | None) -> None:
    """Move the alias, if the champion still is the one that was compared with."""
    now = tracking.champion_of(client, model=version.name)
    if _number(now) != _number(champion):
        raise ChampionMoved(
            f"the champion of {version.name} was version {_number(champion)} when version "
            f"{_number(version)} was compared with it, and is version {_number(now)} now: another "
            "job promoted it meanwhile. Nothing was moved; run again to compare with that one"
        )
    client.set_registered_model_alias(version.name, tracking.ALIAS, str(version.version))


def _record_promotion(
    client: MlflowClient, version: ModelVersion, *, judgement: str, before: str | None
) -> None:
    """Say who promoted the version, when and in whose place, for whoever wants to go back."""
    tags = {
        "promoted_by": getpass.getuser(),
        "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "promoted_from": before or "none",
        "promoted": judgement,
    }
    tracking.tag_version(client, version, tags)


def _read_verdict(client: MlflowClient, *, run: str, judgement: str | None) -> Verdict | None:
    if judgement is None:
        return None
    text = tracking.read_artifact(client, run=run, path=_verdict_path(judgement))
    return None if text is None else Verdict.from_json(text)


def _verdict_path(judgement: str) -> str:
    return f"gate/{judgement}.json"


def _summary(verdict: Verdict) -> str:
    """The conditions as JSON, those that failed first, as many as a tag holds."""
    ordered = sorted(verdict.conditions, key=lambda condition: condition.passed)
    items = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in ordered]
    while len(text := json.dumps(items)) > tracking.VERSION_TAG_LENGTH:
        items.pop()
    return text


def _inputs(contest: _Contest, record: CandidateRecord) -> Mapping[str, Input]:
    from workflows import scoring

    features = contest.pipeline.spec.features
    return scoring.inputs_of(record, features=features, snapshot=contest.snapshot)


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def git_commit(folder: Path) -> str:
    """The commit checked out around a folder, or the working directory; `unknown` if none is.

    `-dirty` is added if tracked files differ from it.
    """
    for place in (folder, Path.cwd()):
        command = ["git", "-C", os.fspath(place), "describe", "--always", "--dirty", "--abbrev=40",
                   "--exclude=*"]  # fmt: skip
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return found.stdout.strip()
    return "unknown"
