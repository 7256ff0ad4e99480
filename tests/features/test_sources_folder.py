"""Plain folders of files, with and without a table of metadata."""

from __future__ import annotations

import os
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from features.sources import RowRange, RowReader, SourceError, open_source
from features.sources import folder as folder_source
from tests.features.tables import publish

datasets.disable_progress_bars()
FILES = [
    "loose.png",
    "cat/1.png",
    "cat/10.png",
    "cat/2.png",
    "cat/more/1.png",
    "cat-like/1.png",
    "dog/a b.png",
]
COLUMNS = ["path", "name", "folder"]


def make(folder, files=FILES):
    for i, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(path)
    (folder / ".hidden").write_text("x")
    (folder / "cat/.DS_Store").write_text("x")
    (folder / "empty").mkdir(exist_ok=True)


def scan(source, columns):
    return [row for chunk in source.scan(columns=columns) for row in chunk.table.to_pylist()]


def test_every_file_is_a_row_of_the_class_that_its_folder_names(tmp_path, storage_root):
    make(tmp_path / "photos")
    root = publish(tmp_path / "photos", root=storage_root)
    source = open_source(root, folder="/", format="folder")
    assert source.columns() == COLUMNS and source.folder == root
    names = [file.removeprefix(root) for file in source.files]
    assert names == ["/*", "/cat-like/", "/cat/", "/dog/"]
    found = scan(source, COLUMNS)
    assert [row["path"] for row in found] == [FILES[0], FILES[5], *FILES[1:5], FILES[6]]
    classes = [None, "cat-like", "cat", "cat", "cat", "more", "dog"]
    assert [row["folder"] for row in found] == classes
    assert [row["name"] for row in found] == [row["path"].rsplit("/")[-1] for row in found]
    sizes = [sum(map(len, datas)) for datas in _contents(tmp_path / "photos", source)]
    assert [stat.size for stat in source.stats] == sizes
    reader = RowReader(source, columns=["path"])
    for start in (2, 0, 3):
        run = [RowRange(file=2, start=start, stop=start + 1)]
        assert reader.read(run)["path"].to_pylist() == [FILES[1 + start]]
    again = pickle.loads(pickle.dumps(source.subset(range(2, 3))))
    assert [row["path"] for row in scan(again, ["path"])] == FILES[1:5]


def _contents(folder, source):
    for number in source.numbers:
        part = source.subset(range(number, number + 1))
        yield [(folder / row["path"]).read_bytes() for row in scan(part, ["path"])]


def test_the_tag_tells_any_change_in_the_folder(tmp_path):
    make(tmp_path)

    def stats():
        source = open_source(".", folder=str(tmp_path), format="folder")
        return dict(zip(source.files, source.stats, strict=True))

    before = stats()
    assert stats() == before
    file = tmp_path / "cat/more/1.png"
    os.utime(file, ns=(1, 1))
    changed = {name for name, stat in stats().items() if stat != before[name]}
    assert {name.rstrip("/").rsplit("/")[-1] for name in changed} == {"cat"}


def test_a_long_folder_comes_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_source, "CHUNK_ROWS", 3)
    make(tmp_path)
    source = open_source(".", folder=str(tmp_path), format="folder")
    assert [c.first_row for c in source.scan(columns=["path"]) if c.file == 2] == [0, 3]


def test_links_that_lead_in_a_circle_are_an_error(tmp_path):
    make(tmp_path)
    (tmp_path / "dog/again").symlink_to(tmp_path / "dog")
    with pytest.raises(OSError, match="leads back to a folder that it is in"):
        open_source(".", folder=str(tmp_path), format="folder")


def metadata():
    return pd.DataFrame(
        {
            "file_name": ["cat/2.png", "loose.png", "dog/a b.png"],
            "caption": ["two", "007", None],
            "folder": ["x", "y", "z"],
        }
    )


WRITERS = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_metadata_say_which_files_there_are(tmp_path, storage_root, ending):
    make(tmp_path / "photos")
    frame = metadata().drop(columns="folder")
    WRITERS[ending](frame, tmp_path / f"photos/metadata.{ending}")
    root = publish(tmp_path / "photos", root=storage_root)
    source = open_source(root, folder="/", format="folder")
    assert source.columns() == [*COLUMNS, "file_name", "caption"]
    columns = ["caption", "path", "folder"]
    expected = [
        {"caption": "two", "path": "cat/2.png", "folder": "cat"},
        {"caption": "007", "path": "loose.png", "folder": None},
        {"caption": None, "path": "dog/a b.png", "folder": "dog"},
    ]
    found = [
        row
        for chunk in source.scan(columns=columns, text=["caption"])
        for row in chunk.table.to_pylist()
    ]
    assert found == expected
    run = [RowRange(file=0, start=1, stop=3)]
    assert RowReader(source, columns=columns).read(run).to_pylist() == expected[1:]


def test_metadata_in_the_folders_of_splits_are_read_as_datasets_reads_them(tmp_path):
    for split in ("train", "test"):
        make(tmp_path / split)
        metadata().drop(columns="folder").to_csv(tmp_path / split / "metadata.csv", index=False)
    source = open_source(".", folder=str(tmp_path), format="folder")
    found = scan(source, ["path", "caption"])
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache")
    )
    # Which folder a file lies in tells its split to `datasets`; here the column `path` does.
    assert len(found) == sum(part.num_rows for part in loaded.values()) == 6
    paths = [row["path"] for row in found]
    assert paths == [f"{s}/{name}" for s in ("test", "train") for name in metadata()["file_name"]]
    assert all((tmp_path / path).is_file() for path in paths)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.csv": "file,caption\na,b\n"}, "no column 'file_name'.*its columns: file, cap"),
        ({"metadata.csv": "file_name\n", "metadata.jsonl": ""}, "several tables of metadata"),
        ({".hidden": ""}, "has no files"),
    ],
)
def test_a_folder_that_is_no_table_is_explained(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        open_source(".", folder=str(tmp_path), format="folder").columns()
