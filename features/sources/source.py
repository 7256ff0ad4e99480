"""The user's table: its files, what tells their states, and a streaming scan of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from features.sources.agreement import Agreement, plain
from features.sources.base import Window
from features.sources.formats import FORMATS
from features.sources.opening import faults_named
from features.storage import Stat

UNIT_BYTES = 2**26
"""How many bytes of files make one piece of work."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table's files in their order, all of one format."""

    files: tuple[str, ...]
    """Paths, or s3:// URIs. In the format `folder`, `FOLDER/*` and `FOLDER/NAME/` stand for all
    that lies in them."""
    stats: tuple[Stat, ...]
    """Size and tag of each file, as they were found; equal if nothing has changed."""
    format: str
    folder: str
    """Folder, or s3:// prefix, that relative paths in the table's cells start from."""
    first_file: int = 0
    """Number, in the whole table, of the first file: not 0 in a `subset`."""

    @property
    def numbers(self) -> range:
        """The numbers of the files in the whole table."""
        return range(self.first_file, self.first_file + len(self.files))

    def path_of(self, number: int) -> str:
        """The file of a number, as chunks and ranges give it."""
        return self.files[self.numbers.index(number)]

    def subset(self, files: range) -> Source:
        """Some consecutive files with the numbers they have here: what a worker is sent."""
        if not files or files.step != 1 or files[0] not in self.numbers or (
            files[-1] not in self.numbers
        ):  # fmt: skip
            raise ValueError(f"there are files {self.numbers}, not {files}")
        part = slice(files.start - self.first_file, files.stop - self.first_file)
        return dataclasses.replace(
            self, files=self.files[part], stats=self.stats[part], first_file=files.start
        )

    def units(self, *, least_bytes: int = UNIT_BYTES) -> tuple[range, ...]:
        """Runs of files, by number, to scan as pieces of work apart from one another.

        A file of at least so many bytes is a unit of its own; smaller ones that follow one
        another are gathered until they have as many together.
        """
        found: list[range] = []
        start, size = self.first_file, 0
        for number, stat in zip(self.numbers, self.stats, strict=True):
            if stat.size >= least_bytes and number > start:
                found.append(range(start, number))
                start, size = number, 0
            size += stat.size
            if size >= least_bytes:
                found.append(range(start, number + 1))
                start, size = number + 1, 0
        if start < self.numbers.stop:
            found.append(range(start, self.numbers.stop))
        return tuple(found)

    def columns(self, *, wanted: Collection[str] = ()) -> list[str]:
        """Names of the columns: those of the first file that is not empty.

        Where each row names its fields (lines of JSON, archives), they are read on until all in
        `wanted` are found, or to the end.
        """
        format = FORMATS[self.format]
        found: dict[str, None] = {}
        for file in self.files:
            with faults_named(file, format=self.format):
                left = set(wanted) - set(found)
                found |= dict.fromkeys(format.names(file, folder=self.folder, wanted=left))
            if found and not (format.sparse and set(wanted) - set(found)):
                break
        return list(found)

    def agreement(self) -> Agreement:
        """What files of this format have to agree on, none being read yet."""
        return Agreement(text_is_bytes=FORMATS[self.format].text_is_bytes)

    def scan(
        self,
        *,
        columns: Sequence[str],
        text: Collection[str] = (),
        files: range | None = None,
        agreement: Agreement | None = None,
    ) -> Iterator[Chunk]:
        """All rows in order, of all files or of some, in chunks of at most some thousand rows.

        Columns in `text` are not guessed at in a format without types (CSV): `007` stays so.
        SourceError names the file that cannot be read, lacks a column, or holds another type
        than the files before it, or than an `agreement` of other files has it.
        """
        agreement = self.agreement() if agreement is None else agreement
        for number in self.numbers if files is None else files:
            file = self.path_of(number)
            for first, table in read_file(
                self, number=number, columns=columns, text=text, window=Window()
            ):
                agreement.add(table.schema, file=file)
                yield Chunk(file=number, first_row=first, table=table)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some consecutive rows of one file."""

    file: int
    first_row: int
    table: pa.Table


def read_file(
    source: Source,
    *,
    number: int,
    columns: Sequence[str],
    text: Collection[str],
    window: Window,
) -> Iterator[tuple[int, pa.Table]]:
    """Chunks of a file, with these columns in this order, and the row at which each begins."""
    file, format = source.path_of(number), FORMATS[source.format]
    columns = list(dict.fromkeys(columns))
    chunks = format.read(file, folder=source.folder, columns=columns, text=text, window=window)
    while True:
        with faults_named(file, format=source.format):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk[0], plain(chunk[1].select(columns))
