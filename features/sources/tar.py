"""Tar archives read forwards: names, sizes and places of their files, and the data on demand.

POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU headers, as in
https://www.gnu.org/software/tar/manual/html_node/Standard.html. The standard library's reader
takes a damaged header for the end of the archive, so that what follows would be lost unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from features.sources.base import SourceError

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
LONG_NAME = b"L"
PAX = b"x"
PAX_GLOBAL = b"g"
SPARSE = b"S"
MOST_HEADER_BYTES = 2**20
"""Longest extended header; more is damage."""
PIECE = 2**20


@dataclass(kw_only=True)
class Member:
    """A regular file in an archive. Its data can be read until the next member is asked for."""

    name: str
    size: int
    offset: int
    """Where its header stands in the (decompressed) archive."""
    _tar: Tar = field(repr=False)

    def read(self) -> bytes:
        """The file's bytes; SourceError if the archive ends within them."""
        return self._tar.take(self.size, offset=self.offset, what=f"the data of {self.name!r}")


class Tar:
    """An archive that is read from its beginning; `seekable` if data can be passed over."""

    def __init__(self, opened: BinaryIO, *, file: str, seekable: bool, size: int | None) -> None:
        self._opened = opened
        self._file = file
        self._seekable = seekable
        self._size = size
        self._at = 0

    def members(self) -> Iterator[Member]:
        """The regular files in order; SourceError, with the offset, for a damaged archive."""
        renamed: dict[str, str] = {}
        everywhere: dict[str, str] = {}
        while True:
            offset = self._at
            header = self.take(BLOCK, offset=offset, what="a header")
            if not header.strip(b"\0"):
                return
            kind, size = header[156:157], self._checked_size(header, offset=offset)
            if kind in (LONG_NAME, PAX, PAX_GLOBAL):
                if size > MOST_HEADER_BYTES:
                    raise self._damaged(offset, f"an extended header of {size} bytes")
                data = self.take(size, offset=offset, what="an extended header")
                if kind == LONG_NAME:
                    renamed["path"] = data.rstrip(b"\0").decode(errors="surrogateescape")
                else:
                    records = self._pax(data, offset=offset)
                    (renamed if kind == PAX else everywhere).update(records)
                self._pass(-size % BLOCK, offset=offset)
                continue
            extended = {**everywhere, **renamed}
            if kind == SPARSE or any(name.startswith("GNU.sparse") for name in extended):
                raise SourceError(
                    f"{self._file}: sparse file at byte {offset}; make the archive without --sparse"
                )
            size = int(extended.get("size", size))
            end = self._at + size + -size % BLOCK
            if kind in REGULAR:
                name = extended.get("path") or _name(header)
                if not name.endswith("/"):
                    yield Member(name=name, size=size, offset=offset, _tar=self)
            self._pass(end - self._at, offset=offset)
            renamed = {}

    def take(self, size: int, *, offset: int, what: str) -> bytes:
        """The next bytes, all of them."""
        data = self._opened.read(size)
        self._at += len(data)
        if len(data) < size:
            raise self._damaged(
                offset, f"it ends at byte {self._at}, within {what}: truncated, or not whole yet"
            )
        return data

    def _pass(self, size: int, *, offset: int) -> None:
        """Go on by some bytes without keeping them."""
        if self._seekable and self._size is not None:
            if self._at + size > self._size:
                raise self._damaged(offset, f"it ends at byte {self._size}: truncated")
            self._at = self._opened.seek(self._at + size)
            return
        while size:
            size -= len(self.take(min(size, PIECE), offset=offset, what="a file's data"))

    def _checked_size(self, header: bytes, *, offset: int) -> int:
        """The size that a header states, if its checksum is right."""
        try:
            stated = _number(header[148:156])
            size = _number(header[124:136])
        except ValueError:
            raise self._damaged(offset, "there is no header of a file") from None
        right = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        # Some old programs took bytes for signed numbers.
        if size < 0 or (stated != right and stated != right - 256 * _high_bytes(header)):
            raise self._damaged(offset, "the header's checksum is wrong")
        return size

    def _pax(self, data: bytes, *, offset: int) -> dict[str, str]:
        """The records `LENGTH KEY=VALUE\\n` of an extended header."""
        records = {}
        while data.strip(b"\0"):
            length, _, _ = data.partition(b" ")
            try:
                record, data = data[: int(length)], data[int(length) :]
            except ValueError:
                raise self._damaged(offset, "an extended header without lengths") from None
            key, separator, value = record[len(length) + 1 : -1].partition(b"=")
            if not separator or int(length) <= 0:
                raise self._damaged(offset, "an extended header that is cut short")
            records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        return records

    def _damaged(self, offset: int, reason: str) -> SourceError:
        return SourceError(
            f"{self._file}: damaged tar archive at byte {offset}: {reason}; copy or make it again"
        )


def _high_bytes(header: bytes) -> int:
    return sum(byte > 127 for byte in header[:148] + header[156:])


def _number(digits: bytes) -> int:
    """A number in octal, or in GNU's base 256."""
    if digits[0] == 0o200:
        return int.from_bytes(digits[1:], "big")
    return int(digits.strip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    """The name in a header, with ustar's prefix; GNU keeps times where ustar has the prefix."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode(errors="surrogateescape")
