"""The table's files, found by what the user wrote: a file, a folder, a pattern or an s3:// URI."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from typing import Any

from features.fingerprint import nearest_hint
from features.sources import folder as plain_folder
from features.sources.base import SourceError
from features.sources.formats import format_of, suffixes_of
from features.sources.listing import (
    WILDCARDS,
    Found,
    expand_braces,
    folder_of,
    list_folder,
    match_pattern,
    stat_all,
)
from features.sources.opening import bare_name, is_remote
from features.sources.source import Source
from features.storage import local_path, read_uri, stat_uri

EACH_A_SAMPLE = "set `dataset.format: folder` if each file in it is a sample"
DATASET = "state.json"
DATASETS = "dataset_dict.json"
"""What `datasets` writes beside the data of a Dataset, and above those of a DatasetDict."""


def open_source(path: str, *, folder: str, format: str | None = None) -> Source:
    """Find the files of a table; SourceError, with what to do, if there are none.

    `path` is a file, a folder, a glob or a brace range (`shard-{0000..0099}.tar`), relative to
    `folder`, or an s3:// URI of one. Files are ordered by name, those of a brace range as it says.
    """
    full = _full(path, folder=folder)
    if (file := _file(full)) is not None:
        return _source([file], base=os.path.dirname(full), format=format, path=full)
    if "{" in path or WILDCARDS.search(path):
        patterns = expand_braces(path)
        if not is_remote(full):
            patterns = [os.path.join(glob.escape(folder), local_path(one)) for one in patterns]
        base = _full(folder_of(path), folder=folder)
        return _source(_matched(patterns), base=base, format=format, path=full)
    entries = _entries(full)
    if format == "folder":
        found = plain_folder.find(full, entries=entries)
    elif format == "huggingface" or (format is None and _is_saved(entries)):
        format, found = "huggingface", _saved(full, entries=entries)
    else:
        known = suffixes_of(format)
        found = [e for e in entries if e.stat and bare_name(e.path).endswith(known)]
        if not found:
            raise SourceError(
                f"{full} has no files that end in {', '.join(known)}"
                + (f"; {EACH_A_SAMPLE}" if any(not _is_table(e) for e in entries) else "")
            )
    return _source(found, base=full, format=format, path=full)


def folder_hint(source: Source) -> str:
    """What to say where a table is not as described, and may be the metadata of files beside it.

    Empty if it cannot be that.
    """
    metadata = {os.path.basename(file) for file in source.files} & set(plain_folder.TABLES)
    if source.format == "folder" or not metadata:
        return ""
    return (
        f"if {metadata.pop()} describes the files beside it, set `path` to their folder and "
        "`dataset.format: folder`: that adds the columns "
        f"{', '.join(plain_folder.COLUMNS)}, and `path` is the id"
    )


def _is_table(entry: Found) -> bool:
    """Whether it is a file whose name is that of a table, or one that is hidden."""
    name = bare_name(os.path.basename(entry.path))
    return name.startswith(".") or (entry.stat is not None and name.endswith(suffixes_of(None)))


def _full(path: str, *, folder: str) -> str:
    if is_remote(path):
        return path.rstrip("/")
    try:
        return os.path.join(folder, local_path(path)) if path else folder
    except ValueError as error:
        raise SourceError(str(error)) from error


def _source(found: Sequence[Found], *, base: str, format: str | None, path: str) -> Source:
    if not found:
        raise SourceError(f"{path} has no files")
    formats = {format} if format else {format_of(entry.path) for entry in found}
    if len(formats) > 1:
        raise SourceError(
            f"{path}: files of several formats: {', '.join(sorted(map(str, formats)))}; set "
            "`dataset.format` to the one that is the table"
        )
    return Source(
        files=tuple(entry.path for entry in found),
        stats=tuple(entry.stat for entry in found if entry.stat),
        format=str(formats.pop()),
        folder=base,
    )


def _file(full: str) -> Found | None:
    """The file of a path, if it is one."""
    if is_remote(full) and (WILDCARDS.search(full) or full.count("/") < 3):
        return None
    if not is_remote(full) and not os.path.isfile(full):
        return None
    try:
        return Found(path=full, stat=stat_uri(full))
    except FileNotFoundError:
        return None


def _entries(full: str) -> list[Found]:
    """What is in a folder; SourceError if there is none."""
    there = is_remote(full) or os.path.isdir(full)
    entries = list_folder(full) if there else []
    if not there or (is_remote(full) and not entries):
        raise SourceError(_not_found(full))
    return entries


def _matched(patterns: Sequence[str]) -> list[Found]:
    """The files of patterns, in their order; SourceError for one that matches none."""
    there = stat_all([one for one in patterns if not WILDCARDS.search(one)])
    found: dict[str, Found] = {}
    for one in patterns:
        if WILDCARDS.search(one):
            matched = match_pattern(one)
        else:
            matched = [there[one]] if one in there else []
        if not matched:
            raise SourceError(_not_found(one, of=patterns))
        found |= {entry.path: entry for entry in matched}
    return list(found.values())


def _is_saved(entries: Sequence[Found]) -> bool:
    return any(os.path.basename(entry.path) in (DATASET, DATASETS) for entry in entries)


def _saved(full: str, *, entries: Sequence[Found]) -> list[Found]:
    """The data of a folder that `datasets` saved, in its order: train, validation and test."""
    names = {os.path.basename(entry.path): entry for entry in entries}
    if DATASETS in names:
        splits = _record(names[DATASETS].path, field="splits")
        return [
            found
            for split in splits
            for found in _saved(f"{full}/{split}", entries=_entries(f"{full}/{split}"))
        ]
    if DATASET not in names:
        raise SourceError(
            f"{full} has neither {DATASET} nor {DATASETS}, which `save_to_disk` of a Hugging Face "
            "dataset writes; `load_dataset` keeps its files in another way"
        )
    listed = _record(names[DATASET].path, field="_data_files")
    files = [item["filename"] for item in listed]
    lacking = [file for file in files if file not in names]
    if lacking:
        raise SourceError(f"{full} lacks {', '.join(lacking[:5])}, which its {DATASET} names")
    return [names[file] for file in files]


def _record(path: str, *, field: str) -> Any:
    try:
        return json.loads(read_uri(path))[field]
    except (ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{path} is damaged: it does not name its {field!r}") from error


def _not_found(path: str, *, of: Sequence[str] = ()) -> str:
    folder, name = os.path.split(path)
    where = f" (one of {len(of)} that the braces stand for)" if len(of) > 1 else ""
    if is_remote(path):
        known = [os.path.basename(entry.path) for entry in list_folder(folder)]
    elif os.path.isdir(folder):
        known = os.listdir(folder)
    else:
        return f"{path} does not exist{where}: there is no folder {folder}"
    return f"{path} does not exist{where}; {nearest_hint(name, known)}".rstrip("; ")
