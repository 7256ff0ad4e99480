"""Which files a model may read on behalf of those who ask it.

Who loads a model in a process of his own may name any file that he can read. A server's callers are
others: a path that they name is opened with the server's rights, on the server's machine. So a
served model reads no file at all, and takes what it is asked about in the request itself, unless
its operator names folders or prefixes of buckets below which all may be read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from features.decoders.base import BadPayload
from features.payloads import is_inline, locate, shown
from features.s3 import is_bucket

ROOTS = "SENSORIUM_SERVE_ROOTS"
"""The environment variable that names them, with commas between: `/data/photos,s3://bucket/new`.
Where it is set, if only to nothing, a model reads nothing else, whoever loads it."""
SERVERS = ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "MLSERVER_MODEL_URI", "MLSERVER_MODEL_NAME")
"""What MLflow's scoring server sets, and what MLServer is given."""
S3 = "s3://"
MOST_PATH, MOST_KEY = 4096, 1024
"""Bytes of the longest path of Linux (PATH_MAX, limits.h) and of S3's longest key; no other is
looked up, which would take time that grows with the square of its length."""


class Forbidden(ValueError):
    """A file that the model may not read for those who ask it."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folders and prefixes below which a served model reads; none by default."""

    roots: tuple[str, ...] = ()

    @property
    def base(self) -> str | None:
        """From where relative paths start, if the caller does not say it: the first of them."""
        return next(iter(self.roots), None)

    def check(self, uri: str, *, base: str) -> None:
        """Forbidden if a payload's path or URI leads out of them, by links and `..` too.

        No word on whether there is such a file. A URI that holds its content leads nowhere.
        """
        if is_inline(uri):
            return
        if len(uri) > MOST_PATH or len(base) > MOST_PATH:
            raise Forbidden(f"{shown(uri)} is too long for the name of a file; {self._advice()}")
        try:
            place = locate(uri, base=base)
        except (BadPayload, ValueError) as error:
            raise Forbidden(f"{error}; {self._advice()}") from None
        if not any(_is_below(place, root) for root in self.roots):
            raise Forbidden(f"{shown(uri)} is a file that is not read here; {self._advice()}")

    def _advice(self) -> str:
        return (
            "send the content itself, as data:;base64,CONTENT"
            + (", or name a file below the folders that this server reads" if self.roots else "")
            + f" (its operator names them in {ROOTS})"
        )


def places_of(environment: Mapping[str, str]) -> Places | None:
    """Where a model of this process may read; None for anywhere, if it is not served."""
    named = environment.get(ROOTS)
    if named is None:
        return Places() if any(map(environment.get, SERVERS)) else None
    roots = [part.strip() for part in named.split(",")]
    return Places(roots=tuple(_whole(root) for root in roots if root))


def refused_root(root: str) -> str | None:
    """Why a server reads nothing below what an operator has named; None if it does."""
    if "," in root:
        return f"commas stand between folders in {ROOTS}; name one without"
    if root.startswith(S3):
        bucket = root.removeprefix(S3).partition("/")[0]
        return None if is_bucket(bucket) else "it is not of the form s3://BUCKET/PREFIX"
    if "://" in root:
        return "it is a URI; name a folder, or s3://BUCKET/PREFIX"
    return None if os.path.isdir(root) else "there is no such folder"


def _whole(root: str) -> str:
    if root.startswith(S3):
        return f"{root.rstrip('/')}/"
    return os.path.join(os.path.realpath(root), "")


def _is_below(place: str, root: str) -> bool:
    if place.startswith(S3) or root.startswith(S3):
        # A key is not a path, but clients and gateways have taken it for one.
        steps = place.removeprefix(S3).split("/")
        if len("/".join(steps[1:]).encode(errors="replace")) > MOST_KEY:
            return False
        return place.startswith(root) and not {".", "..", ""} & {*steps}
    if not os.path.isabs(place) or len(place) > MOST_PATH:
        return False
    try:
        return os.path.realpath(place).startswith(root)
    except (OSError, ValueError):
        return False
