"""Tar archives of samples: what img2dataset and open_clip write, and what is damaged."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import webdataset

from features.sources import RowRange, RowReader, SourceError, open_source
from features.sources import webdataset as webdataset_source
from features.sources.tar import Tar
from tests.features.tables import add_member, publish

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def img2dataset_rows(count=25):
    """As img2dataset names them: an image that was not fetched has no `jpg`."""
    return [
        {
            "__key__": f"{i:09}",
            "txt": f"写真 {i}",
            "json": {"url": f"https://host/{i}.jpg", "width": 10 * i, "caption": f"写真 {i}"},
        }
        | ({"jpg": bytes([i]) * (i * 100)} if i % 5 else {})
        for i in range(count)
    ]


def write(path, rows):
    # `jpg` is given as bytes, which the writer keeps as they are.
    with webdataset.TarWriter(str(path)) as writer:
        for row in rows:
            writer.write(row)


def scan(source, columns):
    return [row for chunk in source.scan(columns=columns) for row in chunk.table.to_pylist()]


def test_rows_are_as_webdataset_itself_reads_them(tmp_path, storage_root):
    (tmp_path / "t").mkdir()
    rows = img2dataset_rows()
    write(tmp_path / "t/00000.tar", rows[:15])
    write(tmp_path / "t/00001.tar", rows[15:])
    root = publish(tmp_path / "t", root=storage_root)
    source = open_source(f"{root}/{{00000..00001}}.tar", folder="/")
    columns = ["__key__", "jpg", "txt", "json", "json.url", "json.width", "json.height"]
    assert set(source.columns(wanted=["jpg"])) == {*columns, "json.caption"} - {"json.height"}
    read = webdataset.WebDataset(
        [str(tmp_path / f"t/0000{i}.tar") for i in (0, 1)], shardshuffle=False
    )
    expected = []
    for row in read:
        record = json.loads(row["json"])
        expected.append(
            {
                "__key__": row["__key__"],
                "jpg": row.get("jpg"),
                "txt": row["txt"].decode(),
                "json": row["json"].decode(),
                "json.url": record["url"],
                "json.width": record["width"],
                "json.height": None,
            }
        )
    assert scan(source, columns) == expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2"])
def test_archives_of_every_kind_are_read(tmp_path, name, ending):
    long = "a-folder-of-a-long-name/" * 5
    members = {
        f"{long}{i:02}{'n' * 60}.{kind}": f"{kind} {i}".encode() * 200
        for i in range(6)
        for kind in ("txt", "seg.PNG")
    }
    mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2"}[ending]
    with tarfile.open(tmp_path / f"t.{ending}", mode, format=FORMATS[name]) as archive:
        folder = tarfile.TarInfo("a-folder-of-a-long-name")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path, data in members.items():
            add_member(archive, path, data)
    source = open_source(f"t.{ending}", folder=str(tmp_path))
    assert source.columns() == ["__key__", "txt", "seg.png"]
    expected = [
        {
            "__key__": f"{long}{i:02}{'n' * 60}",
            "txt": f"txt {i}" * 200,
            "seg.png": f"seg.PNG {i}".encode() * 200,
        }
        for i in range(6)
    ]
    assert scan(source, ["__key__", "txt", "seg.png"]) == expected
    reader = RowReader(source, columns=["seg.png"])
    for start in (4, 0, 3):
        found = reader.read([RowRange(file=0, start=start, stop=start + 1)])
        assert found["seg.png"].to_pylist() == [expected[start]["seg.png"]]


def test_only_what_is_wanted_is_read(tmp_path, monkeypatch):
    write(tmp_path / "t.tar", img2dataset_rows())
    taken = []
    take = Tar.take

    def watched(self, size, *, offset, what):
        taken.append(size if what.startswith("the data") else 0)
        return take(self, size, offset=offset, what=what)

    monkeypatch.setattr(Tar, "take", watched)
    source = open_source("t.tar", folder=str(tmp_path))
    assert len(scan(source, ["__key__"])) == 25 and sum(taken) == 0
    found = RowReader(source, columns=["jpg"]).read([RowRange(file=0, start=12, stop=13)])
    assert found["jpg"].to_pylist() == [bytes([12]) * 1200] and sum(taken) == 1200


def test_a_chunk_is_bounded_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_source, "CHUNK_BYTES", 5_000)
    write(tmp_path / "t.tar", img2dataset_rows())
    source = open_source("t.tar", folder=str(tmp_path))
    chunks = list(source.scan(columns=["jpg"]))
    assert len(chunks) > 4 and max(c.table.nbytes for c in chunks) < 5_000 + 2_400 + 1_000
    # Without the images, one chunk holds all.
    assert [c.table.num_rows for c in source.scan(columns=["txt"])] == [25]


def test_what_is_no_sample_is_passed_over(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("__meta__/x.json", "README", "a.txt", ".hidden.txt", "b.txt", "dir.x/c.txt"):
            add_member(archive, name, name.encode())
        link = tarfile.TarInfo("d.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
    source = open_source("t.tar", folder=str(tmp_path))
    expected = [("a", "a.txt"), ("b", "b.txt"), ("dir.x/c", "dir.x/c.txt")]
    found = scan(source, ["__key__", "txt"])
    assert [(row["__key__"], row["txt"]) for row in found] == expected
    by_webdataset = webdataset.WebDataset(str(tmp_path / "t.tar"), shardshuffle=False)
    assert [row["__key__"] for row in by_webdataset] == [key for key, _ in expected]


def test_a_text_that_is_not_utf8_is_its_own_samples_fault(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add_member(archive, "a.txt", b"fine")
        add_member(archive, "b.txt", b"\xff\xfe")
    source = open_source("t.tar", folder=str(tmp_path))
    reader = RowReader(source, columns=["txt"])
    found = [reader.read([RowRange(file=0, start=i, stop=i + 1)]) for i in (0, 1, 0)]
    assert [t["txt"].to_pylist() for t in found] == [["fine"], [b"\xff\xfe"], ["fine"]]
    runs = [RowRange(file=0, start=i, stop=i + 1) for i in (0, 1)]
    assert reader.read(runs)["txt"].to_pylist() == [b"fine", b"\xff\xfe"]


def damage(data, name):
    """An archive of 25 samples after an accident, and where it shows."""
    third = 512 * (len(data) // 3 // 512)
    return {
        "cut within a file": data[: third + 100],
        "cut without the end": data[: len(data.rstrip(b"\0")) // 512 * 512 + 512],
        "a header overwritten": damaged_header(data),
        "nothing": b"",
        "another file": b"%PDF-1.4 " * 200,
    }[name]


def damaged_header(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.getmembers()[9]
    at = member.offset_data - 512
    return data[:at] + b"\x7f" * 20 + data[at + 20 :]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut within a file", r"damaged tar archive at byte \d+: it ends at byte \d+.*truncated"),
        ("cut without the end", r"damaged tar archive at byte \d+: it ends .*within a header"),
        ("a header overwritten", r"damaged tar archive at byte \d+: the header's checksum"),
        ("nothing", "damaged tar archive at byte 0: it ends at byte 0"),
        ("another file", "damaged tar archive at byte 0: there is no header"),
    ],
)
@pytest.mark.parametrize("column", ["__key__", "jpg"])
def test_a_damaged_archive_is_named_with_the_place(tmp_path, name, message, ending, column):
    import gzip

    write(tmp_path / "t.tar", img2dataset_rows())
    data = damage((tmp_path / "t.tar").read_bytes(), name)
    (tmp_path / f"t.{ending}").write_bytes(data if ending == "tar" else gzip.compress(data))
    source = open_source(f"t.{ending}", folder=str(tmp_path))
    with pytest.raises(SourceError, match=rf"t\.{ending}: {message}"):
        scan(source, [column])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.json": b"{"}, "'a.json' at byte 0 is not JSON"),
        ({"a.txt": b"1", "A.txt": b"2", "./a.TXT": b""}, ""),
    ],
)
def test_what_a_row_holds_is_checked(tmp_path, members, message):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, data in members.items():
            add_member(archive, name, data)
    source = open_source("t.tar", folder=str(tmp_path))
    if message:
        with pytest.raises(SourceError, match=message):
            scan(source, ["json.x"])
    else:
        assert [row["__key__"] for row in scan(source, ["__key__"])] == ["a", "A", "./a"]


def test_a_file_that_is_twice_in_a_row_is_named(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add_member(archive, "a.jpg", b"1")
        add_member(archive, "a.JPG", b"2")
    with pytest.raises(SourceError, match=r"'a.jpg' at byte 1024 is there twice"):
        scan(open_source("t.tar", folder=str(tmp_path)), ["__key__"])
