"""What the terminal says of the difference from the snapshot before: planned, and afterwards."""

import dataclasses

import pytest

from features.commit import make_snapshot
from features.kept_statistics import keep_statistics, statistics_path
from features.quarantine import count_quarantine
from features.storage import LocalStorage
from tests.features.test_statistics import Counting
from tests.features.world import World
from tests.workflows.report_cases import digits_drift, modality_drift
from workflows.console import make_console
from workflows.drift import find_drift, planned_changes, print_drift, print_planned_changes


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def said(print_it, thing, capsys):
    print_it(thing, console=make_console())
    return " ".join(capsys.readouterr().out.split())


def test_the_plan_says_before_any_work_what_it_will_have_been(world, capsys):
    """Kept, new and removed as they are counted after the commit, by the keys."""
    _, _, first = world.run()
    world.frame.loc[[3, 701], "text"] = ["a", None]
    world.frame = world.frame.drop(index=range(200, 210)).reset_index(drop=True)
    plan = world.plan()
    planned = planned_changes(plan)
    text = said(print_planned_changes, plan, capsys)
    assert f"since snapshot {first.id[:12]}: 900 → 890 samples" in text
    assert "text 800 1 (0.1 %) 11 10 % note 890 0 10 0 %" in text
    _, _, second = world.run()
    drift = find_drift(world.store, second, previous=first)
    assert planned == {name: part.change for name, part in drift.modalities.items()}


def test_an_unchanged_table_and_a_first_one_say_nothing(world, capsys):
    assert said(print_planned_changes, world.plan(), capsys) == ""
    _, _, snapshot = world.run()
    assert said(print_planned_changes, world.plan(), capsys) == ""
    assert find_drift(world.store, snapshot, previous=None) is None
    assert find_drift(world.store, snapshot, previous=snapshot) is None


def test_statistics_beside_the_snapshots_are_all_that_is_read_of_them(world):
    _, _, first = world.run()
    keep_statistics(world.store, first, previous=None)
    world.frame.loc[[3, 700], "text"] = ["a", "b"]
    _, _, second = world.run()
    keep_statistics(world.store, second, previous=first)
    world.store.storage = Counting(world.store.storage.root)
    drift = find_drift(world.store, second, previous=first)
    assert world.store.storage.embeddings == []
    world.store.storage = LocalStorage(world.store.storage.root)
    for snapshot in (first, second):
        world.store.storage.delete([statistics_path(snapshot.id)])
    assert find_drift(world.store, second, previous=first) == drift
    assert not world.store.storage.list("statistics")


def test_after_a_commit_the_previous_snapshot_is_known(world):
    _, _, first = world.run()
    assert world.store.previous("world") is None
    world.frame.loc[3, "text"] = "a"
    _, _, second = world.run()
    world.run()
    assert world.store.latest("world").id == second.id
    assert world.store.previous("world").id == first.id
    world.store.storage.delete([f"snapshots/{first.id}.json"])
    assert world.store.previous("world") is None and world.store.previous("nobody") is None


def test_the_table_says_what_changed_of_what_changed(capsys):
    text = said(print_drift, digits_drift(), capsys)
    assert "what changed since snapshot 0c1d2e3f4a5b: 1,700 → 1,797 samples" in text
    assert "unchanged: sentence" in text
    assert "drawing" in text and "33" in text and "0.9995" in text and "+0.04 sd" in text
    assert "≈ 1,523" in text and "−1.84 sd" in text and "0.8713" in text


@pytest.mark.parametrize("columns", ["80", "100"])
def test_the_table_is_never_cut(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    print_drift(digits_drift(), console=make_console())
    out = capsys.readouterr().out
    assert "…" not in out and max(map(len, out.splitlines())) <= int(columns)


def test_what_cannot_be_compared_says_why(capsys):
    part = modality_drift(
        change=None, missing=(0.1, 0.2), cosine=None, norm=(None, 1.0), repeated=(None, None)
    )
    other = dataclasses.replace(part, same_encoder=False)
    drift = dataclasses.replace(
        digits_drift(), modalities={"a": part, "b": other}, added=("c",), removed=("d",)
    )
    text = said(print_drift, drift, capsys)
    assert "a ? ? 10 % → 20 % 0 % ? ? ?" in text and "b ? ? 10 % → 20 % 0 % ? other" in text
    assert "new in the pipeline: c" in text and "no longer in the pipeline: d" in text


def test_a_retry_alone_is_a_change(world, monkeypatch):
    """No payload is new or gone, and one is no longer bad."""
    world.frame.loc[5, "text"] = "unusable"
    _, _, before = world.run()
    from tests.features.world import Letters

    monkeypatch.setattr(Letters, "prepare", lambda self, payload: payload)
    _, _, after = world.retry()
    part = find_drift(world.store, after, previous=before).modalities["text"]
    assert (part.change.new, part.change.removed) == (0, 0) and not part.is_unchanged
    assert part.bad.before > part.bad.after == 0
    plan = world.plan()
    assert (
        make_snapshot(
            plan, store=world.store, quarantine=count_quarantine(plan, store=world.store)
        ).id
        == after.id
    )
