"""Sample shards: boundaries that follow content, keys that stand for payloads, unique ids."""

import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.columns import PayloadColumns
from features.payload_keys import payload_key
from features.sample_rows import SampleColumns
from features.samples import groups_of
from features.scan import Scanner, read_rows
from features.sources import RowReader, SourceError, open_source
from features.spec import DatasetSpec, ShardSize, SplitSpec
from features.split import split_of

ROWS = 3000
TEXT = PayloadColumns(columns=("text",), kind="text")
PHOTO = PayloadColumns(columns=("photo",), kind="image")
SIZE = ShardSize(min=40, target=80, max=300)


def frame(rows=ROWS):
    return pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(rows)],
            "text": [None if i % 10 == 0 else f"sentence {i}" for i in range(rows)],
            "photo": [f"{i}.png" if i % 3 else None for i in range(rows)],
            "label": [i % 5 for i in range(rows)],
            "lang": ["en" if i % 2 else "ja" for i in range(rows)],
            "split": ["train" if i % 4 else "test" for i in range(rows)],
        }
    )


def scan(table, folder, *, payload_key="stat", split="split", slices=("lang",)):
    path = folder / "table.parquet"
    table.to_parquet(path, index=False)
    source = open_source(path.name, folder=str(folder))
    dataset = DatasetSpec(
        path=path.name,
        id="id",
        split=split,
        slices=slices,
        shard_rows=SIZE,
        payload_key=payload_key,
    )
    columns = {
        "text": PayloadColumns(columns=("text",), kind="text"),
        "photo": PayloadColumns(columns=("photo",), kind="image"),
    }
    columns = SampleColumns(dataset=dataset, payloads=columns, target="label")
    reader = RowReader(source, columns=columns.names, text=columns.text_names)
    scanner = Scanner(source, columns=columns)
    return source, [
        (found.shard, read_rows(found.shard.ranges, reader=reader, columns=columns))
        for found, _ in scanner.shards()
    ]


def fingerprints(shards):
    return [shard.fingerprint for shard, _ in shards]


def changed(before, after):
    return len(set(fingerprints(after)) - set(fingerprints(before)))


def test_shards_hold_the_table_in_its_order(tmp_path):
    table = frame()
    source, shards = scan(table, tmp_path)
    rows = pa.concat_tables([rows for _, rows in shards])
    assert rows["sample_id"].to_pylist() == table["id"].tolist()
    assert rows["target.label"].to_pylist() == table["label"].tolist()
    assert rows["slice.lang"].to_pylist() == table["lang"].tolist()
    assert rows["split"].to_pylist() == table["split"].tolist()
    assert rows["key.text"].is_null().to_pylist() == table["text"].isna().tolist()
    sizes = [shard.rows for shard, _ in shards]
    assert sum(sizes) == ROWS and max(sizes) <= SIZE.max
    assert all(size >= SIZE.min for size in sizes[:-1])
    reader = RowReader(source, columns=["id"])
    for shard, rows in shards:
        assert reader.read(shard.ranges)["id"].to_pylist() == rows["sample_id"].to_pylist()
        assert shard.payloads["text"] == rows.num_rows - rows["key.text"].null_count


