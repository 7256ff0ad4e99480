"""A table's files found by path, folder, glob and brace range, on a disk and in S3 alike."""

from __future__ import annotations

import glob
import os
import subprocess

import pytest

from features.sources import Source, SourceError, open_source
from features.sources.listing import expand_braces, match_pattern, walk
from features.spec import DatasetSpec
from features.storage import Stat, stat_uri
from tests.features.tables import FRAME, publish


@pytest.mark.parametrize(
    "pattern",
    ["{000..012}", "s-{8..11}.tar", "{a,b}-{1..2}", "x{01..10..3}", "{3..1}", "plain", "{x}", "{}"],
)
def test_braces_stand_for_what_they_stand_for_in_bash(pattern):
    told = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True)
    assert expand_braces(pattern) == told.stdout.split()


TREE = [
    "a.csv",
    "b-1.csv",
    "b-10.csv",
    "b-2.csv",
    ".hidden.csv",
    "deep/a.csv",
    "deep/er/a.csv",
    "deep/.x/a.csv",
    "deep-er/b.csv",
    "notes.txt",
]
PATTERNS = ["*.csv", "b-?.csv", "b-[12].csv", "*/*.csv", "**/*.csv", "deep*/**/a.csv", "**", "x*"]


@pytest.fixture
def tree(tmp_path, storage_root):
    local = tmp_path / "tree"
    for name in TREE:
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"id\n{name}\n")
    return local, publish(local, root=storage_root)


def test_a_pattern_matches_what_pythons_own_glob_does(tree):
    local, root = tree
    for pattern in PATTERNS:
        found = match_pattern(f"{root}/{pattern}")
        expected = sorted(
            name
            for name in glob.glob(pattern, root_dir=local, recursive=True)
            if os.path.isfile(local / name)
        )
        assert [entry.path.removeprefix(f"{root}/") for entry in found] == expected, pattern
        assert [entry.stat for entry in found] == [stat_uri(entry.path) for entry in found]


def test_a_walk_gives_all_files_in_the_order_of_their_paths(tree):
    _, root = tree
    found = [entry.path.removeprefix(f"{root}/") for entry in walk(root)]
    assert found == sorted(name for name in TREE if "/." not in f"/{name}")


def test_a_path_names_the_table_and_the_folder_that_its_cells_start_from(tree):
    _, root = tree
    expected = {
        "a.csv": ("", ["a.csv"]),
        "": ("", ["a.csv", "b-1.csv", "b-10.csv", "b-2.csv"]),
        "deep/": ("/deep", ["deep/a.csv"]),
        "b-{1..2}.csv": ("", ["b-1.csv", "b-2.csv"]),
        "b-{10,2}.csv": ("", ["b-10.csv", "b-2.csv"]),
        "{deep,deep-er}/?.csv": ("", ["deep/a.csv", "deep-er/b.csv"]),
        "deep/*/a.csv": ("/deep", ["deep/er/a.csv"]),
    }
    for path, (folder, files) in expected.items():
        if path == "":
            files = [".hidden.csv", *files]
        source = open_source(f"{root}/{path}".rstrip("/"), folder="/elsewhere")
        assert source.folder.rstrip("/") == f"{root}{folder}", path
        assert [file.removeprefix(f"{root}/") for file in source.files] == files
        assert [stat_uri(file) for file in source.files] == list(source.stats)


