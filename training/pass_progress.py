"""How far a worker has come with a pass that it makes by itself, kept in the store. No Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from features.storage import Storage
from training.fitting.checkpoint import PROGRESS_FILE, FitState, read_checkpoints, write_checkpoint
from training.passes import FOLDER, Group, key_of


class PassProgress:
    """The checkpoints of a pass that one worker makes by itself."""

    def __init__(self, storage: Storage, *, folder: str, group: Group) -> None:
        self._storage = storage
        self._names = [candidate.fingerprint for candidate in group]
        self._folder = f"{folder}/{FOLDER}/{key_of(self._names)}"

    def read(self) -> list[FitState] | None:
        """The last whole checkpoint, if there is one."""
        found = self._numbers(whole=True)
        if not found:
            return None
        with tempfile.TemporaryDirectory() as local:
            place = f"{self._folder}/{max(found):06d}"
            for name in self._storage.list(place):
                Path(local, name).write_bytes(self._storage.read(f"{place}/{name}"))
            return read_checkpoints(local)

    def save(self, states: Sequence[FitState]) -> None:
        """Write a checkpoint, and delete those before it."""
        before = self._numbers(whole=False)
        place = f"{self._folder}/{max(before, default=0) + 1:06d}"
        with tempfile.TemporaryDirectory() as local:
            write_checkpoint(*states, folder=local, about={"candidates": self._names})
            # The one that makes it whole comes last.
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == PROGRESS_FILE):
                self._storage.replace(f"{place}/{path.name}", path.read_bytes())
        self._storage.delete(
            [
                entry.path
                for entry in self._storage.walk(self._folder)
                if not entry.path.startswith(f"{place}/")
            ]
        )

    def _numbers(self, *, whole: bool) -> list[int]:
        return [
            int(entry.path.split("/")[-2])
            for entry in self._storage.walk(self._folder)
            if not whole or entry.path.endswith(f"/{PROGRESS_FILE}")
        ]
