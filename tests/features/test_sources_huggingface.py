"""Folders that `datasets` saved, read without it: splits, classes, images, and what is damaged."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from features.sources import RowRange, RowReader, SourceError, open_source
from tests.features.tables import publish

datasets.disable_progress_bars()
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "tags": datasets.List(datasets.ClassLabel(names=["a", "b", "c"])),
        "pages": datasets.List(datasets.Image()),
        "values": datasets.List(datasets.Value("float32"), length=3),
    }
)


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(start, stop):
    return [
        {
            "id": f"{i}",
            "image": None if i % 4 == 0 else png(i),
            "label": None if i % 7 == 0 else ["cat", "dog"][i % 2],
            "tags": None if i % 5 == 0 else ["a", "b", "c"][: i % 3],
            "pages": [png(i), png(i + 1)][: i % 3],
            "values": [i, i / 2, i / 4],
        }
        for i in range(start, stop)
    ]


def media(data):
    return None if data is None else {"bytes": data, "path": None}


def dataset(start, stop):
    given = [
        row | {"image": media(row["image"]), "pages": [media(page) for page in row["pages"]]}
        for row in rows(start, stop)
    ]
    return datasets.Dataset.from_list(given, features=FEATURES)


def scan(source, columns):
    return [row for chunk in source.scan(columns=columns) for row in chunk.table.to_pylist()]


def test_a_dataset_comes_out_as_it_is_meant(tmp_path, storage_root):
    dataset(0, 40).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    source = open_source(publish(tmp_path / "saved", root=storage_root), folder="/")
    assert source.format == "huggingface" and len(source.files) == 3
    assert source.columns() == list(FEATURES)
    assert scan(source, list(FEATURES)) == rows(0, 40)
    reader = RowReader(source, columns=["tags", "image"])
    for start in (9, 3):
        found = reader.read([RowRange(file=1, start=start, stop=start + 2)]).to_pylist()
        expected = rows(14 + start, 16 + start)
        assert found == [{"tags": row["tags"], "image": row["image"]} for row in expected]


def test_a_dataset_dict_has_its_splits(tmp_path, storage_root):
    parts = {"train": (0, 20), "val": (20, 30), "test": (30, 40), "unsupervised": (40, 45)}
    saved = datasets.DatasetDict({name: dataset(*part) for name, part in parts.items()})
    saved.save_to_disk(str(tmp_path / "saved"), num_shards={**dict.fromkeys(parts, 1), "train": 2})
    source = open_source(publish(tmp_path / "saved", root=storage_root), folder="/")
    assert source.columns() == [*FEATURES, "split"]
    splits = [("train", 20), ("validation", 10), ("test", 10), (None, 5)]
    expected = [split for split, count in splits for _ in range(count)]
    found = scan(source, ["split", "id"])
    assert [(row["split"], row["id"]) for row in found] == list(
        zip(expected, map(str, range(45)), strict=True)
    )
    last = RowReader(source, columns=["split"]).read([RowRange(file=2, start=1, stop=3)])
    assert last["split"].to_pylist() == ["validation"] * 2


def test_a_column_of_its_own_is_not_hidden_by_the_splits(tmp_path):
    part = datasets.Dataset.from_dict({"split": ["test", "train"]})
    datasets.DatasetDict({"train": part}).save_to_disk(str(tmp_path / "saved"))
    source = open_source("saved", folder=str(tmp_path))
    assert source.columns() == ["split"]
    assert scan(source, ["split"]) == [{"split": "test"}, {"split": "train"}]


def test_classes_that_are_not_known_are_null(tmp_path):
    features = datasets.Features({"label": datasets.ClassLabel(names=["x"])})
    part = datasets.Dataset.from_dict({"label": [0, -1]}, features=features)
    part.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved/dataset_info.json").unlink()  # the names stand in the data too
    source = open_source("saved", folder=str(tmp_path))
    assert scan(source, ["label"]) == [{"label": "x"}, {"label": None}]


def write_arrow(folder, batches):
    """A saved dataset of an older `datasets`, which did not put files into the data."""
    folder.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema({"image": kind})
    with pa.ipc.new_stream(str(folder / "data.arrow"), schema) as writer:
        for values in batches:
            writer.write_batch(pa.record_batch([pa.array(values, kind)], schema=schema))
    state = {"_data_files": [{"filename": "data.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))


def test_images_without_bytes_come_out_as_paths(tmp_path):
    batches = [[None], [{"bytes": None, "path": "a.png"}, None], [{"bytes": None, "path": "b.png"}]]
    write_arrow(tmp_path / "saved", batches)
    source = open_source("saved", folder=str(tmp_path))
    expected = [None, "a.png", None, "b.png"]
    assert [row["image"] for row in scan(source, ["image"])] == expected
    runs = [RowRange(file=0, start=i, stop=i + 1) for i in (0, 1, 3)]
    found = RowReader(source, columns=["image"]).read(runs)["image"]
    assert found.to_pylist() == [None, "a.png", "b.png"]


@pytest.mark.parametrize(
    "batches",
    [
        [[{"bytes": b"x", "path": None}, {"bytes": None, "path": "b.png"}]],
        [[{"bytes": b"x", "path": None}], [{"bytes": None, "path": "b.png"}]],
    ],
)
def test_bytes_and_paths_in_one_column_are_told_apart(tmp_path, batches):
    write_arrow(tmp_path / "saved", batches)
    with pytest.raises(SourceError, match="'image' holds the bytes of some files and only the"):
        scan(open_source("saved", folder=str(tmp_path)), ["image"])


def test_a_stream_without_its_end_is_refused(tmp_path):
    datasets.Dataset.from_dict({"a": range(10)}).save_to_disk(str(tmp_path / "saved"))
    source = open_source("saved", folder=str(tmp_path))
    with open(source.files[0], "rb+") as file:
        file.truncate(source.stats[0].size - 8)  # Arrow itself takes this for a whole stream
    with pytest.raises(SourceError, match="without the mark of an end: truncated"):
        scan(source, ["a"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged"),
        (lambda folder: (folder / "state.json").unlink(), "has neither state.json nor"),
        (lambda folder: next(folder.glob("*.arrow")).unlink(), "lacks data-00000-of-00001.arrow"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, spoil, message):
    datasets.Dataset.from_dict({"a": range(10)}).save_to_disk(str(tmp_path / "saved"))
    spoil(tmp_path / "saved")
    with pytest.raises(SourceError, match=message):
        open_source("saved", folder=str(tmp_path), format="huggingface")


def test_a_chunk_is_bounded_by_bytes(tmp_path, monkeypatch):
    from features.sources import base

    datasets.Dataset.from_dict({"a": [b"x" * 1000] * 500}).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(base, "CHUNK_BYTES", 20_000)
    chunks = list(open_source("saved", folder=str(tmp_path)).scan(columns=["a"]))
    assert [c.first_row for c in chunks[:3]] == [0, 19, 38]
    assert sum(c.table.num_rows for c in chunks) == 500


def test_it_is_read_without_the_library_that_wrote_it(tmp_path):
    dataset(0, 10).save_to_disk(str(tmp_path / "saved"))
    script = (
        "import sys; from features.sources import open_source\n"
        f"source = open_source('saved', folder={str(tmp_path)!r})\n"
        "print(sum(c.table.num_rows for c in source.scan(columns=['image', 'label'])))\n"
        "print('datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["10", "False"], done.stderr
