"""Tables of every format, on a disk and in S3, read alike by scan and by position."""

from __future__ import annotations

import json
import pickle
import random
from itertools import pairwise

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.sources import CHUNK_ROWS, RowRange, RowReader, SourceError, open_source
from features.sources import base as sources_base
from features.sources import csv as csv_source
from features.sources import jsonl as jsonl_source
from features.sources import webdataset as webdataset_source
from features.storage import stat_uri
from tests.features.tables import FRAME, PARTS, RECORDS, ROWS, WRITERS, columns_of, publish

TEXT = ("id", "text", "__key__", "txt")


@pytest.fixture(params=WRITERS)
def table(request, tmp_path, storage_root):
    """A table of three files, one empty, and the names of its three columns."""
    written = tmp_path / "written"
    written.mkdir()
    path = WRITERS[request.param](written)
    root = publish(written, root=storage_root)
    return open_source(f"{root}/{path}".rstrip("/"), folder="/"), columns_of(request.param)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of at most 40 rows, for a small table to have many."""
    for module in (sources_base, jsonl_source, webdataset_source):
        monkeypatch.setattr(module, "CHUNK_ROWS", 40)
    monkeypatch.setattr(csv_source, "BLOCKS", (300, 2**26))


def rows_of(tables, columns):
    """Rows by the names that the columns have in `FRAME`."""
    rows = pa.concat_tables(tables, promote_options="permissive").select(columns)
    return rows.rename_columns(["id", "text", "label"]).to_pylist()


def test_a_scan_gives_every_row_in_order(table, small_chunks):
    source, columns = table
    assert set(columns) <= set(source.columns(wanted=columns))
    chunks = list(source.scan(columns=columns, text=TEXT))
    assert rows_of([chunk.table for chunk in chunks], columns) == RECORDS
    assert all(chunk.table.column_names == columns for chunk in chunks)
    assert len(chunks) > len(source.files) and max(c.table.num_rows for c in chunks) <= 150
    for before, chunk in pairwise(chunks):
        is_next = (before.file, before.first_row + before.table.num_rows)
        assert (chunk.file, chunk.first_row) in (is_next, (before.file + 1, 0), (2, 0))


def test_runs_are_read_again_by_position_in_any_order(table, small_chunks):
    source, columns = table
    counts: dict[int, int] = {}
    for chunk in source.scan(columns=columns, text=TEXT):
        counts[chunk.file] = chunk.first_row + chunk.table.num_rows
    starts = {file: sum(n for f, n in counts.items() if f < file) for file in counts}
    draw = random.Random(0)
    reader = RowReader(source, columns=columns, text=TEXT)
    for ascending in (True, False) * 2:
        runs = []
        for file, rows in counts.items():
            cuts = sorted(draw.sample(range(rows + 1), k=8))
            runs += [
                RowRange(file=file, start=a, stop=b)
                for a, b in pairwise(cuts)
                if draw.random() < 0.5
            ]
        runs.sort(key=lambda run: (run.file, run.start), reverse=not ascending)
        expected = [
            row for run in runs for row in RECORDS[starts[run.file] :][run.start : run.stop]
        ]
        assert rows_of([reader.read(runs)], columns) == expected
        for run in runs[::3]:
            one_by_one = [RowRange(file=run.file, start=run.stop - 1, stop=run.stop)]
            row = RECORDS[starts[run.file] + run.stop - 1]
            assert rows_of([reader.read(one_by_one)], columns) == [row]


def test_units_are_scanned_apart_and_add_up(table):
    source, columns = table
    assert [stat_uri(file) for file in source.files] == list(source.stats)
    whole = rows_of([c.table for c in source.scan(columns=columns, text=TEXT)], columns)
    sizes = [stat.size for stat in source.stats]
    for least, units in ((1, len(sizes)), (sum(sizes) + 1, 1)):
        parts = source.units(least_bytes=least)
        assert [number for part in parts for number in part] == list(range(len(sizes)))
        assert len(parts) == units
        rows = []
        for part in parts:
            elsewhere = pickle.loads(pickle.dumps(source.subset(part)))
            chunks = list(elsewhere.scan(columns=columns, text=TEXT))
            same = list(source.scan(columns=columns, text=TEXT, files=part))
            assert [(c.file, c.first_row) for c in chunks] == [(c.file, c.first_row) for c in same]
            assert {chunk.file for chunk in chunks} <= set(part)
            if chunks:
                rows += rows_of([chunk.table for chunk in chunks], columns)
                last = chunks[-1]
                run = [RowRange(file=last.file, start=0, stop=1)]
                assert RowReader(elsewhere, columns=columns).read(run).num_rows == 1
        assert rows == whole


def test_a_chunk_holds_some_thousand_rows(tmp_path):
    pd.DataFrame({"id": range(30_000)}).to_parquet(tmp_path / "t.parquet")
    pd.DataFrame({"id": range(30_000)}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.jsonl").write_text("".join(f'{{"id": {i}}}\n' for i in range(30_000)))
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        chunks = list(open_source(name, folder=str(tmp_path)).scan(columns=["id"]))
        assert max(chunk.table.num_rows for chunk in chunks) == CHUNK_ROWS
        assert [i for c in chunks for i in c.table["id"].to_pylist()] == list(range(30_000))


def test_a_chunk_of_large_payloads_has_few_rows(tmp_path, monkeypatch):
    payloads = [bytes([i]) * 20_000 for i in range(200)]
    table = pa.table({"id": list(range(200)), "image": payloads})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, compression=None)
    text = "".join(f'{{"id": {i}, "image": "{chr(65 + i % 26) * 20_000}"}}\n' for i in range(200))
    (tmp_path / "t.jsonl").write_text(text)
    for module in (sources_base, jsonl_source):
        monkeypatch.setattr(module, "CHUNK_BYTES", 300_000)
    for name in ("t.parquet", "t.jsonl"):
        source = open_source(name, folder=str(tmp_path))
        chunks = list(source.scan(columns=["id", "image"]))
        assert sum(chunk.table.num_rows for chunk in chunks) == 200
        assert max(chunk.table.nbytes for chunk in chunks) < 330_000
        rows = [RowRange(file=0, start=190, stop=192)]
        assert RowReader(source, columns=["id"]).read(rows)["id"].to_pylist() == [190, 191]
    # What is not wanted does not make chunks small.
    source = open_source("t.parquet", folder=str(tmp_path))
    assert [chunk.table.num_rows for chunk in source.scan(columns=["id"])] == [200]


def test_a_run_may_cross_files(tmp_path):
    for name, part in (("b.csv", FRAME[100:]), ("a.csv", FRAME[:100])):
        part.to_csv(tmp_path / name, index=False)
    source = open_source(".", folder=str(tmp_path))
    assert [file.rsplit("/")[-1] for file in source.files] == ["a.csv", "b.csv"]
    ranges = [RowRange(file=0, start=90, stop=100), RowRange(file=1, start=0, stop=10)]
    found = RowReader(source, columns=["id"]).read(ranges)
    assert found["id"].to_pylist() == FRAME["id"][90:110].tolist()


def test_nested_columns_come_through(tmp_path):
    rows = [
        {"list": [1.5, 2.0], "empty": [], "struct": {"a": 1}, "deep": [[1], [2, 3]]},
        {"list": [], "empty": [1], "struct": {"a": None}, "deep": None},
        {"list": None, "empty": None, "struct": None, "deep": [[]]},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        source = open_source(name, folder=str(tmp_path))
        columns = ["deep", "struct", "list", "empty"]
        assert set(source.columns()) == set(columns)
        read = RowReader(source, columns=columns)
        for start in range(3):
            run = [RowRange(file=0, start=start, stop=3)]
            assert read.read(run).to_pylist() == [{n: r[n] for n in columns} for r in rows[start:]]


def test_encodings_of_text_do_not_make_another_type(tmp_path):
    plain = pa.table({"a": pa.array(["x", None, "y"])})
    variants = [
        plain,
        pa.table({"a": plain["a"].dictionary_encode()}),
        plain.cast(pa.schema({"a": pa.large_string()})),
        plain.cast(pa.schema({"a": pa.string_view()})),
        pa.table({"a": pa.nulls(3)}),
    ]
    for i, variant in enumerate(variants):
        pq.write_table(variant, tmp_path / f"{i}.parquet")
    source = open_source(".", folder=str(tmp_path))
    values = [c.table["a"].to_pylist() for c in source.scan(columns=["a"])]
    assert values == [["x", None, "y"]] * 4 + [[None] * 3]
    runs = [RowRange(file=file, start=0, stop=1) for file in range(5)]
    found = RowReader(source, columns=["a"]).read(runs)["a"].to_pylist()
    assert found == ["x", "x", "x", "x", None]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([1, 2], ["x", "y"], "'a' holds (large_)?string, and int64 in .*a.parquet"),
        (["a.png"], [b"\x89PNG"], "'a' holds binary, and (large_)?string in .*a.parquet"),
        ([[1.0]], [2.0], "'a' holds double, and list<.*> in .*a.parquet"),
        ([None, 1], [True], "'a' holds bool, and (int64|double) in .*a.parquet"),
        ([["a.png"]], [[b"\x89PNG"]], "'a' holds list<.*binary>, and list<.*string> in"),
    ],
)
def test_files_whose_columns_differ_in_type_are_named(tmp_path, one, other, message):
    pq.write_table(pa.table({"a": one}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"a": other}), tmp_path / "b.parquet")
    source = open_source(".", folder=str(tmp_path))
    with pytest.raises(SourceError, match=f"b.parquet: column {message}"):
        list(source.scan(columns=["a"]))
    runs = [RowRange(file=0, start=0, stop=1), RowRange(file=1, start=0, stop=1)]
    with pytest.raises(SourceError, match=f"b.parquet: column {message}"):
        RowReader(source, columns=["a"]).read(runs)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ([1], [2.5], [1, 2.5]),
        ([None], [2], [None, 2]),
        ([[]], [[1.5]], [[], [1.5]]),
        ([[1]], [[1.5]], [[1], [1.5]]),
        (["x"], [None], ["x", None]),
    ],
)
def test_numbers_widen_and_nulls_join_anything(tmp_path, one, other, together):
    for name, values in (("a", one), ("b", other)):
        pq.write_table(pa.table({"v": values}), tmp_path / f"{name}.parquet")
        text = "".join(json.dumps({"v": value}) + "\n" for value in values)
        (tmp_path / f"{name}.jsonl").write_text(text)
    for pattern in ("*.parquet", "*.jsonl"):
        source = open_source(pattern, folder=str(tmp_path))
        tables = [chunk.table for chunk in source.scan(columns=["v"])]
        assert [value for t in tables for value in t["v"].to_pylist()] == together
        runs = [RowRange(file=file, start=0, stop=1) for file in (0, 1)]
        assert RowReader(source, columns=["v"]).read(runs)["v"].to_pylist() == together


def test_a_field_that_comes_late_in_lines_of_json_is_found(tmp_path):
    rows = [{"id": i} for i in range(CHUNK_ROWS + 10)] + [{"id": -1, "late": "x"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source("t.jsonl", folder=str(tmp_path))
    assert "late" in source.columns(wanted=["id", "late"])
    tables = [chunk.table for chunk in source.scan(columns=["id", "late"])]
    found = pa.concat_tables(tables, promote_options="permissive")["late"]
    assert found.null_count == CHUNK_ROWS + 10 and found[-1].as_py() == "x"


def test_csv_keeps_text_as_it_is_written(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffid,text,label\n007,NA,1\n008,,2\n009,"",3\n')
    source = open_source("t.csv", folder=str(tmp_path))
    assert source.columns() == ["id", "text", "label"]
    (chunk,) = source.scan(columns=["id", "text", "label"], text=["id", "text"])
    assert chunk.table["id"].to_pylist() == ["007", "008", "009"]
    assert chunk.table["text"].to_pylist() == ["NA", None, ""]
    assert chunk.table["label"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["", "", "7", ""], [None, None, 7, None]),
        (["1", "2", "2.5", "3"], [1, 2, 2.5, 3]),
        (["true", "False"], [True, False]),
        (["", " 1", "0x"], [None, " 1", "0x"]),
        (["2026-01-01"], ["2026-01-01"]),
    ],
)
def test_csv_finds_types_that_hold_all_of_a_file(tmp_path, cells, expected):
    text = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(f"id,v\n{text}")
    (chunk,) = open_source("t.csv", folder=str(tmp_path)).scan(columns=["v"])
    assert chunk.table["v"].to_pylist() == expected


def test_a_type_that_changes_late_in_a_csv_widens_or_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "BLOCKS", (64, 2**26))
    for name, last in (("wide", "0.5"), ("text", "many")):
        rows = ["", *map(str, range(100)), last]
        text = "".join(f"{i},{cell}\n" for i, cell in enumerate(rows))
        (tmp_path / f"{name}.csv").write_text(f"id,v\n{text}")
    chunks = open_source("wide.csv", folder=str(tmp_path)).scan(columns=["v"])
    values = [value for chunk in chunks for value in chunk.table["v"].to_pylist()]
    assert values == [None, *range(100), 0.5]
    with pytest.raises(SourceError, match=r"text.csv: column 'v' holds string in or after row \d+"):
        list(open_source("text.csv", folder=str(tmp_path)).scan(columns=["v"]))


def test_a_record_longer_than_a_block_is_read_and_one_without_end_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "BLOCKS", (64, 4096))
    long = 'a "quoted"\n' * 200
    frame = pd.DataFrame({"id": range(40), "v": ["x"] * 30 + [long] + ["y"] * 9})
    frame.to_csv(tmp_path / "t.csv", index=False)
    source = open_source("t.csv", folder=str(tmp_path))
    chunks = list(source.scan(columns=["id", "v"], text=["v"]))
    rows = pa.concat_tables([chunk.table for chunk in chunks]).to_pandas()
    pd.testing.assert_frame_equal(rows, frame, check_dtype=False)
    assert [c.first_row for c in chunks] == [0, *(c.first_row + c.table.num_rows for c in chunks)][
        :-1
    ]
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text + '40,"never closed\n' + "41,x\n" * 2000)
    with pytest.raises(SourceError, match=r"after row 40 is longer than 0 MiB|a quote that is not"):
        list(source.scan(columns=["id"]))


def test_a_table_that_shrinks_under_the_reader_is_an_error(tmp_path):
    FRAME[:10].to_csv(tmp_path / "t.csv", index=False)
    source = open_source("t.csv", folder=str(tmp_path))
    reader = RowReader(source, columns=["id"])
    for _ in range(2):
        with pytest.raises(SourceError, match="has fewer than 20 rows"):
            reader.read([RowRange(file=0, start=5, stop=20)])
    found = reader.read([RowRange(file=0, start=5, stop=6)])
    assert found["id"].to_pylist() == ["00005"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"id": 1}\n{"id": \n', "record 2 is not JSON"),
        ("t.jsonl", b'{"id": 1}\n\n[1]\n', "record 2 is not a JSON object"),
        ("t.jsonl", b'{"id": "\xff"}\n', "record 1 is not UTF-8"),
        ("t.jsonl", b'{"id": 1}\n{"id": "x"}\n', "column 'id' holds values of several types"),
        ("t.csv", b"id,text\n1\n", "cannot be read as csv"),
        ("t.csv", b"id,text\n1,\xff\n", "cannot be read as csv: .*UTF8"),
        ("t.csv", b"ID,text\n1,2\n", "has no column 'id'; did you mean|its columns: ID, text"),
        ("t.csv", b"id,text,id\n1,2,3\n", "has 2 columns 'id'"),
        ("t.csv.gz", b"id\n1\n", "t.csv.gz: cannot be read as csv"),
        ("t.jsonl.zst", b'{"id": 1}\n', "t.jsonl.zst: cannot be read as jsonl"),
        ("t.parquet", b"PAR0", "not a Parquet file|cannot be read as parquet"),
    ],
)
def test_a_broken_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    source = open_source(name, folder=str(tmp_path))
    with pytest.raises(SourceError, match=message):
        list(source.scan(columns=["id", "text"], text=["id", "text"]))


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("csv", "jsonl")])
def test_a_truncated_file_is_named(tmp_path, name):
    path = WRITERS[name](tmp_path)
    source = open_source(path, folder=str(tmp_path))
    with open(source.files[-1], "rb+") as file:
        file.truncate(source.stats[-1].size * 2 // 3)
    with pytest.raises(SourceError, match=f"{source.files[-1]}: "):
        list(source.scan(columns=columns_of(name), text=TEXT))


def test_damaged_data_in_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"id": list(range(10_000))}), tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[2000:2600] = bytes(600)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"t.parquet: cannot be read as parquet: "):
        list(open_source("t.parquet", folder=str(tmp_path)).scan(columns=["id"]))


def test_a_file_that_is_gone_is_a_fault_of_the_medium(tmp_path):
    FRAME[:10].to_csv(tmp_path / "t.csv", index=False)
    source = open_source("t.csv", folder=str(tmp_path))
    (tmp_path / "t.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"t\.csv"):
        list(source.scan(columns=["id"]))


def test_a_column_that_one_file_lacks_is_named(tmp_path):
    pq.write_table(pa.table({"id": [1], "caption": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [2], "captoin": ["x"]}), tmp_path / "b.parquet")
    source = open_source(".", folder=str(tmp_path))
    with pytest.raises(SourceError, match=r"b.parquet has no column 'caption'; did you mean 'cap"):
        list(source.scan(columns=["id", "caption"]))


def test_the_parts_are_what_the_tests_take_them_for():
    assert PARTS[-1] == ROWS == len(FRAME)
