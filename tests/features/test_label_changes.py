"""Labels that have changed, against a join of both tables by pandas."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from features.label_changes import LabelChanges, label_changes
from tests.features.world import ROWS, World
from workflows.drift import print_label_changes


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.frame["split"] = [("train", "validation", "test")[i % 3] for i in range(ROWS)]
    return world


def joined(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    both = after.merge(before, on="id", suffixes=("", "_was"))
    return both[both["label"] != both["label_was"]]


def test_changed_labels_are_those_that_a_join_finds(world: World) -> None:
    _, _, first = world.run()
    before = world.frame.copy()
    drawn = np.random.default_rng(0).permutation(ROWS)[:37]
    world.frame.loc[drawn, "label"] = (world.frame.loc[drawn, "label"] + 1) % 3
    world.frame.loc[5, "split"] = "test"  # another split is no other label
    _, _, second = world.run()
    found = label_changes(world.store, before=first, after=second)
    assert found is not None
    expected = joined(before, world.frame)
    assert len(expected) == 37 == found.samples
    assert found.by_split == expected["split"].value_counts().to_dict()
    pairs = expected.groupby([expected["label_was"].astype(str), expected["label"].astype(str)])
    assert found.pairs == pairs.size().to_dict()
    counts = list(found.pairs.values())
    assert counts == sorted(counts, reverse=True)


def test_rows_that_come_and_go_have_no_other_label(world: World) -> None:
    _, _, first = world.run()
    before = world.frame.copy()
    world.frame = world.frame.drop(index=[40, 41]).reset_index(drop=True)
    new = world.frame.iloc[:3].assign(id=["n1", "n2", "n3"])
    world.frame = pd.concat([world.frame, new], ignore_index=True)
    _, _, second = world.run()
    assert label_changes(world.store, before=first, after=second).samples == 0
    assert label_changes(world.store, before=second, after=second).samples == 0
    world.frame.loc[100, "label"] = 7
    _, _, third = world.run()
    found = label_changes(world.store, before=first, after=third)
    assert found.samples == len(joined(before, world.frame)) == 1
    assert found.pairs == {(str(before.loc[102, "label"]), "7"): 1}


def test_of_a_snapshot_that_is_gone_nothing_is_known(world: World) -> None:
    _, _, first = world.run()
    world.frame["label"] = 1
    _, _, second = world.run()
    world.store.storage.delete([shard.path for shard in first.samples])
    assert label_changes(world.store, before=first, after=second) is None


def test_it_is_told_on_a_line_that_stands_out_where_they_are_many() -> None:
    def said(found: LabelChanges | None, samples: int) -> str:
        console = Console(file=io.StringIO(), width=200)
        print_label_changes(found, samples=samples, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    found = LabelChanges(by_split={"train": 3, "test": 1}, pairs={("a[0]", "b"): 3, ("b", "c"): 1})
    line = "4 samples (4.0 %) have another than before: train 3, test 1; most: a[0] → b 3, b → c 1"
    assert said(found, 100) == f"         labels: {line}\n"
    assert said(found, 20) == f"labels   {line.replace('4.0', '20')}\n"
    assert said(None, 20) == said(LabelChanges(), 20) == ""
