"""The pipeline's YAML file: its schema, and errors that name file, line, field and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml

from features.fingerprint import Execution, Spec, fingerprint, nearest_hint
from features.sources import Source, SourceError, folder_hint, open_source
from features.spec import DatasetSpec, FeatureSpec, Name
from features.storage import open_storage
from features.store import Store
from training.agenda import Agenda
from training.built_in import CandidateField
from training.evaluation.metrics import Metric, metrics_of
from training.models.alignment_spec import SpaceSpec
from training.models.members import resolve, with_members
from training.search.spec import SearchSpec, search_problems
from training.task import TaskField
from training.training_spec import TrainingSpec
from training.tuning.spec import head_of
from workflows.promotion.spec import PromotionSpec
from workflows.yaml_lines import Lines, Location


class ConfigurationError(ValueError):
    """The configuration or the table cannot be used; the message is for the one who wrote it."""


class StageError(RuntimeError):
    """A stage cannot run, or has failed, for a reason that is told to the one who started it."""


class TrackingSpec(Spec):
    """Where MLflow records the runs and keeps the models."""

    uri: Annotated[str, Execution] = "sqlite:///mlflow.db"
    """Tracking and registry URI, unless `MLFLOW_TRACKING_URI` is set; a relative SQLite path
    starts from the YAML's folder."""
    experiment: Annotated[str | None, Execution] = None
    """Name of the experiment; the pipeline's name if it is not given."""
    model: str | None = None
    """Name of the registered model; the pipeline's name if it is not given."""


def _listed(value: object) -> object:
    if isinstance(value, Mapping):
        raise ValueError("`search` is a list: begin its entries with `- of: CANDIDATE`")
    return value


class PipelineSpec(Spec):
    """All that a pipeline is: data, features, task, candidates, training and promotion."""

    name: Name
    """Name of the pipeline, and of its snapshots in the store."""
    dataset: DatasetSpec
    features: Annotated[dict[Name, FeatureSpec], pydantic.Field(min_length=1)]
    """The modalities, by name."""
    task: TaskField
    candidates: Annotated[tuple[CandidateField, ...], pydantic.Field(min_length=1)]
    """The models to fit and compare."""
    search: Annotated[tuple[SearchSpec, ...], pydantic.BeforeValidator(_listed)] = ()
    """Hyperparameters of candidates that are to be found; what is found is compared too."""
    training: TrainingSpec = TrainingSpec()
    promotion: PromotionSpec = PromotionSpec()
    store: Annotated[str, Execution] = "store"
    """Folder of shards and snapshots, shared by all workers; relative to the YAML's folder."""
    tracking: TrackingSpec = TrackingSpec()

    def identity(self) -> dict[str, Any]:
        """As ever, with what ensembles are made of, and not what that is called."""
        found = super().identity()
        if not self.search:
            del found["search"]  # as it was before there was any
        candidates = with_members(self.candidates, task=self.task, searches=self.search)
        return {**found, "candidates": candidates}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline that has been read from a file, with all paths made absolute."""

    path: Path
    spec: PipelineSpec

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def store_root(self) -> str:
        root = self.spec.store
        return root if "://" in root else str(self.folder / root)

    @property
    def tracking_uri(self) -> str:
        """The environment's URI if there is one, else the file's, with an absolute path."""
        uri = os.environ.get("MLFLOW_TRACKING_URI") or self.spec.tracking.uri
        prefix = "sqlite:///"
        if uri.startswith(prefix):
            return prefix + str(self.folder / uri.removeprefix(prefix))
        return uri

    @property
    def metric(self) -> Metric:
        """What candidates and champions are compared by."""
        return self.spec.promotion.metric_of(self.spec.task)

    @property
    def experiment(self) -> str:
        return self.spec.tracking.experiment or self.name

    @property
    def model(self) -> str:
        return self.spec.tracking.model or self.name

    @property
    def report_path(self) -> Path:
        return self.folder / f"{self.name}-report.html"

    @property
    def agenda(self) -> Agenda:
        """What is to be fitted."""
        spec = self.spec
        return Agenda(
            task=spec.task,
            training=spec.training,
            candidates=spec.candidates,
            searches=spec.search,
        )

    @property
    def digest(self) -> str:
        """Hash of all that the file says that can change a result."""
        return fingerprint(self.spec)

    def error(self, where: Location, text: str) -> ConfigurationError:
        """What is wrong with a field, with the line in which it stands."""
        return ConfigurationError(Lines(self.path).message(where, text))

    def open_store(self) -> Store:
        """The store at its place; ConfigurationError if there can be none."""
        try:
            return Store(open_storage(self.store_root))
        except (ValueError, OSError, ImportError) as error:
            raise self.error(("store",), str(error)) from error

    def open_source(self) -> Source:
        """Find the table and check that it has every column that the file names."""
        lines = Lines(self.path)
        try:
            source = open_source(
                self.spec.dataset.path, folder=str(self.folder), format=self.spec.dataset.format
            )
            columns = source.columns(wanted=[column for _, column in self._columns()])
            if not columns:
                raise SourceError(f"{source.files[0]}: the table has no rows")
        except (SourceError, OSError) as error:
            raise ConfigurationError(lines.message(("dataset", "path"), str(error))) from error
        problems = [
            lines.message(
                where,
                f"the table has no column {column!r}; {nearest_hint(column, columns)}"
                f"its columns: {', '.join(columns)}",
            )
            for where, column in self._columns()
            if column not in columns
        ]
        if problems:
            hint = folder_hint(source)
            problems += [lines.message(("dataset", "path"), hint)] if hint else []
            raise ConfigurationError("\n".join(problems))
        return source

    @property
    def columns_read(self) -> set[str]:
        """Names of the table's columns that the file asks for."""
        return {column for _, column in self._columns()}

    def _columns(self) -> Iterator[tuple[Location, str]]:
        dataset = self.spec.dataset
        yield ("dataset", "id"), dataset.id
        for key in ("column", "group", "stratify"):
            column = getattr(dataset.split, key)
            if column is not None:
                yield ("dataset", "split", key), column
        for i, column in enumerate(dataset.slices):
            yield ("dataset", "slices", i), column
        for modality, feature in self.spec.features.items():
            if feature.column is not None:
                yield ("features", modality, "column"), feature.column
            for i, column in enumerate(feature.columns):
                yield ("features", modality, "columns", i), column
            for key in ("start", "end"):
                column = getattr(feature, key)
                if column is not None:
                    yield ("features", modality, key), column
        for column in self.spec.task.targets:
            yield ("task", "target"), column


