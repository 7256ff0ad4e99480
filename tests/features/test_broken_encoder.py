"""An encoder whose embeddings are worthless stops the job, however small its shards are."""

from typing import ClassVar, Literal

import numpy as np
import pytest

from features.broken_encoder import COLLAPSED, BrokenEncoder, refuse_broken_snapshot
from features.commit import make_snapshot
from features.encoders import EncoderSpec
from features.kept_statistics import gather_statistics
from features.quarantine import count_quarantine
from features.sample_shards import write_samples
from features.spec import ShardSize
from tests.features import world as worlds


class WornOut:
    def __init__(self, fault, dim):
        self.fault = fault
        self.dim = dim

    def prepare(self, payload):
        return payload

    def size(self, prepared):
        return len(prepared)

    def encode(self, batch):
        values = np.ones((len(batch), self.dim), np.float32)
        if self.fault == "not finite":
            values[:] = np.nan
        if self.fault == "nearly collapsed":
            values[:, 0] += [sum(map(ord, text)) % 2 for text in batch]
        return values


class WornOutSpec(EncoderSpec):
    kind: ClassVar = "text"
    type: Literal["tests.WornOut"] = "tests.WornOut"
    fault: str = "collapsed"
    dim: int = 16

    def load(self):
        return WornOut(self.fault, self.dim)


@pytest.fixture
def small_shards(world, monkeypatch):
    """Shards of 20 samples: fewer than an encoder can be judged by."""
    size = ShardSize(min=20, target=20, max=20)
    monkeypatch.setattr(worlds, "ShardSize", lambda **_: size)
    assert COLLAPSED > 20
    return world


def commit(world):
    plan = world.plan()
    write_samples(plan, store=world.store)
    for work in plan.work:
        world.embed(plan, work)
    counts = count_quarantine(plan, store=world.store)
    snapshot = make_snapshot(plan, store=world.store, quarantine=counts)
    found = gather_statistics(world.store, snapshot)
    refuse_broken_snapshot(snapshot, quarantine=counts, statistics=found.modalities)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("collapsed", "the same embedding for .* unlike payloads of 'text': it has collapsed"),
        ("not finite", "not finite for all .* payloads of a shard of 'text'"),
    ],
)
def test_a_shard_of_worthless_embeddings_is_never_written(world, fault, message):
    world.specs = {"text": WornOutSpec(fault=fault)}
    world.frame = world.frame[:80]
    world.frame["text"] = [f"text {i}" for i in range(80)]
    plan = world.plan()
    write_samples(plan, store=world.store)
    whole = [work for work in plan.work if work.payloads >= COLLAPSED]
    if not whole:
        pytest.fail("the table must make a shard of enough rows")
    with pytest.raises(BrokenEncoder, match=message):
        world.embed(plan, whole[0])
    assert world.store.shards_of(plan.modalities["text"].encoder_fingerprint) == set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("collapsed", "same embedding for all 8.. unlike payloads of 'text': it has collapsed"),
        ("not finite", "values that are not finite for all 810 payloads of 'text'"),
    ],
)
def test_many_small_shards_of_worthless_embeddings_are_not_committed(small_shards, fault, message):
    small_shards.specs["text"] = WornOutSpec(fault=fault)
    with pytest.raises(BrokenEncoder, match=message):
        commit(small_shards)
    with pytest.raises(BrokenEncoder, match=message):
        commit(small_shards)  # nor when all shards are there


@pytest.mark.parametrize("spec", [WornOutSpec(dim=4), WornOutSpec(fault="nearly collapsed")])
def test_encoders_that_may_be_right_are_not_refused(small_shards, spec):
    """Few numbers may be the same for many payloads; and two embeddings are not one."""
    small_shards.specs["text"] = spec
    commit(small_shards)


def test_payloads_that_are_alike_may_have_one_embedding(small_shards):
    small_shards.specs["text"] = WornOutSpec()
    small_shards.frame["text"] = [f"text {i % (COLLAPSED - 1)}" for i in range(worlds.ROWS)]
    commit(small_shards)
