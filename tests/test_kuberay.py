"""The manifests for Kubernetes: valid by KubeRay's own schemas, frugal, in step with the lock.

tests/data/kuberay-1.7.0-*.json.gz are the CustomResourceDefinitions of KubeRay's release v1.7.0
(ray-operator/config/crd/bases, Apache-2.0), with their version `v1` alone, as JSON.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from features.actors import machines_to_come, plan_actors
from workflows.cli import app
from workflows.upkeep import parse_duration

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy/kuberay"
KINDS = {"RayJob": ("rayjob", "rayjobs"), "RayCronJob": ("raycronjob", "raycronjobs")}


def strict(schema: Any) -> Any:
    """A structural schema as the API server reads it with strict field validation.

    An object with `properties` takes no others, unless it preserves unknown fields; `int-or-string`
    takes both.
    """
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    named = isinstance(schema.get("properties"), dict)  # a field may be called so, too
    found = {k: v if named and k == "properties" else strict(v) for k, v in schema.items()}
    if named:
        # A field may have any of these names.
        found["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        preserves = schema.get("x-kubernetes-preserve-unknown-fields")
        if "additionalProperties" not in schema and not preserves:
            found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return found


def schema_of(kind: str) -> dict[str, Any]:
    _, plural = KINDS[kind]
    body = gzip.decompress((ROOT / f"tests/data/kuberay-1.7.0-{plural}.json.gz").read_bytes())
    definition = json.loads(body)
    assert definition["spec"]["names"]["kind"] == kind
    (version,) = definition["spec"]["versions"]
    assert version["name"] == "v1" and version["served"]
    found = strict(version["schema"]["openAPIV3Schema"])
    # The API server's own part of every object.
    found["properties"]["metadata"] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
            "generateName": {"type": "string"},
        },
        "additionalProperties": False,
    }
    return found


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    return {kind: schema_of(kind) for kind in KINDS}


def read(kind: str) -> dict[str, Any]:
    name, _ = KINDS[kind]
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def job_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of the RayJob that a manifest is, or makes."""
    spec = manifest["spec"]
    return spec["jobTemplate"] if manifest["kind"] == "RayCronJob" else spec


@pytest.mark.parametrize("kind", KINDS)
def test_kuberay_accepts_the_manifest(kind: str, schemas: dict[str, Any]) -> None:
    manifest = read(kind)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    jsonschema.validate(manifest, schemas[kind])


def broken(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with one fault each, and a word of the complaint."""
    for word in ("backofLimit", "imagePullPolice", "min-replicas", "ten", "schedul"):
        manifest = copy.deepcopy(read(kind))
        spec = job_spec(manifest)
        workers = spec["rayClusterSpec"]["workerGroupSpecs"]
        if word == "backofLimit":
            spec[word] = spec.pop("backoffLimit")
        elif word == "imagePullPolice":
            workers[0]["template"]["spec"]["containers"][0][word] = "Always"
        elif word == "min-replicas":
            workers[0][word] = workers[0].pop("minReplicas")
        elif word == "ten":
            spec["activeDeadlineSeconds"] = "ten"
        elif kind == "RayCronJob":
            manifest["spec"][word] = manifest["spec"].pop("schedule")
        else:
            continue
        yield word, manifest


@pytest.mark.parametrize("kind", KINDS)
def test_kuberay_refuses_what_it_does_not_know(kind: str, schemas: dict[str, Any]) -> None:
    faults = dict(broken(kind))
    assert len(faults) >= 4
    for word, manifest in faults.items():
        errors = list(jsonschema.Draft202012Validator(schemas[kind]).iter_errors(manifest))
        assert any(word in error.message for error in errors), word


def test_the_schedule_runs_what_the_single_run_does() -> None:
    assert job_spec(read("RayCronJob")) == job_spec(read("RayJob"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_entrypoint_is_a_command_of_ours(kind: str) -> None:
    spec = job_spec(read(kind))
    program, *arguments = spec["entrypoint"].split()
    assert not re.search(r"[&|;<>$()`'\"]", spec["entrypoint"]), "the submitter's shell would see"
    assert program == "sensorium"
    name, *options = arguments
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, list(options)).params
    assert given["as_json"] and given["on_overlap"] == "leave"
    assert parse_duration(given["deadline"]) < spec["activeDeadlineSeconds"]
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    assert given["pipeline"].parent == Path(mounts[0]["mountPath"])


def test_nothing_but_the_head_runs_while_there_is_no_work() -> None:
    cluster = job_spec(read("RayJob"))["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nodeSelector" not in head["template"]["spec"], "the head is no spot machine"


def test_the_head_knows_what_the_groups_may_grow_to() -> None:
    cluster = job_spec(read("RayJob"))["rayClusterSpec"]
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    (declared,) = [e["value"] for e in container["env"] if e["name"] == "SENSORIUM_SCALES_TO"]
    groups = [
        {"CPU": float(start["num-cpus"])}
        | ({"GPU": float(g)} if (g := start.get("num-gpus")) else {})
        for group in cluster["workerGroupSpecs"]
        for start in [group["rayStartParams"]]
        for _ in range(group["maxReplicas"])
    ]
    assert machines_to_come(declared) == groups
    actors = plan_actors(groups, shards=100)
    assert (actors.count, actors.gpus) == (8, 1), "GPUs are asked for while there is none"


def test_what_ray_is_told_is_what_kubernetes_gives() -> None:
    for group in job_spec(read("RayJob"))["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        start = group["rayStartParams"]
        assert limits["cpu"] == start["num-cpus"]
        assert limits.get("nvidia.com/gpu") == start.get("num-gpus")


def test_no_secret_is_written_into_a_manifest() -> None:
    for kind in KINDS:
        text = json.dumps(read(kind))
        assert not re.search(r"SECRET|PASSWORD|AKIA", text)
        cluster = job_spec(read(kind))["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            container = group["template"]["spec"]["containers"][0]
            assert container["envFrom"][0]["secretRef"]["name"] == "sensorium-credentials"


def test_images_and_manifests_carry_the_locked_ray_and_this_version() -> None:
    locked = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"ARG BASE=rayproject/ray:{locked[1]}-py311-cpu" in dockerfile
    assert set(re.findall(r"rayproject/ray:([\d.]+)-", dockerfile)) == {locked[1]}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for kind in KINDS:
        cluster = job_spec(read(kind))["rayClusterSpec"]
        assert cluster["rayVersion"] == locked[1]
        images = re.findall(r"REGISTRY/sensorium:([^\"]+)\"", json.dumps(cluster))
        assert {image.removesuffix("-gpu") for image in images} == {version}


def test_the_image_holds_all_that_is_installed() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = {
        Path(name).name
        for line in re.findall(r"^COPY (?:--chown=\S+ )?(.+)$", dockerfile, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert packages | {"requirements.lock", "pyproject.toml", "README.md", "LICENSE"} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert dockerfile.index("requirements.lock ./") < dockerfile.index("features ./features")
