"""A plain folder of files: each is a row, or a metadata table beside them says which are.

As Hugging Face's imagefolder has it (https://huggingface.co/docs/datasets/image_load): a
`metadata.csv`, `.jsonl` or `.parquet` in the folder, or in each folder below it, with a column
`file_name`, relative to where it stands. Columns are `path`, relative to the table's folder;
`name`; `folder`, the name of the folder that the file is in, which is often its class (null for
files that are in none); and those of the metadata.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from features.fingerprint import DIGEST_BYTES, nearest_hint
from features.sources import csv, jsonl, parquet
from features.sources.base import CHUNK_ROWS, Format, SourceError, Window
from features.sources.listing import Found, list_folder, walk
from features.storage import Stat

COLUMNS = ("path", "name", "folder")
FILE_NAME = "file_name"
TABLES: Mapping[str, Format] = {
    "metadata.csv": csv.FORMAT,
    "metadata.jsonl": jsonl.FORMAT,
    "metadata.parquet": parquet.FORMAT,
}
LOOSE = "/*"
"""Ends the name of what stands for the files that lie directly in a folder."""


def find(folder: str, *, entries: Sequence[Found]) -> list[Found]:
    """What a folder is read as: its metadata tables, or else its files and each folder in it.

    Files that lie directly in it come first, as `FOLDER/*`; then each folder, as `FOLDER/NAME/`.
    Their tag is a hash of the names, sizes and tags of all files, which are listed for it.
    """
    here = [entry for entry in entries if not _is_hidden(entry.path)]
    tables = _tables(here)
    if not tables:
        inside = [entry.path for entry in here if entry.stat is None]
        tables = [table for path in inside for table in _tables(list_folder(path))]
    if tables:
        return tables
    loose = [entry for entry in here if entry.stat]
    parts = [_summary(folder.rstrip("/") + LOOSE, loose)] if loose else []
    folders = sorted(f"{entry.path}/" for entry in here if entry.stat is None)
    below = (_summary(inside, walk(inside.rstrip("/"))) for inside in folders)
    return parts + [part for part in below if part.stat != EMPTY]


def names(file: str, *, folder: str, wanted: Collection[str]) -> list[str]:
    """`path`, `name` and `folder`, and the columns of the metadata."""
    table = TABLES.get(os.path.basename(file))
    if table is None:
        return list(COLUMNS)
    found = table.names(file, folder=folder, wanted={*wanted, FILE_NAME} - {*COLUMNS})
    if found and FILE_NAME not in found:
        hint = nearest_hint(FILE_NAME, found)
        raise SourceError(
            f"{file} has no column {FILE_NAME!r}, which says where each file is; {hint}"
            f"its columns: {', '.join(found)}"
        )
    return list(dict.fromkeys([*COLUMNS, *found])) if found else []


def read(
    file: str, *, folder: str, columns: Sequence[str], text: Collection[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    """The files as they are listed, or as the metadata lists them."""
    table = TABLES.get(os.path.basename(file))
    if table is None:
        yield from _listed(file, folder=folder, columns=columns, window=window)
        return
    own = [name for name in columns if name not in COLUMNS]
    chunks = table.read(
        file,
        folder=folder,
        columns=list(dict.fromkeys([*own, FILE_NAME])),
        text=[*text, FILE_NAME],
        window=window,
    )
    start = _inside(os.path.dirname(file), folder=folder)
    for first, chunk in chunks:
        values = chunk[FILE_NAME].to_pylist()
        made = _columns([None if v is None else os.path.join(start, v) for v in values])
        for name in own:
            made[name] = chunk[name]
        yield first, pa.table({name: made[name] for name in columns})


def _listed(
    file: str, *, folder: str, columns: Sequence[str], window: Window
) -> Iterator[tuple[int, pa.Table]]:
    paths: list[str | None] = []
    first = 0
    for row, entry in enumerate(_entries(file)):
        if paths and (len(paths) == CHUNK_ROWS or row >= window.stop):
            yield first, pa.table({name: _columns(paths)[name] for name in columns})
            paths = []
        if row >= window.start:
            first = first if paths else row
            paths.append(_inside(entry.path, folder=folder))
    if paths:
        yield first, pa.table({name: _columns(paths)[name] for name in columns})


def _entries(file: str) -> Iterator[Found]:
    if not file.endswith(LOOSE):
        yield from walk(file.rstrip("/"))
        return
    for entry in list_folder(file.removesuffix(LOOSE)):
        if entry.stat and not _is_hidden(entry.path):
            yield entry


def _columns(paths: Sequence[str | None]) -> dict[str, pa.Array | pa.ChunkedArray]:
    folders = [os.path.basename(os.path.dirname(path)) if path else None for path in paths]
    return {
        "path": pa.array(paths, pa.string()),
        "name": pa.array([os.path.basename(p) if p else None for p in paths], pa.string()),
        "folder": pa.array([name or None for name in folders], pa.string()),
    }


def _inside(path: str, *, folder: str) -> str:
    return path.removeprefix(folder.rstrip("/")).lstrip("/")


def _tables(entries: Sequence[Found]) -> list[Found]:
    found = [entry for entry in entries if entry.stat and os.path.basename(entry.path) in TABLES]
    if len(found) > 1:
        listed = ", ".join(os.path.basename(entry.path) for entry in found)
        where = os.path.dirname(found[0].path)
        raise SourceError(f"{where} has several tables of metadata: {listed}; keep one")
    return found


def _is_hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _summary(path: str, entries: Sequence[Found] | Iterator[Found]) -> Found:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    size = 0
    for entry in entries:
        assert entry.stat is not None
        digest.update(f"{entry.path}\0{entry.stat.size}\0{entry.stat.tag}\n".encode())
        size += entry.stat.size
    return Found(path=path, stat=Stat(size=size, tag=digest.hexdigest()))


EMPTY = Stat(size=0, tag=hashlib.blake2b(digest_size=DIGEST_BYTES).hexdigest())
FORMAT = Format(suffixes=(), read=read, names=names)
