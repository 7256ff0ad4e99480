"""The user's table: which files it is made of, a streaming scan, and rows read again by position.

Reading is by file and in order. A scan holds one chunk of rows in memory, whatever the table's
size; `Source.units` says which files can be scanned apart from one another; `RowReader` reads a
run of rows and keeps its place, so that runs asked for in ascending order cost one pass over a
file in all. Each format is a file here; `formats` lists them.
"""

from features.sources.agreement import Agreement
from features.sources.base import CHUNK_BYTES, CHUNK_ROWS, SourceError
from features.sources.finding import folder_hint, open_source
from features.sources.rows import RowRange, RowReader, rows_in_source
from features.sources.source import UNIT_BYTES, Chunk, Source

__all__ = [
    "CHUNK_BYTES",
    "CHUNK_ROWS",
    "UNIT_BYTES",
    "Agreement",
    "Chunk",
    "RowRange",
    "RowReader",
    "Source",
    "SourceError",
    "folder_hint",
    "open_source",
    "rows_in_source",
]
