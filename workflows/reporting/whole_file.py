"""A file that a person has named: there in whole or not at all, and known to be writable before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from workflows.pipeline import ConfigurationError


@contextmanager
def whole_file(path: Path, *, what: str) -> Iterator[TextIO]:
    """A text file that takes the place of `path` at the end of the block, if that does not fail.

    ConfigurationError at its beginning, before any work, if no file can be written there; `what`
    is the option that names it.
    """
    temporary = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}.tmp")
    try:
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ConfigurationError(f"{what} {path}: it names a file in a folder that is there")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it is there, and is not to be written")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path}: no file can be written there ({error.strerror or error}); name another"
        ) from error
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
