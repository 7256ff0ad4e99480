"""The connection to Ray: an existing cluster if `RAY_ADDRESS` names one, else one made here."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Ray's own bars would mix with ours, and nothing is sent anywhere unless asked for."""
LOGGERS = ("ray.data", "ray.train", "ray._private.authentication")
NOISE = (b"has constructor arguments in the object store and max_restarts > 0",)
"""What Ray's C++ says of every actor pool of Ray Data, past all logging (its issue 53727)."""


class Connection:
    """Ray, connected when it is first needed and disconnected at the end of a `with` block.

    Stages that follow one another share it, and one that has nothing to do starts nothing.
    Without `RAY_ADDRESS`, a cluster of this machine alone is started, and ended with the block.
    A Ray that was connected before is used, and left connected.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self) -> None:
        """Connect, unless that is done."""
        import ray

        if ray.is_initialized():
            return
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._stack.enter_context(_without_noise())
        local = not os.environ.get("RAY_ADDRESS")
        ray.init(
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        self._stack.callback(ray.shutdown)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Drop the lines in `NOISE` from the standard error of this process and its children."""
    sys.stderr.flush()
    kept = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)

    def copy() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if not any(noise in line for noise in NOISE):
                    os.write(kept, line)

    copier = threading.Thread(target=copy, name="stderr", daemon=True)
    copier.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        copier.join(timeout=5)  # ends when the last child has closed its end
        if not copier.is_alive():
            os.close(kept)
