"""What is repeated in a snapshot: known without a scan of the table, and the same as by one."""

import pytest

from features.commit import draft_snapshot
from features.repeats import repeats_in
from features.spec import SplitSpec
from tests.features.test_scan import Table, rows


@pytest.fixture
def table(tmp_path):
    made = Table(tmp_path)
    made.dataset["split"] = SplitSpec(column="split", group="patient")
    for number in range(3):
        made.put(f"{number:02}", rows(number * 200, number * 200 + 200))
    return made


def test_it_is_known_from_the_last_scan_without_a_read(table, monkeypatch):
    plan = table.keep()
    snapshot = draft_snapshot(plan)
    assert table.plan().record is None, "the second plan has nothing new to remember"
    monkeypatch.setattr(type(table.store), "read_table", None)
    found = repeats_in(table.store, snapshot=snapshot)
    assert found == plan.repeats and found["text"].examples and found[""].examples


def test_it_is_found_in_the_sample_shards_where_the_last_scan_was_of_others(table):
    plan = table.keep()
    snapshot = draft_snapshot(plan)
    table.put("01", rows(200, 400, text="the same everywhere"))
    later = table.keep()
    assert later.repeats != plan.repeats
    assert repeats_in(table.store, snapshot=snapshot) == plan.repeats


def test_it_is_found_in_the_sample_shards_of_a_store_without_scans(table):
    plan = table.keep()
    (table.folder / "store/scans/table.json").unlink()
    assert repeats_in(table.store, snapshot=draft_snapshot(plan)) == plan.repeats
