"""How often each shard of a job was begun. It imports nothing, so that its actor starts at once."""

from __future__ import annotations


class Attempts:
    """A count that outlives those at work: one actor a job, which holds a number a shard."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, shard: str) -> int:
        """Count a new attempt; returns its number, from 1."""
        self._begun[shard] = self._begun.get(shard, 0) + 1
        return self._begun[shard]
