"""Embeddings of a table that was sorted another way: copied, each by its payload key."""

from contextlib import ExitStack

import numpy as np
import pandas as pd
import pytest

from features.donors import DonorSearch
from features.encoders import SeriesSpec
from features.sample_shards import SampleReader
from features.stored_embeddings import read_embeddings
from tests.features.world import ROWS, LettersSpec, World


@pytest.mark.parametrize("whole", [0, 1000])
@pytest.mark.parametrize("kept", [1, 2**20])
def test_a_sorted_table_embeds_nothing(tmp_path, monkeypatch, whole, kept):
    monkeypatch.setattr("features.copying.READ_WHOLE", whole)
    monkeypatch.setattr("features.copying.KEPT_BYTES", kept)
    world = World(tmp_path)
    world.run()
    world.frame = world.frame.sample(frac=1, random_state=3, ignore_index=True)
    plan, results, snapshot = world.run()
    assert len(plan.work) > 20 and LettersSpec.log == []
    assert max(len(work.donors) for work in plan.work) > 8
    assert sum(result.copied for result in results) == ROWS + ROWS * 9 // 10
    for modality in ("text", "note"):
        found = read_embeddings(world.store, snapshot, modality=modality)
        rows, values = world.expected(modality)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.values, values)


def test_sequences_are_copied_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("features.copying.READ_WHOLE", 0)
    world = World(tmp_path)
    draw = np.random.default_rng(0)
    world.frame["note"] = [draw.standard_normal(draw.integers(1, 9)).tolist() for _ in range(ROWS)]
    spec = SeriesSpec(channels=1, output="sequence", scaling="none", dtype="float32")
    world.specs = {"note": spec}
    before = world.run()[2]
    order = draw.permutation(ROWS)
    world.frame = world.frame.iloc[order].reset_index(drop=True)
    _, results, after = world.run()
    assert all(result.embedded == 0 for result in results)
    old = read_embeddings(world.store, before, modality="note")
    new = read_embeddings(world.store, after, modality="note")
    ends = np.cumsum(old.lengths)
    parts = [old.values[end - n : end] for end, n in zip(ends, old.lengths, strict=True)]
    np.testing.assert_array_equal(new.lengths, old.lengths[order])
    np.testing.assert_array_equal(new.values, np.concatenate([parts[row] for row in order]))


@pytest.mark.parametrize("held", [200, 2**20])
def test_donors_are_those_that_a_join_finds(tmp_path, monkeypatch, held):
    monkeypatch.setattr("features.spill.HELD_BYTES", held)
    world = World(tmp_path)
    _, _, before = world.run()
    world.frame = pd.concat([world.frame[300:], world.frame[:200]], ignore_index=True)
    world.frame.loc[5:30, "note"] = "new"
    plan = world.plan()
    part = before.modalities["note"]
    keys = {}
    for over in part.shards:
        for shard in over:
            path = f"embeddings/{part.encoder_fingerprint}/{shard}.parquet"
            for key in world.store.read_table(path)["payload_key"].to_pylist():
                keys[key] = shard
    listed = {shard for over in plan.modalities["note"].shards for shard in over}
    checked = 0
    for work in plan.work:
        if work.modality != "note":
            continue
        reader = SampleReader(world.store, source=plan.source, columns=plan.columns)
        shard = next(s for s in plan.samples if s.path == work.samples)
        wanted = reader.read(shard, ["key.note"])["key.note"].to_pylist()
        expected = {keys[key] for key in wanted if keys.get(key, "") and keys[key] not in listed}
        assert set(work.donors) == expected
        checked += bool(expected)
    assert checked >= 1
    with ExitStack() as stack:
        search = DonorSearch("note", donors=[], stack=stack)
        assert search.find(world.store, listed=()) == {}
