"""Where the workers of a training leave what the one who started it takes. No Ray, and no import.

It is an actor, whose process is started for each training: what this module imports it imports too,
and PyTorch alone takes seconds.
"""

from __future__ import annotations

from typing import Any


class Mailbox:
    """Holds what is posted, as plain values, until it is taken."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []

    def post(self, item: dict[str, Any]) -> None:
        """Leave something."""
        self._items.append(item)

    def take(self) -> list[dict[str, Any]]:
        """All that has been left since the last time, in its order."""
        items, self._items = self._items, []
        return items
