"""The reasons of a quarantine, grouped: a thousand missing files are one reason, not a thousand."""

from __future__ import annotations

import re

from workflows.runs import without_passwords

TRAILING_NAME = re.compile(r":\s*(['\"]).*\1$", re.DOTALL)


def reason_group(reason: str) -> str:
    """What a reason has in common with others: itself without the path or URI that it ends with.

    `no such file: 'photos/1.png'` → `no such file`.
    """
    return without_passwords(TRAILING_NAME.sub("", reason))
