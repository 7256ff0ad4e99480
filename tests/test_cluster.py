"""The cluster file: valid by Ray's own schema, frugal, and in step with the lock."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from features.actors import machines_to_come

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def check(cluster: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` sees it: filled with Ray's defaults for AWS, then validated."""
    filled = prepare_config(copy.deepcopy(cluster))
    validate_config(filled)
    return filled


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    check(cluster)


def test_ray_refuses_a_field_it_does_not_know(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu_spot"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        check(cluster)


def test_ray_refuses_a_value_of_the_wrong_type(cluster: dict[str, Any]) -> None:
    cluster["idle_timeout_minutes"] = "five"
    with pytest.raises(jsonschema.ValidationError, match="five"):
        check(cluster)


def test_nothing_but_the_head_runs_while_there_is_no_work(cluster: dict[str, Any]) -> None:
    filled = check(cluster)
    types = filled["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != filled["head_node_type"]}
    assert workers
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert all(kind["max_workers"] > 0 for kind in workers.values())
    assert filled["max_workers"] > 0


def test_the_head_takes_no_work_and_is_not_a_spot_machine(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_machines_with_and_without_gpus(cluster: dict[str, Any]) -> None:
    for name in ("cpu_spot", "gpu_spot"):
        node = cluster["available_node_types"][name]["node_config"]
        assert node["InstanceMarketOptions"]["MarketType"] == "spot"
        with_gpu = re.match(r"(g|p)\d", node["InstanceType"]) is not None
        assert with_gpu == (name == "gpu_spot"), "as AWS names its types"


def test_the_head_knows_what_the_cluster_may_grow_to(cluster: dict[str, Any]) -> None:
    """The set-up's line, run by a shell, against the machine types."""
    (command,) = [c for c in cluster["setup_commands"] if "SENSORIUM_SCALES_TO" in c]
    with tempfile.TemporaryDirectory() as home:
        Path(home, ".bashrc").touch()
        script = f"{command}; {command}; . ~/.bashrc; echo $SENSORIUM_SCALES_TO; wc -l < ~/.bashrc"
        said = subprocess.run(
            ["bash", "-c", script],
            env={"HOME": home, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    declared, lines = said.stdout.splitlines()
    assert lines.strip() == "1", "it is written once"
    resources = {"m5.2xlarge": {"CPU": 8.0}, "g5.2xlarge": {"CPU": 8.0, "GPU": 1.0}}
    types = [cluster["available_node_types"][name] for name in ("cpu_spot", "gpu_spot")]
    assert machines_to_come(declared) == [
        resources[kind["node_config"]["InstanceType"]]
        for kind in types
        for _ in range(kind["max_workers"])
    ]
    assert cluster["max_workers"] == sum(kind["max_workers"] for kind in types)


def test_every_node_installs_this_project_from_its_lock(cluster: dict[str, Any]) -> None:
    filled = check(cluster)
    for where in ("head_setup_commands", "worker_setup_commands"):
        commands = "\n".join(filled[where])
        assert "-r /home/ray/sensorium/requirements.lock" in commands
        assert "-e /home/ray/sensorium" in commands
        # Ray's default installs a nightly build of itself.
        assert "ray-wheels" not in commands


def test_the_images_carry_the_locked_ray_and_python(cluster: dict[str, Any]) -> None:
    locked = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    for image in ("head_image", "worker_image"):
        assert cluster["docker"][image].startswith(f"rayproject/ray:{locked[1]}-py311-")


def test_the_dashboard_is_not_open_to_the_network(cluster: dict[str, Any]) -> None:
    commands = "\n".join(check(cluster)["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
