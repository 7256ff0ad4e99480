"""How the work is divided among the machines of a cluster, and encoders that end their process."""

import pytest

from features.actors import SCALES_TO, machines_to_come, plan_actors
from features.broken_encoder import BrokenEncoder
from features.encoders import parse_encoder
from features.job import LOADS, embed, machines
from features.sample_shards import write_samples
from tests.features.killers import FaultySpec, StillbornSpec


def node(cpus, gpus=0):
    return {"CPU": float(cpus), "GPU": float(gpus), "memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "count", "cpus"),
    [
        ([node(2)], 1, 1),
        ([node(16)], 4, 3),
        ([node(0), node(2), node(2)], 1, 2),
        ([node(1), node(2), node(2)], 2, 2),
        ([node(1), node(1), node(1)], 2, 1),
        ([node(0), node(64), node(64)], 31, 4),
        ([node(8), node(1)], 2, 4),
    ],
)
def test_an_actor_fits_on_a_machine_and_a_cpu_is_left(nodes, count, cpus):
    """The cluster as a whole may have CPUs enough for an actor that no machine can hold."""
    actors = plan_actors(nodes, shards=1000)
    assert (actors.count, actors.cpus, actors.gpus) == (count, cpus, 0)
    assert sum(int(n["CPU"]) // cpus for n in nodes) >= count
    assert plan_actors(nodes, shards=1).count == 1


@pytest.mark.parametrize(
    ("nodes", "count", "cpus"),
    [
        ([node(8, 1)], 1, 4),
        ([node(4, 4)], 4, 0),
        ([node(0), node(16, 8), node(16, 8)], 16, 2),
        ([node(64), node(8, 8)], 8, 1),
    ],
)
def test_every_gpu_has_an_actor_with_its_share_of_that_machine_s_cpus(nodes, count, cpus):
    actors = plan_actors(nodes, shards=1000)
    assert (actors.count, actors.cpus, actors.gpus) == (count, cpus, 1)
    for n in nodes:
        assert cpus * n["GPU"] <= n["CPU"]


def test_a_cluster_that_is_down_to_nothing_is_asked_for_what_it_may_grow_to(monkeypatch):
    """Ray itself knows of the machines that are there, which are none."""
    monkeypatch.setenv(SCALES_TO, '[{"max": 2, "CPU": 16}, {"max": 8, "CPU": 8, "GPU": 1}]')
    nodes = machines()
    assert nodes == 2 * [{"CPU": 16.0}] + 8 * [{"CPU": 8.0, "GPU": 1.0}]
    actors = plan_actors(nodes, shards=1000)
    assert (actors.count, actors.cpus, actors.gpus) == (8, 4, 1)


@pytest.mark.parametrize("text", ["8", "[8]", '[{"CPU": 8}]', '[{"max": 2, "CPU": "x"}]', "{"])
def test_what_it_may_grow_to_is_told_as_it_must_be(text):
    with pytest.raises(OSError, match=r"it lists the machines .* such as \[\{"):
        machines_to_come(text)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("deaths", [1, 99])
def test_an_encoder_that_ends_its_process_while_it_loads_is_tried_twice(world, deaths):
    log = world.folder / "loads"
    world.specs = {"text": StillbornSpec(log=str(log), deaths=deaths)}
    plan = world.plan()
    write_samples(plan, store=world.store)
    assert len(plan.work) > LOADS
    if deaths < LOADS:
        results = embed(plan, storage=world.store.storage)
        assert sum(result.embedded for result in results) == world.frame["text"].notna().sum()
    else:
        with pytest.raises(BrokenEncoder) as raised:
            embed(plan, storage=world.store.storage)
        said = str(raised.value)
        assert "'text'" in said and "tests.features.killers.StillbornSpec" in said
        assert "ended 2 times while it loaded the encoder" in said and "memory" in said
    assert len(set(log.read_text().split())) == LOADS, "each load in a process of its own"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "load",
            r"^modality 'text': the encoder '[\w.]*FaultySpec' cannot be loaded: "
            r"FileNotFoundError: \[Errno 2\] No such file or directory: '/nowhere/weights.bin'$",
        ),
        (
            "encode",
            r"^modality 'text', encoder 'tests\.features\.killers\.FaultySpec': KeyError: 'oops' "
            r"\(.*killers\.py:\d+, in encode\)$",
        ),
    ],
)
def test_an_encoder_s_own_fault_is_told_in_a_sentence(world, capfd, where, said):
    world.specs = {"text": FaultySpec(where=where)}
    plan = world.plan()
    write_samples(plan, store=world.store)
    capfd.readouterr()
    with pytest.raises(BrokenEncoder, match=said):
        embed(plan, storage=world.store.storage)
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "UDF" not in printed


def test_an_encoder_without_a_kind_is_refused():
    with pytest.raises(ValueError, match=r"does not say what it encodes.*`kind: .*text, image"):
        parse_encoder({"type": "tests.features.killers.KindlessSpec"})
