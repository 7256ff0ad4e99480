"""Faults of a medium that may pass (a network disk that is slow, busy or away): tried again."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

WAITS = (0.2, 1.0, 3.0)
"""Seconds before each new attempt."""
PASSING = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ENOLCK,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EREMOTEIO,
    }
)
"""Errors that may be gone the next time. A full disk or a missing right is not among them."""

T = TypeVar("T")


class GaveUp(OSError):
    """A fault that may pass, and did not in several attempts."""


def persist(act: Callable[[], T]) -> T:
    """What `act` returns, called again after a fault that may pass; four times at most.

    `act` must do no harm if it is done twice. Raises what its last call raised.
    """
    for wait in WAITS:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING or isinstance(error, GaveUp):
                raise
        time.sleep(wait)
    return act()
