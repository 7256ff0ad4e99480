"""MLflow: the connection to it, and the runs of a training with a child for each candidate.

Every run is found again by its tags, so an attempt that was killed is completed by the next
one instead of being recorded twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from features.fingerprint import fingerprint
from features.snapshot import Snapshot
from features.store import Store
from training.candidate import CandidateRecord
from workflows.pipeline import StageError
from workflows.runs import (
    Point,
    clean,
    cut,
    epoch_metrics,
    final_metrics,
    flat,
    member_tags,
    without_passwords,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as ModelVersion

T = TypeVar("T")

TAG = "sensorium."
PARAM_LENGTH = 500
"""Longer parameter values are cut; databases behind MLflow differ in what they take."""
RUN_TAG_LENGTH = 4000

QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own progress bars and links, which would mix with ours."""

UNREACHABLE = re.compile(
    r"Max retries exceeded|Connection refused|Connection aborted|timed out|"
    r"error code (408|429|500|502|503|504)\b"
)
"""What MLflow says of a server that did not answer in all attempts: 7 by default, over about four
minutes (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`, `MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR`)."""

LogModel = Callable[[CandidateRecord], str]
"""Logs a candidate's model in the active run and returns its `models:/…` URI."""


@dataclass(frozen=True, kw_only=True)
class LoggedTraining:
    """Where the candidates of one training are recorded."""

    digest: str
    """Identity of the training: the pipeline's name, the snapshot and the candidates."""
    parent: str
    """Id of the parent run."""
    runs: Mapping[str, str]
    """Per candidate fingerprint: id of its run."""
    models: Mapping[str, str]
    """Per fingerprint of a fitted candidate: URI of its logged model."""
    changed: bool
    """Whether anything was recorded that was not there."""


@contextlib.contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """A client of the tracking server or database at a URI; quiet, and global for the block.

    MLflow keeps its URI in a global and in the environment; both are put back at the end.
    Telemetry is off unless the environment turns it on. An error of MLflow's in the block
    becomes a StageError that says where MLflow is.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    before = {name: os.environ.get(name) for name in (*QUIET, "MLFLOW_TRACKING_URI")}
    import mlflow

    os.environ.update(QUIET)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # or the environment would pass for the global
    with warnings.catch_warnings(), _quiet_loggers():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\..*")
        was = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        try:
            yield mlflow.MlflowClient(tracking_uri=uri)
        except (mlflow.MlflowException, OSError) as error:
            said = without_passwords(str(error))
            lost = type(error).__module__.startswith("requests.")  # an artifact's way to a server
            if isinstance(error, OSError) and not lost:
                raise
            if lost or UNREACHABLE.search(said):
                raise StageError(
                    f"MLflow at {without_passwords(uri)} does not answer, though it was asked "
                    f"again and again: {cut(said, length=300)}. What was recorded until now is "
                    "kept, and what was fitted is in the store. See whether the server runs and "
                    "MLFLOW_TRACKING_URI is right, then run the same command again: it completes "
                    "what is missing"
                ) from error
            raise StageError(f"MLflow at {without_passwords(uri)}: {said}") from error
        finally:
            mlflow.set_tracking_uri(was)  # type: ignore[arg-type]
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def there_is_a_database(uri: str) -> bool:
    """Whether connecting would find something: false for a SQLite file that is not there yet."""
    path = uri.removeprefix("sqlite:///")
    return path == uri or os.path.exists(path)


def if_there(look: Callable[[], T]) -> T | None:
    """What a look-up in MLflow finds; None if there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return look()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def training_digest(*, name: str, snapshot: Snapshot, records: Sequence[CandidateRecord]) -> str:
    """Identity of one training of a pipeline: its snapshot and the set of its candidates."""
    candidates = sorted(record.fingerprint for record in records)
    return fingerprint({"pipeline": name, "snapshot": snapshot.id, "candidates": candidates})


