"""The table → sample shards, in one pass over what is new in it.

A file that is as it was when it was last scanned is not read again, unless rows were added or
removed just before it: then its ids are read up to the first boundary that falls where it did.
So a scan costs one pass over the files that have changed, one `stat` a payload behind a URI (whose
keys cannot be remembered, since those files change by themselves), and one record a shard.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from features.columns import as_text
from features.integrity import Marks, marks_of
from features.sample_rows import SampleColumns, id_hashes, ids_of
from features.samples import Cutter, SampleShard, make_shard
from features.sources import RowRange, RowReader, Source
from features.storage import Stat


@dataclass(frozen=True, kw_only=True)
class ScannedShard:
    """A sample shard as a scan found it, with what a plan says of it."""

    shard: SampleShard
    splits: Mapping[str, int]
    """Samples per split; those in no split under the empty name."""
    labelled: Mapping[str, int]
    """Samples with a label per split."""
    cut: bool
    """Whether it ends at a boundary, and not because the table does."""
    in_files: bool
    """Whether payloads stand in files beside the table, which change by themselves."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a scan has found, for the next one to start from."""

    columns: str
    """Identity of the columns that were read, and of what was made of them."""
    files: tuple[tuple[str, Stat], ...]
    first_file: int
    """Number of the first file."""
    shards: tuple[ScannedShard, ...]
    """In row order; their ranges refer to the files by number."""
    schemas: Mapping[str, str]
    """Types of the columns, by the file they come from: Arrow schemas in base64."""


@dataclass(frozen=True, kw_only=True)
class ScannedUnit:
    """Some files of the table, scanned by themselves."""

    files: range
    scan: Scan
    marks: tuple[Marks, ...]
    """Those of each shard."""


