"""Tables of every format read alike, by scan and by position."""

import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.sources import CHUNK_ROWS, RowRange, RowReader, SourceError, open_source

ROWS = 20_000
FRAME = pd.DataFrame(
    {
        "id": [f"{i:05}" for i in range(ROWS)],
        "text": [None if i % 7 == 0 else f'no. {i}, "quoted"\nsecond line' for i in range(ROWS)],
        "label": [i % 10 for i in range(ROWS)],
    }
)


def write_parquet(path):
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    pq.write_table(table, path, row_group_size=3000)


def write_csv(path):
    FRAME.to_csv(path, index=False)


def write_jsonl(path):
    rows = FRAME.astype(object).where(FRAME.notna(), None).to_dict("records")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WRITERS = {"parquet": write_parquet, "csv": write_csv, "jsonl": write_jsonl}


@pytest.fixture(params=WRITERS)
def table_path(request, tmp_path):
    path = tmp_path / f"table.{request.param}"
    WRITERS[request.param](path)
    return path


def read_all(source, columns):
    chunks = list(source.scan(columns=columns, text=["id", "text"]))
    tables = [chunk.table for chunk in chunks]
    return chunks, pa.concat_tables(tables, promote_options="permissive").to_pandas()


def test_a_scan_gives_every_row_in_order(table_path):
    source = open_source(table_path.name, folder=str(table_path.parent))
    assert source.columns() == ["id", "text", "label"]
    chunks, frame = read_all(source, ["id", "text", "label"])
    assert frame["id"].tolist() == FRAME["id"].tolist()
    assert frame["label"].tolist() == FRAME["label"].tolist()
    assert frame["text"].isna().tolist() == FRAME["text"].isna().tolist()
    assert frame["text"].dropna().tolist() == FRAME["text"].dropna().tolist()
    assert all(chunk.table.num_rows <= ROWS for chunk in chunks)
    starts = [chunk.first_row for chunk in chunks]
    ends = [chunk.first_row + chunk.table.num_rows for chunk in chunks]
    assert starts == [0, *ends[:-1]] and ends[-1] == ROWS


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 1)],
        [(0, 10), (10, 9000), (15000, ROWS)],
        [(19_999, ROWS), (5, 6), (3000, 3001)],
        [(CHUNK_ROWS - 1, CHUNK_ROWS + 1)],
    ],
)
def test_rows_are_read_again_by_position_in_any_order(table_path, runs):
    source = open_source(table_path.name, folder=str(table_path.parent))
    reader = RowReader(source, columns=["text", "id"])
    for start, stop in runs:
        found = reader.read([RowRange(file=0, start=start, stop=stop)])
        assert found["id"].to_pylist() == FRAME["id"][start:stop].tolist()


def test_a_run_may_cross_files(tmp_path):
    for name, part in (("b.csv", FRAME[100:]), ("a.csv", FRAME[:100])):
        part.to_csv(tmp_path / name, index=False)
    source = open_source(".", folder=str(tmp_path))
    assert [file.rsplit("/")[-1] for file in source.files] == ["a.csv", "b.csv"]
    ranges = [RowRange(file=0, start=90, stop=100), RowRange(file=1, start=0, stop=10)]
    found = RowReader(source, columns=["id"]).read(ranges)
    assert found["id"].to_pylist() == FRAME["id"][90:110].tolist()


@pytest.mark.parametrize("path", ["data", "data/part-0.csv", "data/*.csv", "data/part-?.csv"])
def test_relative_paths_in_a_table_start_from_its_folder(tmp_path, path):
    (tmp_path / "data").mkdir()
    FRAME[:3].to_csv(tmp_path / "data/part-0.csv", index=False)
    assert open_source(path, folder=str(tmp_path)).folder == str(tmp_path / "data")


def test_a_field_that_comes_late_in_lines_of_json_is_found(tmp_path):
    rows = [{"id": i} for i in range(CHUNK_ROWS + 10)] + [{"id": -1, "late": "x"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source("t.jsonl", folder=str(tmp_path))
    assert "late" in source.columns(wanted=["id", "late"])
    _, frame = read_all(source, ["id", "late"])
    assert frame["late"].notna().sum() == 1


def test_csv_keeps_text_as_it_is_written(tmp_path):
    (tmp_path / "t.csv").write_text('id,text,label\n007,NA,1\n008,,2\n009,"",3\n')
    source = open_source("t.csv", folder=str(tmp_path))
    _, frame = read_all(source, ["id", "text", "label"])
    assert frame["id"].tolist() == ["007", "008", "009"]
    assert [None if pd.isna(text) else text for text in frame["text"]] == ["NA", None, ""]
    assert frame["label"].tolist() == [1, 2, 3]


def test_compressed_text_is_read_as_it_is(tmp_path):
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write('{"id": "a", "n": 1}\n\n{"id": "b"}\n')
    _, frame = read_all(open_source("t.jsonl.gz", folder=str(tmp_path)), ["id", "n"])
    assert frame["id"].tolist() == ["a", "b"]
    assert frame["n"].isna().tolist() == [False, True]


def test_a_table_that_shrinks_under_the_reader_is_an_error(tmp_path):
    FRAME[:10].to_csv(tmp_path / "t.csv", index=False)
    source = open_source("t.csv", folder=str(tmp_path))
    with pytest.raises(SourceError, match="has fewer than 20 rows"):
        RowReader(source, columns=["id"]).read([RowRange(file=0, start=5, stop=20)])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tabel.csv", "did you mean 'table.csv'"),
        ("table.xlsx", "did you mean 'table.csv'"),
        ("nowhere/table.csv", "there is no folder"),
        ("empty", "has no files that end in"),
        ("*.parquet", "does not exist"),
        ("notes.txt", "may end in .parquet, .pq, .csv"),
    ],
)
def test_a_table_that_is_not_there_is_explained(tmp_path, path, message):
    (tmp_path / "table.csv").write_text("id\n1\n")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=message):
        open_source(path, folder=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"id": 1}\n{"id": \n', "record 2 is not JSON"),
        ("t.jsonl", "[1]\n", "record 1 is not a JSON object"),
        ("t.csv", "id,text\n1\n", "cannot be read as csv"),
        ("t.parquet", "PAR0", "not a Parquet file|cannot be read as parquet"),
    ],
)
def test_a_broken_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    source = open_source(name, folder=str(tmp_path))
    with pytest.raises(SourceError, match=message):
        source.columns()
        read_all(source, ["id"])
