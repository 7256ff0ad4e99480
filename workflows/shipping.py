"""What a job on a cluster is given of this computer: the code, the YAML, and what that names.

A shipment holds this project's own packages as they are installed here, the pipeline's file, the
Python files beside it, the modules of encoders and candidates of one's own, and local models that
the file names by a path relative to it. Nothing else is looked at, so no environment, store, table
or result can go along by accident. Tables, stores and MLflow are to be where every node sees them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workflows.console import size
from workflows.pipeline import ConfigurationError, Pipeline

PACKAGES = ("features", "training", "workflows")
MOST_BYTES = 100 * 2**20
"""Ray keeps what is shipped in the memory of the cluster's head."""
_NEVER = ("__pycache__",)


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """Files, by the path that they have in the job's working folder."""

    files: Mapping[str, Path]
    digest: str
    """Hash of all paths and contents."""
    bytes: int

    def copy_to(self, folder: Path) -> None:
        """Write the working folder as the job will see it."""
        for name, path in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def pack(pipeline: Pipeline) -> Shipment:
    """What is to be shipped; ConfigurationError for what a cluster would not see, or too much."""
    problems = [str(problem) for problem in _out_of_reach(pipeline)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    files = dict(sorted(_files(pipeline)))
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ConfigurationError(
            f"{pipeline.path}: {size(sum(sizes.values()))} would be shipped, and a job takes at "
            f"most {size(MOST_BYTES)}; the largest: "
            + ", ".join(f"{name} ({size(sizes[name])})" for name in largest)
            + ". Put models where every node sees them, and give their absolute path"
        )
    digest = hashlib.blake2b(digest_size=16)
    for name, path in files.items():
        body = path.read_bytes()
        digest.update(f"{name}\0{len(body)}\0".encode() + body)
    return Shipment(files=files, digest=digest.hexdigest(), bytes=sum(sizes.values()))


def environment(pipeline: Pipeline) -> dict[str, str]:
    """Variables that the job is given; the cluster shows them to everybody, so no secrets."""
    from workflows.promotion.registry import git_commit

    given = {"SENSORIUM_GIT_COMMIT": git_commit(pipeline.folder)}
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        if urllib.parse.urlsplit(uri).password:
            raise ConfigurationError(
                "MLFLOW_TRACKING_URI holds a password, and a job's variables are shown by the "
                "cluster's dashboard; set it on the cluster's nodes instead, or set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD there and leave them out "
                "of the URI"
            )
        given["MLFLOW_TRACKING_URI"] = uri
    return given


def _out_of_reach(pipeline: Pipeline) -> Iterator[ConfigurationError]:
    """What the pipeline keeps on this computer's disk by a relative path."""
    spec = pipeline.spec
    path = spec.dataset.path
    if spec.dataset.format != "huggingface" and _is_relative(path):
        yield pipeline.error(
            ("dataset", "path"),
            f"{path!r} is on this computer, where the cluster's nodes do not see it; give "
            "s3://BUCKET/KEY, or an absolute path that is mounted on every node",
        )
    if _is_relative(spec.store):
        yield pipeline.error(
            ("store",),
            f"{spec.store!r} would be a folder of the job's own on each node, and be lost with "
            "it; give s3://BUCKET/PREFIX, or an absolute path that is mounted on every node",
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI") or spec.tracking.uri
    prefix, _, file = uri.partition("sqlite:///")
    if not prefix and _is_relative(file):
        yield pipeline.error(
            ("tracking", "uri"),
            f"{uri!r} would be a file of the job's own, and be lost with it; give the http(s):// "
            "address of an MLflow server here or as MLFLOW_TRACKING_URI",
        )


def _is_relative(path: str) -> bool:
    return "://" not in path and not os.path.isabs(path)


def _files(pipeline: Pipeline) -> Iterator[tuple[str, Path]]:
    root = Path(__file__).parents[1]
    for package in PACKAGES:
        yield from _below(root / package, name=package)
    for path in sorted(pipeline.folder.glob("*.py")):
        yield path.name, path
    given = yaml.safe_load(pipeline.path.read_text(encoding="utf-8"))
    for module in sorted(set(_modules(given)) - set(PACKAGES)):
        yield from _module(module)
    for name in sorted(set(_named_paths(given.get("features")))):
        path = pipeline.folder / name
        if not path.exists():
            continue
        if os.pardir in Path(name).parts:
            raise ConfigurationError(
                f"{pipeline.path}: {name!r} lies outside of the pipeline's folder, so it cannot "
                "be shipped; move it into that folder, or give an absolute path that is mounted "
                "on every node"
            )
        clean = os.path.normpath(name)
        yield from _below(path, name=clean) if path.is_dir() else [(clean, path)]
    yield pipeline.path.name, pipeline.path


def _below(folder: Path, *, name: str) -> Iterator[tuple[str, Path]]:
    """The files of a folder, without what is hidden, and what Python has compiled."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or p in _NEVER for p in parts):
            yield f"{name}/{'/'.join(parts)}", path


def _modules(value: Any) -> Iterator[str]:
    """Top modules of the classes that are named by a dotted path, as `type: my.module.Spec`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "type" and isinstance(item, str) and "." in item:
                yield item.partition(".")[0]
            yield from _modules(item)
    elif isinstance(value, list):
        for item in value:
            yield from _modules(item)


def _module(name: str) -> Iterator[tuple[str, Path]]:
    """The files of a module or package, unless it is one that is installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None or "site-packages" in found.origin:
        return
    origin = Path(found.origin)
    if found.submodule_search_locations:
        yield from _below(origin.parent, name=name)
    else:
        yield origin.name, origin


def _named_paths(value: Any, *, within: bool = False) -> Iterator[str]:
    """The strings of encoders' options that may be relative paths."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key != "type":
                yield from _named_paths(item, within=within or key == "encoder")
    elif isinstance(value, list):
        for item in value:
            yield from _named_paths(item, within=within)
    elif within and isinstance(value, str) and value and _is_relative(value):
        yield value