@dataclass(kw_only=True)
class _KnownFile:
    """A file that was scanned before."""

    pending: int
    """Rows before it that were in its first shard."""
    rows: int = 0
    ends: list[int] = field(default_factory=list)
    """Boundaries in it."""
    usable: bool = True


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows of a shard to be, read or known."""

    place: RowRange
    table: pa.Table | None = None
    in_files: bool = False


_Place = tuple[tuple[str, Stat, int, int], ...]


class Scanner:
    """A scan under way. `before` is an earlier one of the same table, to start from."""

    def __init__(
        self, source: Source, *, columns: SampleColumns, before: Scan | None = None
    ) -> None:
        self._source = source
        self._columns = columns
        self._agreement = source.agreement()
        self._files: dict[tuple[str, Stat], _KnownFile] = {}
        self._shards: dict[_Place, ScannedShard] = {}
        self._marks: dict[_Place, Marks] = {}
        self._identity = columns.identity()
        if before is not None and before.columns == self._identity:
            self._learn(before, in_files_too=False)
        self._reader = RowReader(source, columns=columns.names, text=columns.text_names)
        self._cutter = Cutter(columns.dataset.shard_rows)
        self._pieces: list[_Piece] = []
        self._found: list[ScannedShard] = []

    def unknown_files(self) -> list[int]:
        """Numbers of the files that have to be read."""
        return [number for number in self._source.numbers if self._known(number) is None]

    def shards(
        self, units: Iterable[ScannedUnit] = (), *, firsts: Collection[int] = ()
    ) -> Iterator[tuple[ScannedShard, Marks | None]]:
        """The shards in order, each with its marks if its rows were read.

        `units` are scanned meanwhile, and taken one by one when the walk comes to their first
        files. SourceError for a table that cannot be what the configuration says.
        """
        following = iter(units)
        for number in self._source.numbers:
            if number in firsts:
                unit = next(following)
                self._learn(unit.scan, in_files_too=True, marks=unit.marks)
            known = self._known(number)
            yield from self._read(number) if known is None else self._reuse(number, known)
        if self._pieces:
            yield self._close(cut=False)

    def result(self) -> Scan:
        """The scan, once all its shards were taken."""
        return Scan(
            columns=self._identity,
            files=tuple(zip(self._source.files, self._source.stats, strict=True)),
            first_file=self._source.first_file,
            shards=tuple(self._found),
            schemas={
                file: base64.b64encode(schema.serialize()).decode()
                for file, schema in self._agreement.schemas.items()
            },
        )

    # ------------------------------------------------------------------ what is known

    def _learn(self, scan: Scan, *, in_files_too: bool, marks: Sequence[Marks] = ()) -> None:
        present = set(zip(self._source.files, self._source.stats, strict=True))
        kept = [item[0] for item in scan.files if item in present]
        for file, text in scan.schemas.items() if kept else ():
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
            self._agreement.add(schema, file=file if file in kept else kept[0])
        by_number = {scan.first_file + i: _KnownFile(pending=0) for i in range(len(scan.files))}
        pending, last = 0, -1
        for order, found in enumerate(scan.shards):
            for place in found.shard.ranges:
                known = by_number[place.file]
                if place.file != last:
                    known.pending, last = pending, place.file
                known.rows = place.stop
                known.usable &= in_files_too or not found.in_files
                pending += place.stop - place.start
            if found.cut:
                by_number[found.shard.ranges[-1].file].ends.append(found.shard.ranges[-1].stop)
                pending = 0
            places = tuple(
                (*scan.files[r.file - scan.first_file], r.start, r.stop) for r in found.shard.ranges
            )
            if found.in_files and not in_files_too:
                continue
            self._shards[places] = found
            if marks:
                self._marks[places] = marks[order]
        for number, known in by_number.items():
            self._files[scan.files[number - scan.first_file]] = known

    def _known(self, number: int) -> _KnownFile | None:
        known = self._files.get(self._file(number))
        return known if known is not None and known.usable else None

    def _file(self, number: int) -> tuple[str, Stat]:
        at = number - self._source.first_file
        return self._source.files[at], self._source.stats[at]

    # ------------------------------------------------------------------ the walk

    def _read(self, number: int) -> Iterator[tuple[ScannedShard, Marks | None]]:
        """The shards that end in a file which is not known."""
        for chunk in self._source.scan(
            columns=self._columns.names,
            text=self._columns.text_names,
            files=range(number, number + 1),
            agreement=self._agreement,
        ):
            rows = self._columns.rows(
                chunk.table,
                folder=self._source.folder,
                first_row=chunk.first_row,
                file=self._file(number)[0],
            )
            hashes = id_hashes(rows.table["sample_id"].combine_chunks())
            ends = self._cutter.ends(hashes)
            cuts = set(ends)
            for start, stop in zip([0, *ends], [*ends, len(hashes)], strict=True):
                if start == stop:
                    continue
                place = RowRange(
                    file=number, start=chunk.first_row + start, stop=chunk.first_row + stop
                )
                table = rows.table.slice(start, stop - start)
                self._pieces.append(_Piece(place=place, table=table, in_files=rows.in_files))
                if stop in cuts:
                    yield self._close(cut=True)

    def _reuse(self, number: int, known: _KnownFile) -> Iterator[tuple[ScannedShard, Marks | None]]:
        """The shards that end in a file which is known."""
        ends = known.ends
        if self._cutter.pending != known.pending:
            ends = self._ends_anew(number, known)
        cuts = set(ends)
        for start, stop in zip([0, *ends], [*ends, known.rows], strict=True):
            if start == stop:
                continue
            self._pieces.append(_Piece(place=RowRange(file=number, start=start, stop=stop)))
            if stop in cuts:
                yield self._close(cut=True)
        self._cutter.pending = sum(p.place.stop - p.place.start for p in self._pieces)

    def _ends_anew(self, number: int, known: _KnownFile) -> list[int]:
        """Boundaries in a known file after other rows than before: read until they are the same."""
        name, found, before = self._columns.dataset.id, list[int](), set(known.ends)
        cutter = Cutter(self._columns.dataset.shard_rows, pending=self._cutter.pending)
        for chunk in self._source.scan(
            columns=[name], text=[name], files=range(number, number + 1)
        ):
            file = self._file(number)[0]
            ids = ids_of(chunk.table[name], name=name, first_row=chunk.first_row, file=file)
            for end in cutter.ends(id_hashes(ids)):
                found.append(chunk.first_row + end)
                if found[-1] in before:
                    return found + [end for end in known.ends if end > found[-1]]
        return found

    def _close(self, *, cut: bool) -> tuple[ScannedShard, Marks | None]:
        pieces, self._pieces = self._pieces, []
        ranges = _joined([piece.place for piece in pieces])
        places = tuple((*self._file(r.file), r.start, r.stop) for r in ranges)
        known = self._shards.get(places)
        if known is not None and all(piece.table is None for piece in pieces):
            shard = replace(known.shard, ranges=ranges)
            self._found.append(replace(known, shard=shard, cut=cut))
            return self._found[-1], self._marks.pop(places, None)
        tables, in_files = [], False
        for piece in pieces:
            table = piece.table
            in_files |= piece.in_files
            if table is None:
                read = self._reader.read([piece.place])
                rows = self._columns.rows(read, folder=self._source.folder)
                table, in_files = rows.table, in_files or rows.in_files
            tables.append(table)
        made, table = make_shard(tables, ranges=ranges)
        self._found.append(_scanned(made, rows=table, cut=cut, in_files=in_files))
        return self._found[-1], marks_of(table)


def read_rows(ranges: Sequence[RowRange], *, reader: RowReader, columns: SampleColumns) -> pa.Table:
    """Rows of samples that stand at some places in the source."""
    table = reader.read(ranges)
    return columns.rows(table, folder=reader.source.folder).table


def _scanned(shard: SampleShard, *, rows: pa.Table, cut: bool, in_files: bool) -> ScannedShard:
    target = next((name for name in rows.column_names if name.startswith("target.")), None)
    return ScannedShard(
        shard=shard,
        splits=_counts(rows["split"]),
        labelled={} if target is None else _counts(rows["split"].filter(rows[target].is_valid())),
        cut=cut,
        in_files=in_files,
    )


def _counts(splits: pa.ChunkedArray) -> dict[str, int]:
    named = pc.fill_null(as_text(splits, name="split"), "")
    return {item["values"]: item["counts"] for item in pc.value_counts(named).to_pylist()}


def _joined(ranges: Sequence[RowRange]) -> tuple[RowRange, ...]:
    """The ranges, with those that continue one another made one."""
    found: list[RowRange] = []
    for following in ranges:
        if found and (found[-1].file, found[-1].stop) == (following.file, following.start):
            found[-1] = replace(found[-1], stop=following.stop)
        else:
            found.append(following)
    return tuple(found)