def log_training(
    client: MlflowClient,
    *,
    experiment: str,
    uri: str,
    name: str,
    description: Mapping[str, Any],
    store: Store,
    snapshot: Snapshot,
    records: Sequence[CandidateRecord],
    log_model: LogModel,
    on_event: Callable[[str], None],
    searches: Mapping[str, Mapping[str, Any]] | None = None,
    confirm: Callable[[], None] | None = None,
) -> LoggedTraining:
    """Record a training: a parent run, and a child for each candidate; what is there is kept.

    `description` is the pipeline as JSON; it becomes parameters and an artifact of the parent.
    `searches` are what each search tried and found, as JSON by name: artifacts of the parent. Their
    trials that were stopped have no runs, since there is no model of them.
    A candidate that failed has a run of status FAILED with its reason, and no model. `confirm` is
    called before anything is written, if something is to be; it may raise.
    """
    digest = training_digest(name=name, snapshot=snapshot, records=records)
    described = without_passwords(dict(description))
    marks = {"training": digest, "role": "pipeline"}
    known = client.get_experiment_by_name(experiment)
    found = None if known is None else _find(client, str(known.experiment_id), marks)
    if confirm is not None and (found is None or not _is_complete(found)):
        confirm()
    experiment_id = (
        _experiment(client, name=experiment, uri=uri) if known is None else str(known.experiment_id)
    )
    parent = found or _run(client, experiment_id, marks, name=name)
    if not _is_complete(parent):
        tags = {"snapshot": snapshot.id, "pipeline": name}
        _log(client, parent, params=flat(described), tags=tags, metrics=[])
        _log_snapshot(client, parent, store=store, snapshot=snapshot)
        client.log_dict(parent.info.run_id, described, "pipeline.json")
        for title, search in (searches or {}).items():
            whole = without_passwords(dict(search))
            client.log_dict(parent.info.run_id, whole, f"searches/{clean(title)}.json")
    changed = not _is_complete(parent)
    runs, models = {}, {}
    for record in records:
        run = _run(
            client,
            experiment_id,
            {"training": digest, "candidate": record.fingerprint, "role": "candidate"},
            name=record.name,
            parent=parent.info.run_id,
        )
        runs[record.fingerprint] = run.info.run_id
        if _is_complete(run):
            model = run.data.tags.get(f"{TAG}model")
        else:
            model = _log_candidate(
                client, run, record=record, store=store, snapshot=snapshot, log_model=log_model
            )
            on_event(f"recorded {record.name}")
            changed = True
        if model is not None:
            models[record.fingerprint] = model
    if not _is_complete(parent):
        _complete(client, parent, status="FINISHED")
    return LoggedTraining(
        digest=digest, parent=parent.info.run_id, runs=runs, models=models, changed=changed
    )


def log_report(path: Path, *, uri: str, run: str) -> None:
    """Keep the HTML report with a training's parent run, over an older one."""
    with connected(uri) as client:
        client.log_artifact(run, str(path), artifact_path="report")


