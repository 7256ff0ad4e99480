"""The formats of a table, by the name that `dataset.format` gives them."""

from __future__ import annotations

from collections.abc import Mapping

from features.sources import csv, folder, huggingface, jsonl, parquet, webdataset
from features.sources.base import Format, SourceError
from features.sources.opening import bare_name

FORMATS: Mapping[str, Format] = {
    "parquet": parquet.FORMAT,
    "csv": csv.FORMAT,
    "jsonl": jsonl.FORMAT,
    "webdataset": webdataset.FORMAT,
    "huggingface": huggingface.FORMAT,
    "folder": folder.FORMAT,
}
BY_NAME = {
    name: format for name, format in FORMATS.items() if name not in ("huggingface", "folder")
}
"""Formats that the names of files tell; the others are told by their folder, or by the user."""


def suffixes_of(format: str | None) -> tuple[str, ...]:
    """How the files of a format end, without a compression; of all formats if it is None."""
    if format:
        return FORMATS[format].suffixes
    return tuple(suffix for known in BY_NAME.values() for suffix in known.suffixes)


def format_of(file: str) -> str:
    """The format that a file's name tells; SourceError, with what to do, if it tells none."""
    for name, format in BY_NAME.items():
        if bare_name(file).endswith(format.suffixes):
            return name
    raise SourceError(
        f"{file}: the name does not tell the format; it may end in "
        f"{', '.join(suffixes_of(None))}, or set `dataset.format`. If each file is a sample, give "
        "their folder as the path, and set `dataset.format: folder`"
    )
