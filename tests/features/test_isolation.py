"""Rows that end the process: found, each for itself, without ending the one that looks."""

import pytest

from features.isolation import Trial, find_killers
from features.sample_shards import write_samples
from features.spec import FeatureSpec
from tests.features.killers import KillerSpec, StillbornSpec


def trial(world, texts):
    world.specs = {"text": KillerSpec(batch_size=16)}
    world.frame = world.frame[:120].assign(text=[f"a text {i}" for i in range(120)])
    for row, text in texts.items():
        world.frame.loc[row, "text"] = text
    plan = world.plan()
    write_samples(plan, store=world.store)
    work = max(plan.work, key=lambda work: work.rows)
    first = sum(shard.rows for shard in plan.samples[: plan.work.index(work)])
    spec = world.specs["text"]
    asked = Trial(
        work=work,
        root=world.store.storage.root,
        spec=spec,
        source=plan.source,
        columns=FeatureSpec(column="text", encoder=spec).payload_columns,
        key_by="stat",
        limits=plan.dataset.limits,
    )
    return asked, first


def test_rows_that_kill_are_found_and_those_that_raise_are_not(world):
    asked, first = trial(world, {})
    at = [first + 1, first + 5, first + 9]
    asked, _ = trial(world, dict(zip(at, ("segfault", "abort", "raises"), strict=True)))
    killers = find_killers(asked)
    assert sorted(killers) == [1, 5]
    assert "SIGSEGV" in killers[1] and "SIGABRT" in killers[5]


def test_a_row_that_kills_once_is_not_blamed(world):
    asked, first = trial(world, {})
    mark = world.folder / "it has happened"
    asked, _ = trial(world, {first + 3: f"once {mark}"})
    assert find_killers(asked) == {}
    assert mark.exists()


def test_a_process_that_is_killed_from_outside_blames_no_row(world):
    asked, first = trial(world, {})
    asked, _ = trial(world, {first + 2: "killed"})
    with pytest.raises(MemoryError, match="SIGKILL"):
        find_killers(asked)


def test_a_child_that_cannot_begin_says_why(world):
    asked, _ = trial(world, {})
    world.store.storage.read(asked.work.samples)
    broken = asked.__class__(**{**vars(asked), "root": asked.root + "-elsewhere"})
    with pytest.raises(RuntimeError, match="FileNotFoundError"):
        find_killers(broken)


def test_a_child_that_is_killed_while_it_loads_the_encoder_says_so(world):
    asked, _ = trial(world, {})
    spec = StillbornSpec(log=str(world.folder / "loads"), deaths=9)
    stillborn = asked.__class__(**{**vars(asked), "spec": spec})
    with pytest.raises(MemoryError, match=r"\(SIGKILL\) while it loaded the encoder"):
        find_killers(stillborn)