def test_the_same_table_gives_the_same_shards(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    _, first = scan(frame(), tmp_path / "a")
    _, second = scan(frame(), tmp_path / "b")
    assert fingerprints(first) == fingerprints(second)


@pytest.mark.parametrize("place", [0, 1500, ROWS - 1])
def test_an_insertion_changes_only_the_shards_around_it(tmp_path, place):
    _, before = scan(frame(), tmp_path)
    new = frame(1).assign(id="new", text="new")
    table = pd.concat([frame()[:place], new, frame()[place:]])
    _, after = scan(table, tmp_path)
    assert 1 <= changed(before, after) <= 4
    assert len(after) > 20


def test_deletion_changes_only_the_shards_around_it(tmp_path):
    _, before = scan(frame(), tmp_path)
    _, after = scan(frame().drop(range(1000, 1010)), tmp_path)
    assert 1 <= changed(before, after) <= 4


def test_a_changed_text_moves_no_boundary_and_changes_one_modality(tmp_path):
    _, before = scan(frame(), tmp_path)
    table = frame()
    table.loc[1501, "text"] = "something else"
    _, after = scan(table, tmp_path)
    assert [shard.rows for shard, _ in before] == [shard.rows for shard, _ in after]
    keys = [
        {m for m in a.keys if a.keys[m] != b.keys[m]}
        for (a, _), (b, _) in zip(before, after, strict=True)
        if a.keys != b.keys
    ]
    assert keys == [{"text"}]


def test_a_changed_label_changes_no_payload_key(tmp_path):
    _, before = scan(frame(), tmp_path)
    table = frame()
    table.loc[1501, "label"] = 9
    _, after = scan(table, tmp_path)
    assert changed(before, after) == 1
    assert [shard.keys for shard, _ in before] == [shard.keys for shard, _ in after]


def test_a_null_id_is_named_with_its_row(tmp_path):
    table = frame()
    table.loc[11, "id"] = None
    with pytest.raises(SourceError, match=r"column 'id', row 11 .*: the id is null"):
        scan(table, tmp_path)


def test_an_unknown_split_is_explained(tmp_path):
    table = frame()
    table.loc[3, "split"] = "valid"
    with pytest.raises(SourceError, match="holds 'valid'; did you mean 'validation'"):
        scan(table, tmp_path)


def test_payloads_must_be_text_or_bytes(tmp_path):
    with pytest.raises(SourceError, match="column 'photo' holds int64; image payloads are paths"):
        scan(frame().assign(photo=3), tmp_path)


def test_a_group_is_in_one_split_and_shares_are_as_asked():
    split = SplitSpec(group="speaker", validation=0.2, test=0.3)
    found = pd.Series([split_of(f"speaker {i}", split=split) for i in range(5000)])
    shares = found.value_counts(normalize=True)
    assert abs(shares["validation"] - 0.2) < 0.02 and abs(shares["test"] - 0.3) < 0.02
    assert split_of("speaker 1", split=split) == found[1]


def test_a_file_is_known_by_name_size_and_time_or_by_content(tmp_path):
    def key(name, by="stat"):
        return payload_key(name, columns=PHOTO, folder=str(tmp_path), by=by)

    absent = key("a.png")
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    assert len({absent, key("a.png"), key("b.png")}) == 3
    assert key("a.png", "content") == key("b.png", "content")
    before = key("a.png"), key("a.png", "content")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert key("a.png") != before[0] and key("a.png", "content") == before[1]
    (tmp_path / "a.png").write_bytes(b"two")
    assert key("a.png", "content") != before[1]


def test_a_path_that_cannot_be_one_is_known_as_absent(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    keys = {payload_key(v, columns=PHOTO, folder=str(tmp_path)) for v in ("x" * 300, "loop", " ")}
    assert len(keys) == 3


def test_inline_payloads_stand_for_themselves(tmp_path):
    folder = str(tmp_path)
    assert payload_key("x", columns=TEXT, folder=folder) == payload_key(
        "x", columns=TEXT, folder="elsewhere"
    )
    assert payload_key(b"x", columns=PHOTO, folder=folder) != payload_key(
        b"y", columns=PHOTO, folder=folder
    )


def test_samples_keep_the_group_that_a_hash_divides_them_by(tmp_path):
    table = frame()
    table["speaker"] = [f"speaker {i // 7}" for i in range(len(table))]
    _, shards = scan(table, tmp_path, split={"group": "speaker"})
    kept = pa.concat_tables([rows for _, rows in shards])
    assert kept["group"].to_pylist() == table["speaker"].tolist()
    numbers = groups_of(kept)
    assert len(set(numbers)) == table["speaker"].nunique()
    assert (np.diff(numbers)[np.arange(1, len(table)) % 7 > 0] == 0).all()
    # An id that is a group of its own says nothing more.
    _, shards = scan(table, tmp_path, split={"group": "id"})
    assert groups_of(pa.concat_tables([rows for _, rows in shards])) is None


def test_a_row_without_a_group_is_one_by_itself():
    numbers = groups_of(pa.table({"group": ["a", None, "b", None, "a"]}))
    assert numbers[0] == numbers[4] and len(set(numbers.tolist())) == 4