def load_pipeline(path: str | os.PathLike[str]) -> Pipeline:
    """Read and check a pipeline's YAML file.

    Raises ConfigurationError with one line a problem: file, line, field, value, what is
    allowed, and the nearest right spelling.
    """
    file = Path(path).absolute()
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        there = os.listdir(file.parent) if file.parent.is_dir() else []
        names = [name for name in there if name.endswith((".yaml", ".yml"))]
        hint = nearest_hint(file.name, names) or (
            f"pipelines here: {', '.join(sorted(names))}" if names else ""
        )
        raise ConfigurationError(f"{path}: no such file; {hint}".rstrip("; ")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    lines = Lines(file)
    try:
        value = yaml.safe_load(text)
        repeated = next(lines.repeated_keys(), None)
    except yaml.YAMLError as error:
        raise ConfigurationError(lines.syntax_error(error)) from error
    if repeated is not None:
        raise ConfigurationError(repeated)
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{path}: a pipeline is a mapping with name, dataset, features …")
    try:
        spec = PipelineSpec.model_validate(value, context={"folder": str(file.parent)})
    except pydantic.ValidationError as error:
        problems = [lines.message(where, text) for where, text in _explain(error)]
        raise ConfigurationError("\n".join(dict.fromkeys(problems))) from error
    problems = [lines.message(where, text) for where, text in _check_whole(spec)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return Pipeline(path=file, spec=spec)


def _check_whole(spec: PipelineSpec) -> Iterator[tuple[Location, str]]:
    """What no single part of the file can see: names used twice, modalities that are not there."""
    if spec.dataset.id in spec.task.targets:
        yield (
            ("task", "target"),
            f"{spec.dataset.id!r} is the column of ids, which are all different",
        )
    for where, text in spec.promotion.problems(
        task=spec.task, features=spec.features, slices=spec.dataset.slices
    ):
        yield ("promotion", *where), text
    measured = ("loss", *metrics_of(spec.task))
    if spec.training.monitor not in measured:
        yield (
            ("training", "monitor"),
            f"there is no metric {spec.training.monitor!r} of a {spec.task.type} task; "
            f"{nearest_hint(spec.training.monitor, measured)}it is one of {', '.join(measured)}",
        )
    if spec.task.type == "retrieval":
        for i, candidate in enumerate(spec.candidates):
            if not isinstance(head_of(candidate), SpaceSpec):
                yield (
                    ("candidates", i, "type"),
                    f"a retrieval task has no classes to answer, and {candidate.type!r} has no "
                    "common space to search; give alignments, or a `finetune` of one",
                )
    else:
        for i, where, text in resolve(spec.candidates, task=spec.task, searches=spec.search)[1]:
            yield ("candidates", i, *where), text
    yield from search_problems(spec.search, candidates=spec.candidates, training=spec.training)
    seen: dict[str, int] = {}
    for i, candidate in enumerate(spec.candidates):
        if candidate.name in seen:
            yield (
                ("candidates", i, "name"),
                f"the name {candidate.name!r} is that of candidate {seen[candidate.name] + 1} too",
            )
        seen.setdefault(candidate.name, i)
        named = list(candidate.named_modalities())
        if not named and len(spec.features) < candidate.least_modalities:
            yield (
                ("candidates", i, "type"),
                f"{candidate.type!r} takes at least {candidate.least_modalities} modalities, and "
                f"the pipeline has {len(spec.features)}: {', '.join(spec.features)}; leave the "
                "candidate out, or describe another modality under `features`",
            )
        for where, modality in named:
            if modality not in spec.features:
                yield (
                    ("candidates", i, *where),
                    f"there is no modality {modality!r}; {nearest_hint(modality, spec.features)}"
                    f"features: {', '.join(spec.features)}",
                )
        encoders = {name: feature.encoder for name, feature in spec.features.items()}
        for where, text in (
            *candidate.check_encoders(encoders),
            *candidate.check_task(spec.task),
        ):
            yield ("candidates", i, *where), text


def _explain(error: pydantic.ValidationError) -> Iterator[tuple[Location, str]]:
    """Each problem's place and text, those of nested specs included."""
    for problem in error.errors():
        where = problem["loc"]
        context = problem.get("ctx", {})
        inner = context.get("error")
        if isinstance(inner, pydantic.ValidationError):
            for deeper, text in _explain(inner):
                yield (*where, *deeper), text
        elif problem["type"] == "unknown_field":
            yield (*where, context["field"]), problem["msg"]
        elif problem["type"] == "missing":
            yield where, "this field is required"
        elif problem["type"] == "tuple_type":
            yield where, f"this is a list: [{problem['input']}]"
        else:
            value = problem["input"]
            simple = isinstance(value, str | int | float | bool | None)
            shown = f" (value: {value!r})" if simple else ""
            yield where, problem["msg"].removeprefix("Value error, ") + shown
