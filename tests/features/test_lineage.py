"""From a row of a snapshot to its source and its shards, against pandas, pyarrow and DuckDB."""

import datetime
import platform
from importlib.metadata import version

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.lineage import find_sample, trace_sample
from features.payload_keys import payload_key
from features.store import Store
from tests.features.test_statistics import Counting
from tests.features.world import LettersSpec


def trace(world, snapshot, sample_id):
    return trace_sample(world.store, snapshot, sample_id=sample_id)


def in_two_files(world):
    (world.folder / "parts").mkdir()
    world.frame[:400].to_parquet(world.folder / "parts/a.parquet", index=False)
    world.frame[400:].to_parquet(world.folder / "parts/b.parquet", index=False)
    world.path = "parts"


@pytest.mark.parametrize("row", [0, 101, 399, 400, 777, 899])
def test_a_trace_leads_to_the_source_and_to_the_embedding(world, row):
    in_two_files(world)
    _, _, snapshot = world.run()
    found = trace(world, snapshot, f"s{row}")
    source = pd.read_parquet(found.source_file).iloc[found.source_row]
    assert source["id"] == f"s{row}" and found.row == row
    assert found.values == {"split": "train", "target.label": row % 3}
    root = world.folder / "store"
    held = duckdb.sql(f"SELECT * FROM '{root / found.sample_shard}'").df().iloc[found.shard_row]
    assert held["sample_id"] == f"s{row}"
    for modality in world.specs:
        payload = found.payloads[modality]
        assert payload.spec == world.specs[modality].model_dump(mode="json")
        if pd.isna(source[modality]):
            assert (payload.state, payload.key, payload.embedding) == ("missing", "", None)
            assert held[f"key.{modality}"] is None or pd.isna(held[f"key.{modality}"])
            continue
        assert payload.state == "embedded"
        columns = world.plan().modalities[modality].feature.payload_columns
        key = payload_key(source[modality], columns=columns, folder=str(world.folder))
        assert bytes.fromhex(payload.key) == key == bytes(held[f"key.{modality}"])
        place = payload.embedding
        there = pq.read_table(root / place.path).slice(place.position, 1).to_pylist()[0]
        assert (there["row"], there["payload_key"]) == (found.shard_row, key)
        text = source[modality]
        np.testing.assert_array_equal(there["embedding"], [text.count(c) for c in "aeio"])
        assert (place.vectors, place.patch) == (1, False)


def test_a_trace_says_when_where_and_with_what(world):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    _, _, snapshot = world.run()
    world.frame.loc[501, "text"] = "other"
    _, _, changed = world.run()
    computed = trace(world, snapshot, "s501").payloads["text"].embedding.computed
    assert (
        before
        <= datetime.datetime.fromisoformat(computed.time)
        <= (datetime.datetime.now(datetime.UTC))
    )
    assert computed.host == platform.node() and computed.copied == 0
    assert computed.versions["python"] == platform.python_version()
    assert computed.versions["numpy"] == version("numpy")
    again = trace(world, changed, "s501").payloads["text"].embedding.computed
    assert again.copied == again.rows - 1 > 0


def test_a_bad_payload_says_why_and_once_it_is_mended_where_its_patch_is(world, monkeypatch):
    world.frame.loc[5, "text"] = "unusable"
    _, _, snapshot = world.run()
    payload = trace(world, snapshot, "s5").payloads["text"]
    assert (payload.state, payload.stage, payload.reason) == (
        "quarantined", "prepare", "too odd to use",
    )  # fmt: skip
    assert payload.embedding is None and len(payload.key) == 32
    from tests.features.world import Letters

    monkeypatch.setattr(Letters, "prepare", lambda self, payload: payload)
    _, results, patched = world.retry()
    payload = trace(world, patched, "s5").payloads["text"]
    assert payload.state == "embedded" and payload.embedding.patch
    assert results[0].patch in payload.embedding.path
    assert trace(world, patched, "s6").payloads["text"].embedding.patch is False


def test_a_payload_of_which_nothing_is_left_is_lost(world):
    world.frame.loc[5, "text"] = "unusable"
    _, _, snapshot = world.run()
    encoder = snapshot.modalities["text"].encoder_fingerprint
    quarantine = [
        f"quarantine/{encoder}/{n}" for n in world.store.storage.list(f"quarantine/{encoder}")
    ]
    world.store.storage.delete(quarantine)
    assert trace(world, snapshot, "s5").payloads["text"].state == "lost"


def test_places_are_those_of_the_time_of_the_snapshot(world):
    """Before, the rows stood elsewhere; both are told, and of a moved table the newer place."""
    _, _, first = world.run()
    world.frame = world.frame[::-1].reset_index(drop=True)
    _, _, second = world.run()
    in_two_files(world)
    _, _, third = world.run()
    assert third.id == second.id != first.id
    world.frame.loc[3, "label"] = 5
    world.frame.to_parquet(world.folder / "parts/c.parquet", index=False)
    for name in "ab":
        (world.folder / f"parts/{name}.parquet").unlink()
    _, _, fourth = world.run()
    found = {}
    for name, snapshot in (("first", first), ("third", third), ("fourth", fourth)):
        one = trace(world, world.store.placed(snapshot.id), "s100")
        found[name] = (one.source_file.rpartition("/")[2], one.source_row)
    assert found == {
        "first": ("table.parquet", 100),
        "third": ("b.parquet", 799 - 400),
        "fourth": ("c.parquet", 799),
    }
    assert world.store.previous("world").id == third.id


def test_places_that_were_not_kept_are_not_known(world):
    _, _, first = world.run()
    world.frame.loc[3, "label"] = 5
    world.run()
    world.store.storage.delete([f"places/{first.id}.json"])
    found = trace(world, world.store.placed(first.id), "s100")
    assert (found.source_file, found.source_row, found.row) == ("", None, 100)


def test_a_sequence_is_found_with_its_length(world, monkeypatch):
    from tests.features.test_shard import Words

    world.specs = {"text": Words()}
    monkeypatch.setattr(LettersSpec, "log", [])
    _, _, snapshot = world.run()
    place = trace(world, snapshot, "s101").payloads["text"].embedding
    table = pq.read_table(world.folder / "store" / place.path)
    part = table.slice(place.position, place.vectors)["embedding"].to_pylist()
    words = world.frame["text"][101].split()
    assert part == [[len(word), i] for i, word in enumerate(words)]


def test_only_row_groups_that_may_have_the_id_are_read(world, monkeypatch):
    """The ids are sorted here, so that their least and greatest tell; and the search ends."""
    world.frame["id"] = [f"s{i:04}" for i in range(len(world.frame))]
    _, _, snapshot = world.run()
    store = Store(Counting(world.store.storage.root))
    read = []
    plain = pq.ParquetFile.read_row_group

    def counted(self, *arguments, **options):
        read.append(options["columns"])
        return plain(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert find_sample(store, snapshot, sample_id="s0000") == (0, 0)
    assert read == [["sample_id"]]
    assert find_sample(store, snapshot, sample_id="nobody") is None
    assert read == [["sample_id"]]
    assert set(store.storage.opened) == {shard.path for shard in snapshot.samples}
    last = find_sample(store, snapshot, sample_id=f"s{len(world.frame) - 1:04}")
    assert last == (len(snapshot.samples) - 1, snapshot.samples[-1].rows - 1)


def test_nobody_is_in_no_snapshot(world):
    _, _, snapshot = world.run()
    assert trace(world, snapshot, "s9000") is None and trace(world, snapshot, "") is None
