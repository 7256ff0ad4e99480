"""Which model's space is searched: that of a registered version, or of a candidate beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from features.fingerprint import nearest_hint
from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord, load_model
from workflows.pipeline import ConfigurationError, Pipeline, StageError
from workflows.promotion.promote import choose_winner
from workflows.promotion.registry import tags_of
from workflows.tracking import TAG, if_there

if TYPE_CHECKING:
    from torch import nn

    from workflows.scoring import LoadedModel
    from workflows.tracking import MlflowClient, ModelVersion


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A model that is searched in, and what it was fitted to."""

    uri: str
    """Of the version, or of the logged model of a candidate that is not registered."""
    title: str
    name: str
    """Of the registered model, which is that of its dataset if nothing else tells it."""
    snapshot: str
    """Id of the snapshot that it was fitted to."""


@contextmanager
def model_with_space(
    version: ModelVersion | None,
    *,
    pipeline: Pipeline | None,
    candidate: str | None,
    client: MlflowClient,
    store: Store,
    base: str,
    console: Console,
) -> Iterator[tuple[Chosen, LoadedModel]]:
    """The model to search in, for the time of a block: that of a registered version.

    If it has no space, the best of those that the pipeline's last run has fitted and that have
    one, which is said; or the candidate of a name. ConfigurationError if there is none.
    """
    from workflows import scoring

    if candidate is None:
        assert version is not None
        chosen = _of_version(version)
        with scoring.loaded(chosen.uri, base=base) as model:
            if has_space(model.fitted()):
                yield chosen, model
                return
            type = str(model.record.spec.get("type"))
        if pipeline is None:
            raise _without_space(chosen, type=type, beside=_beside(client, version=version))
        record = _best(pipeline, store=store, fitted_to=chosen.snapshot)
        if record is None:
            raise _without_space(chosen, type=type, beside=())
        console.print(
            f"[bold]model[/bold]    {escape(chosen.title)} is of the type {type!r}, which has no "
            f"space; searched is that of the candidate {escape(record.name)}",
            soft_wrap=True,
        )
    else:
        assert pipeline is not None
        record = _named(pipeline, store=store, name=candidate)
    chosen = _of_record(record, pipeline=pipeline, client=client)
    with scoring.loaded(chosen.uri, base=base) as model:
        yield chosen, model


def has_space(model: nn.Module) -> bool:
    """Whether a fitted model has a space that its modalities share."""
    from training.models.shared_space import SharedSpace

    return isinstance(model, SharedSpace)


def _of_version(version: ModelVersion) -> Chosen:
    return Chosen(
        uri=f"models:/{version.name}/{version.version}",
        title=f"{version.name} version {version.version}",
        name=version.name,
        snapshot=tags_of(version).get("snapshot", ""),
    )


def _of_record(record: CandidateRecord, *, pipeline: Pipeline, client: MlflowClient) -> Chosen:
    """A candidate by the model that was logged of it, the newest if there are several."""
    experiment = client.get_experiment_by_name(pipeline.experiment)
    runs = [] if experiment is None else client.search_runs(
        [experiment.experiment_id],
        f"tags.`{TAG}candidate` = '{record.fingerprint}' and tags.`{TAG}role` = 'candidate'",
        order_by=["attributes.start_time DESC"],
    )  # fmt: skip
    uris = [run.data.tags[f"{TAG}model"] for run in runs if f"{TAG}model" in run.data.tags]
    if not uris:
        raise StageError(
            f"no model of the candidate {record.name!r} is in MLflow's experiment "
            f"{pipeline.experiment!r}; `sensorium run` records what is fitted"
        )
    return Chosen(
        uri=uris[0],
        title=f"candidate {record.name} of {pipeline.model}",
        name=pipeline.name,
        snapshot=record.snapshot,
    )


def _best(pipeline: Pipeline, *, store: Store, fitted_to: str) -> CandidateRecord | None:
    """The best on validation of the last run's candidates that have a space."""
    records = [
        record
        for record in _fitted(pipeline, store=store, fitted_to=fitted_to)
        if has_space(load_model(store, record.fingerprint))
    ]
    if len(records) < 2:
        return next(iter(records), None)
    try:
        return choose_winner(records, metric=pipeline.metric)
    except StageError:  # none of them has the metric that champions are compared by
        return records[0]


def _named(pipeline: Pipeline, *, store: Store, name: str) -> CandidateRecord:
    """The fitted candidate of a name, if it has a space; else a ConfigurationError."""
    fitted = {record.name: record for record in _fitted(pipeline, store=store, fitted_to="")}
    if name not in fitted:
        raise ConfigurationError(
            f"--candidate: {pipeline.name} has fitted no candidate {name!r}; "
            f"{nearest_hint(name, fitted)}fitted: {', '.join(fitted) or 'none'}"
        )
    if not has_space(load_model(store, fitted[name].fingerprint)):
        type = str(fitted[name].spec.get("type"))
        with_space = [
            record.name
            for record in fitted.values()
            if has_space(load_model(store, record.fingerprint))
        ]
        raise ConfigurationError(
            f"--candidate: {name!r} is of the type {type!r}, which has no space that its "
            f"modalities share; with one: {', '.join(with_space) or 'none'}"
        )
    return fitted[name]


def _fitted(pipeline: Pipeline, *, store: Store, fitted_to: str) -> Sequence[CandidateRecord]:
    """What was fitted to the newest snapshot; or else to the one before, or to that of an id."""
    from workflows.search import standing

    for snapshot in _snapshots(store, name=pipeline.name, id=fitted_to):
        found = standing(pipeline, snapshot=snapshot).candidates
        records = [c.record for c in found if c.record and c.record.status == "fitted"]
        if records:
            return records
    return ()


def _snapshots(store: Store, *, name: str, id: str) -> Iterator[Snapshot]:
    for found in (store.latest(name), store.previous(name)):
        if found is not None:
            yield found
    try:
        yield store.read_snapshot(id)
    except FileNotFoundError:
        return


def _beside(client: MlflowClient, *, version: ModelVersion) -> Sequence[str]:
    """Names of what the training of a version has fitted that has a space, with their models."""
    from training.built_in import BUILT_IN
    from training.models.alignment_spec import SpaceSpec

    run_id = tags_of(version).get("run")
    run = None if run_id is None else if_there(lambda: client.get_run(run_id))
    parent = None if run is None else run.data.tags.get("mlflow.parentRunId")
    if run is None or parent is None:
        return ()
    types = {type for type, spec in BUILT_IN.items() if issubclass(spec, SpaceSpec)}
    beside = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    return [
        f"{one.info.run_name} ({one.data.tags[f'{TAG}model']})"
        for one in beside
        if f"{TAG}model" in one.data.tags
        and types & {one.data.params.get(f"candidate.{key}") for key in ("type", "head.type")}
    ]


def _without_space(chosen: Chosen, *, type: str, beside: Sequence[str]) -> ConfigurationError:
    """What makes a space, of a model that has none."""
    from training.built_in import BUILT_IN
    from training.models.alignment_spec import SpaceSpec

    types = [type for type, spec in BUILT_IN.items() if issubclass(spec, SpaceSpec)]
    told = (
        f". The same training has fitted {', '.join(beside)}, which has one: name the pipeline's "
        "YAML file instead of the model, and --candidate NAME"
        if beside
        else ""
    )
    return ConfigurationError(
        f"{chosen.title} is of the type {type!r}, which has no space that its "
        f"modalities share, so nothing can be searched in it; {' and '.join(types)} make one "
        "(`candidates: [{type: alignment}]`), and a `finetune` with one of them as its head" + told
    )
