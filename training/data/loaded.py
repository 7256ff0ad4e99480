"""The table that a job's rounds are fitted to: read again only when one needs more of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from training.data.table import EmbeddingTable


class LoadTable(Protocol):
    """Reads the table of some modalities, of which some have their payloads told apart."""

    def __call__(self, *, modalities: list[str], numbered: list[str]) -> EmbeddingTable: ...


class LoadedTable:
    """One table at a time, since two may not fit into memory."""

    def __init__(self, load: LoadTable) -> None:
        self._load = load
        self._table: EmbeddingTable | None = None
        self._modalities: set[str] = set()
        self._numbered: set[str] = set()

    def holding(self, modalities: Iterable[str], *, numbered: Iterable[str]) -> EmbeddingTable:
        """A table with these modalities, and all that it was asked for before."""
        wanted, told_apart = set(modalities), set(numbered)
        if self._table is not None and wanted <= self._modalities and told_apart <= self._numbered:
            return self._table
        self.close()
        self._modalities |= wanted
        self._numbered |= told_apart
        self._table = self._load(
            modalities=sorted(self._modalities), numbered=sorted(self._numbered)
        )
        return self._table

    def close(self) -> None:
        """Let the table go, and what it reads ahead: a thread that reads holds all its memory."""
        if self._table is not None:
            self._table.close()
            self._table = None
