"""How often what a job does was begun. It imports nothing, so that its actor starts at once."""

from __future__ import annotations


class Attempts:
    """Counts that outlive those at work: one actor a job, which holds a number a shard."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._loads: dict[tuple[str, str], list[str]] = {}

    def begin(self, shard: str) -> int:
        """Count a new attempt; returns its number, from 1."""
        self._begun[shard] = self._begun.get(shard, 0) + 1
        return self._begun[shard]

    def begin_load(self, encoder: str, actor: str, node: str) -> list[str]:
        """Note a load of an encoder by an actor on a node; the nodes of those before.

        None of them has ended: as often has the actor's process died.
        """
        begun = self._loads.setdefault((encoder, actor), [])
        before = list(begun)
        begun.append(node)
        return before

    def end_load(self, encoder: str, actor: str) -> None:
        """Begin anew: the encoder is loaded, or has said why not."""
        self._loads.pop((encoder, actor), None)
