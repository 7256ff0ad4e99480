"""Memory that is freed and soon wanted again, as at every step of a fit on a CPU."""

from __future__ import annotations

import ctypes

# From malloc.h, mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20
KEPT = 2**30


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB that it frees; whether its allocator has agreed.

    glibc gives every block of some hundred KiB back to the system, which clears it when it is
    wanted again, page by page: a quarter of the time of a step on blocks of some MiB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, KEPT))
