"""The pipeline's YAML file: its schema, and errors that name file, line, field and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import pydantic
import yaml

from features.fingerprint import Execution, Spec, fingerprint, nearest_hint
from features.sources import Source, SourceError, open_source
from features.spec import DatasetSpec, FeatureSpec, Name
from training.built_in import CandidateField
from training.metrics import Metric
from training.task import TaskField
from training.training_spec import TrainingSpec
from workflows.gate import PromotionSpec

Location = tuple[str | int, ...]


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
    training: TrainingSpec = TrainingSpec()
    promotion: PromotionSpec = PromotionSpec()
    store: Annotated[str, Execution] = "store"
    """Folder of shards and snapshots, shared by all workers; relative to the YAML's folder."""
    tracking: TrackingSpec = TrackingSpec()


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
    def digest(self) -> str:
        """Hash of all that the file says that can change a result."""
        return fingerprint(self.spec)

    def error(self, where: Location, text: str) -> ConfigurationError:
        """What is wrong with a field, with the line in which it stands."""
        return ConfigurationError(_Lines(self.path).message(where, text))

    def refuse_sequences(self) -> None:
        """ConfigurationError if a candidate takes a modality that is embedded as sequences.

        They can be embedded and kept, but candidates are fitted on one embedding a sample.
        """
        features = self.spec.features
        for candidate in self.spec.candidates:
            for modality in candidate.resolved_modalities(tuple(features)):
                encoder = features[modality].encoder
                if not encoder.sequence:
                    continue
                field = type(encoder).model_fields.get("output")
                single = [
                    v for v in get_args(field.annotation if field else None) if v != "sequence"
                ]
                remedy = " or ".join(f"`output: {value}`" for value in single) or "another encoder"
                raise self.error(
                    ("features", modality, "encoder", "output"),
                    f"gives a sequence of embeddings, and the candidate {candidate.name!r} takes "
                    f"one embedding a sample; set {remedy}, or name the candidate's `modalities` "
                    f"without {modality!r}",
                )

    def open_source(self) -> Source:
        """Find the table and check that it has every column that the file names."""
        lines = _Lines(self.path)
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
            raise ConfigurationError("\n".join(problems))
        return source

    def _columns(self) -> Iterator[tuple[Location, str]]:
        dataset = self.spec.dataset
        yield ("dataset", "id"), dataset.id
        for key in ("column", "group"):
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
    lines = _Lines(file)
    try:
        value = yaml.safe_load(text)
        lines.refuse_repeated_keys()
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {error}") from error
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
    try:
        problem = spec.promotion.out_of_range(spec.promotion.metric_of(spec.task))
    except ValueError as error:
        problem = ("metric", str(error))
    if problem is not None:
        yield ("promotion", problem[0]), problem[1]
    if spec.task.type == "retrieval":
        for i, candidate in enumerate(spec.candidates):
            if candidate.objective == "task":
                yield (
                    ("candidates", i, "type"),
                    f"a retrieval task has no classes to answer, and {candidate.type!r} answers "
                    "nothing else; give alignments",
                )
    seen: dict[str, int] = {}
    for i, candidate in enumerate(spec.candidates):
        if candidate.name in seen:
            yield (
                ("candidates", i, "name"),
                f"the name {candidate.name!r} is that of candidate {seen[candidate.name] + 1} too",
            )
        seen.setdefault(candidate.name, i)
        for where, modality in candidate.named_modalities():
            if modality not in spec.features:
                yield (
                    ("candidates", i, *where),
                    f"there is no modality {modality!r}; {nearest_hint(modality, spec.features)}"
                    f"features: {', '.join(spec.features)}",
                )


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
        else:
            value = problem["input"]
            simple = isinstance(value, str | int | float | bool | None)
            shown = f" (value: {value!r})" if simple else ""
            yield where, problem["msg"].removeprefix("Value error, ") + shown


class _Lines:
    """Where the fields of a YAML file stand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def message(self, where: Location, text: str) -> str:
        """`file:line: field: text`."""
        field = ".".join(str(part) for part in where)
        return f"{self._name}:{self._line(where)}: {field}: {text}".replace(": : ", ": ")

    def _line(self, where: Location) -> int:
        """Line of a field, or of the deepest part of its path that is there, counted from 1."""
        node: Any = yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        line = 1
        for part in where:
            if isinstance(node, yaml.MappingNode):
                pairs = [(k, v) for k, v in node.value if k.value == part]
                if not pairs:
                    break
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line

    def refuse_repeated_keys(self) -> None:
        """YAML readers keep the last of two equal keys silently; that is never what is meant."""

        def visit(node: Any, where: Location) -> None:
            if isinstance(node, yaml.MappingNode):
                seen: dict[str, int] = {}
                for key, value in node.value:
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        field = ".".join(str(part) for part in (*where, key.value))
                        raise ConfigurationError(
                            f"{self._name}:{line}: {field}: given before, in line {seen[key.value]}"
                        )
                    seen[key.value] = line
                    visit(value, (*where, key.value))
            elif isinstance(node, yaml.SequenceNode):
                for i, value in enumerate(node.value):
                    visit(value, (*where, i))

        visit(yaml.compose(self._path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ())