def register_model(name: str, *, uri: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a logged model as the next version of a name, with its tags in one step."""
    import mlflow

    with contextlib.redirect_stderr(io.StringIO()):  # it says what it does, past all loggers
        return mlflow.register_model(uri, name, tags=dict(tags))


def _log_candidate(
    client: MlflowClient,
    run: Run,
    *,
    record: CandidateRecord,
    store: Store,
    snapshot: Snapshot,
    log_model: LogModel,
) -> str | None:
    import mlflow

    params = {
        "candidate": record.spec,
        "training": record.training,
        "task": record.task,
        "parameters": record.parameters,
        "workers": record.workers,
        "encoder": {
            name: snapshot.modalities[name].encoder_fingerprint for name in record.modalities
        },
    }
    tags = {"snapshot": snapshot.id, "part": record.part, "status": record.status}
    if record.failure is not None:
        tags["failure"] = json.dumps(record.failure)
    start = run.info.start_time
    if record.members:
        tags |= member_tags(record)
        client.log_dict(run.info.run_id, {"members": list(record.members)}, "members.json")
    metrics = [*epoch_metrics(record, start=start), *final_metrics(record, start=start)]
    _log(client, run, params=flat(params), tags=tags, metrics=metrics)
    _log_snapshot(client, run, store=store, snapshot=snapshot)
    model = None
    if record.status == "fitted":
        with mlflow.start_run(run_id=run.info.run_id, nested=True):
            model = log_model(record)
        client.set_tag(run.info.run_id, f"{TAG}model", model)
    _complete(client, run, status="FINISHED" if model is not None else "FAILED")
    return model


def _experiment(client: MlflowClient, *, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # MLflow would put the artifacts of a SQLite file under the working directory.
    location = None
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        location = (folder / "mlartifacts" / quote(name, safe="")).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # another job was quicker
        if found is None:
            raise
        return str(found.experiment_id)


def _find(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    query = " and ".join(f"tags.`{TAG}{key}` = '{value}'" for key, value in tags.items())
    order = ["attributes.start_time ASC"]
    found = client.search_runs([experiment_id], query, max_results=1, order_by=order)
    return found[0] if found else None


def _run(
    client: MlflowClient,
    experiment_id: str,
    tags: Mapping[str, str],
    *,
    name: str,
    parent: str | None = None,
) -> Run:
    """The run of these tags, made if there is none."""
    found = _find(client, experiment_id, tags)
    if found is not None:
        return found
    marks = {f"{TAG}{key}": value for key, value in tags.items()}
    if parent is not None:
        marks["mlflow.parentRunId"] = parent
    return client.create_run(experiment_id, tags=marks, run_name=name)


def _is_complete(run: Run) -> bool:
    return f"{TAG}complete" in run.data.tags


def _complete(client: MlflowClient, run: Run, *, status: str) -> None:
    client.set_terminated(run.info.run_id, status=status)
    client.set_tag(run.info.run_id, f"{TAG}complete", "true")


def _log(
    client: MlflowClient,
    run: Run,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Sequence[Point],
) -> None:
    """Log what a server takes: clean names, finite values, cut texts, in batches.

    A parameter that an interrupted attempt has logged stays as it is: MLflow allows no change.
    """
    from mlflow.entities import Metric, Param, RunTag

    points = [Metric(clean(p.key), p.value, p.time, p.step) for p in metrics]
    there = client.get_run(run.info.run_id).data.params
    pairs = [
        Param(clean(key), cut(value, length=PARAM_LENGTH))
        for key, value in params.items()
        if clean(key) not in there
    ]
    marks = [RunTag(f"{TAG}{k}", cut(v, length=RUN_TAG_LENGTH)) for k, v in tags.items()]
    for start in range(0, len(points), 1000):
        client.log_batch(run.info.run_id, metrics=points[start : start + 1000])
    for start in range(0, len(pairs), 100):
        client.log_batch(run.info.run_id, params=pairs[start : start + 100])
    client.log_batch(run.info.run_id, tags=marks)


def _log_snapshot(client: MlflowClient, run: Run, *, store: Store, snapshot: Snapshot) -> None:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    root = without_passwords(store.storage.root)
    source = resolve_dataset_source(f"{root}/snapshots/{snapshot.id}.json")
    dataset = MetaDataset(  # type: ignore[abstract]  # MLflow's own documentation does so
        source=source, name=snapshot.name, digest=snapshot.id
    )
    context = InputTag("mlflow.data.context", "training")
    entry = DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[context])
    client.log_inputs(run.info.run_id, datasets=[entry])


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """MLflow and alembic say what they do at every step; here only what is wrong is said."""
    levels = {"mlflow": logging.WARNING, "alembic": logging.WARNING}
    levels["mlflow.utils.requirements_utils"] = logging.ERROR
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
