"""Files found by folder or pattern, on a disk and in S3, with what tells one state from another.

Sizes and tags come with the listing in S3: a thousand files a request. Patterns mean the same in
both places: `*` and `?` stop at a slash and pass over hidden names, `**` is any folders.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from features import s3
from features.sources.opening import is_remote
from features.storage import Stat

WILDCARDS = re.compile(r"[*?\[]")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file, or a folder, that a listing has met."""

    path: str
    stat: Stat | None
    """None for a folder."""


def list_folder(folder: str) -> list[Found]:
    """All that lies directly in a folder, by name; FileNotFoundError if there is none."""
    if is_remote(folder):
        return sorted(_s3_entries(f"{folder.rstrip('/')}/", deep=False), key=lambda f: f.path)
    with os.scandir(folder) as entries:
        found = [_local(entry) for entry in entries]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.path)


def walk(folder: str) -> Iterator[Found]:
    """All files below a folder, hidden ones and folders aside, in the order of their paths.

    A folder is ordered as if its name ended in a slash, which is S3's order. OSError if links of
    folders lead in a circle.
    """
    if is_remote(folder):
        start = f"{folder.rstrip('/')}/"
        for entry in _s3_entries(start, deep=True):
            inside = entry.path.removeprefix(start)
            if not any(part.startswith(".") for part in inside.split("/")):
                yield entry
        return
    yield from _walk_local(folder, above=())


def _walk_local(folder: str, *, above: tuple[str, ...]) -> Iterator[Found]:
    real = os.path.realpath(folder)
    if real in above:
        raise OSError(f"{folder}: the link leads back to a folder that it is in")
    entries = [entry for entry in list_folder(folder) if not _hidden(entry.path)]
    entries.sort(key=lambda entry: entry.path if entry.stat else f"{entry.path}/")
    for entry in entries:
        if entry.stat is None:
            yield from _walk_local(entry.path, above=(*above, real))
        else:
            yield entry


def match_pattern(pattern: str) -> list[Found]:
    """The files that a pattern matches, by name."""
    if is_remote(pattern):
        start = pattern[: found.start()] if (found := WILDCARDS.search(pattern)) else pattern
        below = pattern[start.rfind("/") + 1 :].split("/")
        base = start[: start.rfind("/") + 1]
        entries = _s3_entries(start, deep=len(below) > 1 or below == ["**"])
        matched = (e for e in entries if e.stat and _matches(e.path[len(base) :].split("/"), below))
        return sorted(matched, key=lambda entry: entry.path)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    return [Found(path=path, stat=_stat(os.stat(path))) for path in paths]


def stat_all(paths: Sequence[str]) -> dict[str, Found]:
    """The files of these paths that are there; in S3 by listing what their names have in common."""
    wanted = set(paths)
    if wanted and all(is_remote(path) for path in wanted):
        first, last = min(wanted), max(wanted)
        shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
        entries = _s3_entries(first[:shared], deep=True)
        return {entry.path: entry for entry in entries if entry.path in wanted}
    there = (path for path in paths if os.path.isfile(path))
    return {path: Found(path=path, stat=_stat(os.stat(path))) for path in there}


def expand_braces(pattern: str) -> list[str]:
    """The patterns that one with `{000..012}` or `{a,b}` stands for, as bash has it."""
    opening = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if opening is None:
        return [pattern]
    inside = opening[1]
    if numbers := _RANGE.fullmatch(inside):
        choices = _numbers(numbers[1], numbers[2], step=int(numbers[3] or 1))
    elif "," in inside:
        choices = inside.split(",")
    else:
        return [pattern]
    before, after = pattern[: opening.start()], pattern[opening.end() :]
    return [one for choice in choices for one in expand_braces(before + choice + after)]


def folder_of(pattern: str) -> str:
    """The deepest folder that all that a pattern matches lies in."""
    folder = os.path.dirname(pattern)
    while re.search(r"[*?\[{]", folder):
        folder = os.path.dirname(folder)
    return folder


def _numbers(first: str, last: str, *, step: int) -> list[str]:
    low, high = int(first), int(last)
    padded = any(len(n.lstrip("-")) > 1 and n.lstrip("-").startswith("0") for n in (first, last))
    width = max(len(first), len(last)) if padded else 0
    way = max(1, step) if low <= high else -max(1, step)
    return [f"{n:0{width}}" for n in range(low, high + (1 if way > 0 else -1), way)]


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**" and len(patterns) > 1:
        return _matches(parts, patterns[1:]) or (
            bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], patterns)
        )
    if not parts or (parts[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    if patterns[0] == "**":  # at the end: any file below
        return not any(part.startswith(".") for part in parts)
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _local(entry: os.DirEntry[str]) -> Found | None:
    if entry.is_dir():
        return Found(path=entry.path, stat=None)
    if entry.is_file():
        return Found(path=entry.path, stat=_stat(entry.stat()))
    return None


def _stat(status: os.stat_result) -> Stat:
    return Stat(size=status.st_size, tag=str(status.st_mtime_ns))


def _hidden(path: str) -> bool:
    return os.path.basename(path).startswith(".")


def _s3_entries(prefix: str, *, deep: bool) -> Iterator[Found]:
    """Objects whose URIs begin with a prefix, in S3's order; only to the next slash if not deep."""
    bucket, key = s3.split_uri(prefix)
    request = {"Bucket": bucket, "Prefix": key} | ({} if deep else {"Delimiter": "/"})
    while True:
        answer = s3.call("list_objects_v2", **request)
        for item in answer.get("CommonPrefixes", ()):
            yield Found(path=f"{s3.SCHEME}{bucket}/{item['Prefix'].rstrip('/')}", stat=None)
        for item in answer.get("Contents", ()):
            if not item["Key"].endswith("/"):
                stat = Stat(size=item["Size"], tag=item["ETag"].strip('"'))
                yield Found(path=f"{s3.SCHEME}{bucket}/{item['Key']}", stat=stat)
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]
