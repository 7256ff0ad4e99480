"""Scans by Ray tasks: the same as one process's, and errors as they were raised."""

import pytest

from features.job import in_tasks
from features.sample_shards import write_samples
from features.sources import Source, SourceError
from features.storage import LocalStorage
from features.store import Store
from tests.features.test_scan import Table, facts, rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


def half(number):
    if number == 7:
        raise SourceError("seven is odd")
    return number / 2


def test_results_come_in_order_and_errors_as_they_are():
    assert list(in_tasks(half, [4, 2, 8, 6, 10, 0])) == [2, 1, 4, 3, 5, 0]
    with pytest.raises(SourceError, match="seven is odd"):
        list(in_tasks(half, [2, 7, 4]))


def test_a_scan_by_tasks_is_a_scan(tmp_path, monkeypatch):
    table = Table(tmp_path)
    for number in range(5):
        table.put(f"{number:02}", rows(number * 200, number * 200 + 200))
    units = Source.units
    monkeypatch.setattr(Source, "units", lambda self: units(self, least_bytes=1))
    monkeypatch.setattr("features.sample_shards.SHARDS_A_TASK", 2)
    plan = table.plan(run=in_tasks)
    assert facts(plan) == facts(table.afresh())
    write_samples(plan, store=table.store, run=in_tasks)
    other = Store(LocalStorage(tmp_path / "other"))
    write_samples(plan, store=other)
    for shard in plan.samples:
        assert table.store.storage.read(shard.path) == other.storage.read(shard.path)
