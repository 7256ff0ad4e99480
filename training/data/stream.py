"""Vectors that are more than fit into memory: whole blocks of them come and go.

All that is held lies in one array of a fixed size, made at the start. A thread reads ahead the
blocks that were said to be needed next; a block makes room once all of it that was expected has
been taken, or if it is needed later than the one that is read (Belady 1966,
https://doi.org/10.1147/sj.52.0078). What is taken without having been expected is read then
and there, so that the order is a matter of speed alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

LEAST_BLOCKS = 3
"""Largest blocks that there must be room for: one in use, one that is read, and what lies between
them."""

ReadBlock = Callable[[int, np.ndarray], None]
"""Fills `[vectors of the block, D]` with the block of a number."""


class StreamedVectors:
    """Vectors `[V, D]` in blocks, of which at most `capacity` vectors are in memory at a time.

    Used by one thread. ValueError if the capacity is less than `least_capacity(sizes)`.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        read: ReadBlock,
        dim: int,
        dtype: np.dtype,
        capacity: int,
    ) -> None:
        least = least_capacity(sizes)
        if capacity < least:
            raise ValueError(f"room for {capacity} vectors; blocks of this size need {least}")
        self._sizes = np.asarray(sizes, np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        self._read = read
        self._array = np.zeros((min(capacity, int(self._firsts[-1])), dim), dtype)
        self._vectors = torch.from_numpy(self._array)
        self._shift = np.zeros(len(sizes), np.int64)
        """Per block in memory: what a number is moved by to its place in the array."""
        self._places: dict[int, int] = {}
        """Where in the array each block begins that is held or being read."""
        self._reading: set[int] = set()
        self._in_use: Collection[int] = ()
        self._left = np.zeros(len(sizes), np.int64)
        """Per block: how many of the expected numbers have yet to be taken."""
        self._first_use = np.zeros(len(sizes), np.int64)
        self._taken = 0
        self._order: Sequence[int] = ()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._over = False
        self.blocks_read = 0
        """Blocks that were read since the start, each as often as it was."""

    @property
    def dim(self) -> int:
        return int(self._array.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return self._vectors.dtype

    @property
    def nbytes(self) -> int:
        """Memory that the vectors take, whatever is taken."""
        return self._array.nbytes

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def take(self, numbers: Tensor) -> Tensor:
        """The vectors `[K, D]` of some numbers, int64 `[K]`; anything where a number is -1."""
        wanted = numbers.cpu().numpy()
        there = wanted >= 0
        block = np.searchsorted(self._firsts, wanted, side="right") - 1
        needed, counts = np.unique(block[there], return_counts=True)
        if self._hold(needed.tolist()):
            places = np.where(there, wanted + self._shift[block], 0)
            found = self._vectors.index_select(0, torch.from_numpy(places))
        else:
            found = self._vectors.new_zeros(len(wanted), self.dim)
            for one in needed.tolist():
                held = self._hold([one])
                assert held, "there is always room for one block"
                at = np.flatnonzero(block == one)
                places = wanted[at] + self._shift[one]
                found[torch.from_numpy(at)] = self._vectors[torch.from_numpy(places)]
        with self._changed:
            self._in_use = ()
            self._left[needed] -= counts
            self._taken += int(counts.sum())
            if (self._left[needed] <= 0).any():
                self._changed.notify_all()
        return found

    def expect(self, numbers: Tensor) -> None:
        """Read ahead what these numbers need, in their order, as far as there is room."""
        self.close()
        wanted = numbers.cpu().numpy()
        block = np.searchsorted(self._firsts, wanted[wanted >= 0], side="right") - 1
        self._left = np.bincount(block, minlength=len(self._sizes)).astype(np.int64)
        # The last that is assigned holds: of the reversed, the first.
        self._first_use[block[::-1]] = np.arange(len(block))[::-1]
        self._taken = 0
        used = np.flatnonzero(self._left)
        self._order = used[np.argsort(self._first_use[used])].tolist()
        self._over = False
        self._thread = threading.Thread(target=self._read_ahead, name="read-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread that reads ahead."""
        if self._thread is not None:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._thread.join()
            self._thread = None

    def _read_ahead(self) -> None:
        """Read the expected blocks in the order of their first use, each as soon as it has room."""
        for block in self._order:
            with self._changed:
                place = None
                while not self._over and self._is_wanted(block):
                    place = self._make_room(block, ahead=True)
                    if place is not None:
                        break
                    self._changed.wait()
                if self._over:
                    return
            if place is None:
                continue
            try:
                self._fill(block, place)
            except Exception:
                # Whoever takes from the block reads it again, and meets the fault.
                return

    def _is_wanted(self, block: int) -> bool:
        return block not in self._places and self._left[block] > 0

    def _hold(self, blocks: Sequence[int]) -> bool:
        """Have these blocks in memory, all at once; False if there is no room for that."""
        with self._changed:
            self._in_use = frozenset(blocks)
        for block in blocks:
            with self._changed:
                while block in self._reading:
                    self._changed.wait()
                if block in self._places:
                    continue
                place = self._make_room(block, ahead=False)
                if place is None:
                    return False
            self._fill(block, place)
        return True

    def _fill(self, block: int, place: int) -> None:
        """Read a block into the array, where it has been given room."""
        read = False
        try:
            self._read(block, self._array[place : place + self._sizes[block]])
            read = True
        finally:
            with self._changed:
                self._reading.discard(block)
                if read:
                    self.blocks_read += 1
                else:
                    del self._places[block]
                self._changed.notify_all()

    def _make_room(self, block: int, *, ahead: bool) -> int | None:
        """Give a block its place in the array, at the cost of others; None if there is none.

        Of the others those go first that are needed last. What is read ahead takes the place of
        none that is needed before it.
        """
        size = int(self._sizes[block])
        kept = self._reading.union(self._in_use)
        others = sorted((b for b in self._places if b not in kept), key=self._next_use)
        while (place := self._gap(size)) is None:
            if not others:
                return None
            last = others.pop()
            if ahead and not self._may_wait(last, before=block):
                return None
            del self._places[last]
        self._places[block] = place
        self._shift[block] = place - self._firsts[block]
        self._reading.add(block)
        return place

    def _next_use(self, block: int) -> float:
        """When a block is needed again, as far as that is known."""
        if self._left[block] <= 0:
            return math.inf
        return max(float(self._first_use[block]), float(self._taken))

    def _may_wait(self, block: int, *, before: int) -> bool:
        return self._next_use(block) > max(self._first_use[before], self._taken)

    def _gap(self, size: int) -> int | None:
        """Where so many vectors have room between the blocks that are held."""
        stop = 0
        for place, block in sorted((place, block) for block, place in self._places.items()):
            if place - stop >= size:
                return stop
            stop = place + int(self._sizes[block])
        return stop if len(self._array) - stop >= size else None


def least_capacity(sizes: Sequence[int]) -> int:
    """How many vectors must have room, whatever is taken."""
    return min(LEAST_BLOCKS * max(sizes, default=0), sum(sizes))
