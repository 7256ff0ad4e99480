"""The connection to Ray: an existing cluster if `RAY_ADDRESS` names one, else one made here."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray for the time of a block; disconnect after it if it was not connected before.

    Without `RAY_ADDRESS`, a cluster of this machine alone is started, and ended with the block.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    local = not os.environ.get("RAY_ADDRESS")
    ray.init(
        include_dashboard=False if local else None,
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=True,
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
