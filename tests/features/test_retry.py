"""Quarantined rows tried again: patches beside shards that never change."""

import numpy as np
import pytest

from features.quarantine import read_quarantine
from features.stored_embeddings import read_embeddings
from tests.features.world import Letters


def break_rows(world, monkeypatch, rows):
    """An encoder that cannot take some rows, until the patch of its code is undone."""
    for row in rows:
        world.frame.loc[row, "text"] = f"for now unusable {row}"
    monkeypatch.setattr(Letters, "prepare", lambda self, text: _refuse(text))


def _refuse(text):
    if text.startswith("for now unusable"):
        raise ValueError("not yet")
    return text


def test_a_retry_embeds_the_bad_rows_alone_and_changes_no_shard(world, monkeypatch):
    break_rows(world, monkeypatch, [3, 4, 401])
    _, _, before = world.run()
    assert before.modalities["text"].bad == 3
    files = world.files()
    monkeypatch.undo()
    work, results, after = world.retry()

    assert sum(len(one.only) for one in work) == 3
    assert sum(result.embedded for result in results) == 3
    now = world.files()
    assert {path: now[path] for path in files} == files
    assert len(now) == len(files) + len(results)
    assert after.id != before.id and after.modalities["text"].bad == 0
    rows, values = world.expected("text")
    found = read_embeddings(world.store, after, modality="text")
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.values, values)
    assert read_quarantine(world.store, after).num_rows == 0


def test_what_is_still_bad_stays_in_the_quarantine(world, monkeypatch):
    break_rows(world, monkeypatch, [3, 4])
    world.frame.loc[500, "text"] = ""
    world.run()
    monkeypatch.undo()
    world.retry()
    _, results, after = world.retry()
    assert [result.patch for result in results] == [""]
    left = read_quarantine(world.store, after).to_pylist()
    assert [(row["sample_id"], row["stage"]) for row in left] == [("s500", "decode")]


def test_patches_stay_listed_by_the_runs_that_follow(world, monkeypatch):
    break_rows(world, monkeypatch, [3])
    world.run()
    monkeypatch.undo()
    _, _, patched = world.retry()
    _, results, again = world.run()
    assert not results and again.id == patched.id
    world.frame.loc[700, "note"] = "another note"
    _, _, later = world.run()
    assert later.modalities["text"].shards == patched.modalities["text"].shards


def test_a_patch_is_named_by_what_it_holds(world, monkeypatch):
    break_rows(world, monkeypatch, [3, 4])
    world.run()
    monkeypatch.undo()
    _, results, _ = world.retry()
    names = {result.patch for result in results}
    _, again, _ = world.retry()
    assert again == []
    assert names <= world.store.shards_of(world.specs["text"].fingerprint())


@pytest.mark.parametrize("text", ["poison", "not finite"])
def test_a_row_that_the_encoder_fails_for_again_makes_no_patch(world, text):
    world.frame.loc[100, "text"] = text
    world.run()
    files = world.files()
    _, results, after = world.retry()
    assert [result.bad for result in results] == [1]
    assert world.files() == files and after.modalities["text"].bad == 1
