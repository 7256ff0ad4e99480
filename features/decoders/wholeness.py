"""Whether all bytes of a video's file are there, by what its container says of itself.

FFmpeg reads what there is, and tells of the rest in its log at most.
"""

from __future__ import annotations

EBML_HEADER, EBML_SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
"""Ids of the two elements that a Matroska file consists of, and of those that hold its frames
(RFC 9559)."""
IN_A_CLUSTER = frozenset({0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xEC, 0xBF, 0xAF})
"""Ids of what a cluster may hold."""


def missing(payload: bytes) -> str | None:
    """What shows that a file is cut short or damaged; None if nothing does.

    Knows ISO media (MP4, MOV; ISO/IEC 14496-12), Matroska and WebM (RFC 8794, 9559), RIFF (AVI)
    and GIF (89a); of others it says nothing.
    """
    if payload[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"):
        return _missing_of_iso(payload)
    if payload.startswith(EBML_HEADER.to_bytes(4, "big")):
        return _missing_of_matroska(payload)
    if payload.startswith(b"RIFF"):
        return _short_of(8 + int.from_bytes(payload[4:8], "little"), payload)
    if payload.startswith(b"GIF8"):
        return None if _gif_ends(payload) else "the GIF does not end"
    return None


def _short_of(size: int, payload: bytes) -> str | None:
    return f"{len(payload):,} of {size:,} bytes are there" if size > len(payload) else None


def _missing_of_iso(payload: bytes) -> str | None:
    position, fragmented = 0, False
    while position + 8 <= len(payload):
        size = int.from_bytes(payload[position : position + 4], "big")
        name = payload[position + 4 : position + 8]
        if size == 1:
            size = int.from_bytes(payload[position + 8 : position + 16], "big")
        elif size == 0 and name == b"mdat":  # to the end of the file
            return None
        if size < 8 or not all(32 <= letter < 127 or letter == 0xA9 for letter in name):
            # After the last box, padding is common; between fragments, it is damage.
            return f"no fragment begins at byte {position:,}" if fragmented else None
        fragmented |= name == b"moof"
        position += size
    return _short_of(position, payload)


def _missing_of_matroska(payload: bytes) -> str | None:
    """FFmpeg leaps over what it cannot read to the next cluster, and does not tell."""
    place = 0
    try:
        _, begin, size = _element(payload, 0)
        if size is None:
            return None
        name, begin, size = _element(payload, begin + size)
        if name != EBML_SEGMENT or size is None:  # without an end, as a live stream is written
            return None
        end = begin + size
        if short := _short_of(end, payload):
            return short
        place = begin
        while place < end:
            name, begin, size = _element(payload, place)
            if size is None:
                return None
            if name == CLUSTER:
                place = begin
                while place < begin + size:
                    child, inner, length = _element(payload, place)
                    if child not in IN_A_CLUSTER or length is None:
                        return f"byte {place:,} is not readable"
                    place = inner + length
            else:
                place = begin + size
            if place != begin + size:
                return f"the cluster before byte {place:,} is not readable"
    except (IndexError, ValueError):
        return f"byte {place:,} is not readable"
    return None


def _element(payload: bytes, at: int) -> tuple[int, int, int | None]:
    """Id, beginning of the content and its size (None if unknown) of an EBML element."""
    length = 9 - payload[at].bit_length()
    if length > 4:
        raise ValueError("an id has at most four bytes")
    name = int.from_bytes(payload[at : at + length], "big")
    at += length
    length = 9 - payload[at].bit_length()
    if length > 8:
        raise ValueError("a size has at most eight bytes")
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(payload[at : at + length], "big") & unknown
    return name, at + length, None if size == unknown else size


def _gif_ends(payload: bytes) -> bool:
    """Whether the blocks of a GIF lead to its trailer."""

    def after_colours(flags: int, position: int) -> int:
        return position + 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else position

    try:
        position = after_colours(payload[10], 13)
        while payload[position] != 0x3B:
            if payload[position] == 0x2C:
                position = after_colours(payload[position + 9], position + 10) + 1
            elif payload[position] == 0x21:
                position += 2
            else:
                return False
            while payload[position]:
                position += payload[position] + 1
            position += 1
    except IndexError:
        return False
    return True