@pytest.mark.parametrize("path", ["data", "data/part-0.csv", "data/*.csv", "data/part-{0..0}.csv"])
def test_a_relative_path_starts_from_the_folder_of_the_configuration(tmp_path, path):
    folder = tmp_path / "a [b] {c,d}"
    (folder / "data").mkdir(parents=True)
    FRAME[:3].to_csv(folder / "data/part-0.csv", index=False)
    source = open_source(path, folder=str(folder))
    assert source.folder == str(folder / "data")
    assert source.files == (str(folder / "data/part-0.csv"),)
    by_uri = open_source((folder / "data").as_uri(), folder="/elsewhere")
    assert by_uri.files == source.files


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tabel.csv", "did you mean 'table.csv'"),
        ("table.xlsx", "did you mean 'table.csv'"),
        ("nowhere/table.csv", "does not exist"),
        ("empty", "has no files that end in .*set `dataset.format: folder`"),
        ("*.parquet", "does not exist"),
        ("table-{0..3}.csv", r"table-1.csv does not exist \(one of 4 that the braces stand for\)"),
        ("notes.txt", "may end in .parquet, .pq, .csv.*set `dataset.format: folder`"),
        ("empty/*.txt", "give their folder as the path, and set `dataset.format: folder`"),
        ("mixed", "files of several formats: csv, webdataset; set `dataset.format`"),
        ("gs://bucket/table.csv", "gs:// is not supported"),
    ],
)
def test_a_table_that_is_not_there_is_explained(tmp_path, storage_root, path, message):
    local = tmp_path / "local"
    for name in ("table.csv", "table-0.csv", "notes.txt", "empty/x.txt", "mixed/a.csv"):
        (local / name).parent.mkdir(exist_ok=True, parents=True)
        (local / name).write_text("id\n1\n")
    (local / "mixed/a.tar").write_bytes(bytes(1024))
    root = publish(local, root=storage_root)
    with pytest.raises(SourceError, match=message):
        open_source(path if "://" in path else f"{root}/{path}", folder="/")


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl", "webdataset"])
def test_a_folder_of_pictures_that_is_taken_for_a_table_is_told_of_its_format(
    tmp_path, storage_root, format
):
    (tmp_path / "pictures").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "pictures" / name).write_bytes(b"x")
    root = publish(tmp_path / "pictures", root=storage_root)
    with pytest.raises(SourceError, match=r"set `dataset.format: folder` if each file in it"):
        open_source(root, folder="/", format=format)


def test_a_folder_of_other_tables_is_not_told_so(tmp_path):
    (tmp_path / "a.csv").write_text("id\n1\n")
    with pytest.raises(SourceError) as raised:
        open_source(str(tmp_path), folder="/", format="parquet")
    assert "folder`" not in str(raised.value)


def test_a_bucket_that_is_not_there_is_told_apart(s3_root):
    with pytest.raises(OSError, match="no bucket"):
        open_source("s3://sensorium-nowhere/table.csv", folder="/")


def source_of(sizes):
    return Source(
        files=tuple(f"{i}.csv" for i in range(len(sizes))),
        stats=tuple(Stat(size=size, tag="") for size in sizes),
        format="csv",
        folder="/",
    )


@pytest.mark.parametrize(
    ("sizes", "units"),
    [
        ([], []),
        ([1, 1], [[0, 1]]),
        ([100, 1, 100], [[0], [1], [2]]),
        ([4, 4, 4, 4], [[0, 1, 2], [3]]),
        ([4, 30, 4, 4, 4], [[0], [1], [2, 3, 4]]),
        ([0, 0, 10, 0], [[0, 1], [2], [3]]),
    ],
)
def test_small_files_are_gathered_and_large_ones_stand_alone(sizes, units):
    source = source_of(sizes)
    assert [list(unit) for unit in source.units(least_bytes=10)] == units


def test_a_subset_keeps_the_numbers_of_the_whole():
    part = source_of([4] * 10).subset(range(3, 7)).subset(range(5, 7))
    assert part.files == ("5.csv", "6.csv") and part.path_of(6) == "6.csv"
    assert [list(unit) for unit in part.units(least_bytes=4)] == [[5], [6]]
    with pytest.raises(ValueError, match="not range"):
        part.subset(range(3, 6))


@pytest.mark.parametrize(
    ("path", "format", "column"),
    [
        ("t.csv", None, "sample_id"),
        ("shards/{0..9}.tar", None, "__key__"),
        ("s3://bucket/shards/*.tar.gz", None, "__key__"),
        ("shards", "webdataset", "__key__"),
        ("photos", "folder", "path"),
        ("saved", "huggingface", "sample_id"),
    ],
)
def test_the_id_has_the_name_that_a_format_gives_it(path, format, column):
    assert DatasetSpec(path=path, format=format, split="split").id == column
    assert DatasetSpec(path=path, format=format, split="split", id="mine").id == "mine"
