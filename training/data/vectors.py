"""A modality's vectors, by number: all held in memory, or read as they are needed.

A vector's number is its place in the order in which the store holds them. What takes vectors
does not know which of the two it is given, nor how many of them are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from features.shard import Embeddings
from training.batch import ABSENT

DEVICE_SHARE = 0.5
"""Share of a GPU's free memory that one modality may take; the rest is for models."""


class VectorReader(Protocol):
    """Vectors of one width and type, `[V, D]`, that are taken by number."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def dtype(self) -> torch.dtype:
        """As they are held."""

    def __len__(self) -> int:
        """V."""

    def take(self, numbers: Tensor) -> Tensor:
        """The vectors `[K, D]` of some numbers, int64 `[K]`; anything where a number is -1.

        `V` is at least 1.
        """

    def expect(self, numbers: Tensor) -> None:
        """Say which numbers will be taken next, in that order, -1 among them.

        Of no effect on what `take` gives: it may be read ahead.
        """

    def close(self) -> None:
        """End what is read ahead."""


@dataclass(frozen=True, kw_only=True)
class HeldVectors:
    """Vectors that are all in memory, of the processor or of a GPU."""

    values: Tensor
    """`[V, D]`, contiguous, of the type in which they are stored, or float32."""

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def take(self, numbers: Tensor) -> Tensor:
        return self.values.index_select(0, numbers.to(self.values.device).clamp(min=0))

    def expect(self, numbers: Tensor) -> None:
        """Nothing: they are all here."""

    def close(self) -> None:
        """Nothing is read."""


@dataclass(frozen=True, kw_only=True)
class PlacedVectors:
    """A modality's vectors, and whose they are."""

    vectors: VectorReader
    owners: np.ndarray
    """int64 `[P]`: the row whose embedding stands at each place."""
    lengths: np.ndarray | None = None
    """int64 `[P]`: how many vectors it has; None if each has one, and no sequence."""

    def index(self, *, rows: int) -> Tensor:
        """The place of each row's embedding, int64 `[rows]`; -1 of one that has none."""
        place = np.full(rows, ABSENT, np.int64)
        place[self.owners] = np.arange(len(self.owners))
        return torch.from_numpy(place)

    @property
    def starts(self) -> Tensor | None:
        """Of sequences, where the vectors of each place begin and the last ends: `[P + 1]`."""
        if self.lengths is None:
            return None
        return torch.from_numpy(np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64))


def placed_vectors(
    part: Embeddings, *, device: torch.device | str = "cpu", widen: bool = False
) -> PlacedVectors:
    """Embeddings that are in memory, for a device: there too if it has room for them.

    As they are stored, or `widen`ed to float32, which changes no value.
    """
    wanted = np.float32 if widen else part.values.dtype
    values = torch.from_numpy(np.require(part.values, wanted, requirements=["C", "W"]))
    return PlacedVectors(
        vectors=HeldVectors(values=_moved(values, device=torch.device(device))),
        owners=part.rows,
        lengths=part.lengths,
    )


def _moved(values: Tensor, *, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return values
    free, _ = torch.cuda.mem_get_info(device)
    return values.to(device) if values.nbytes <= free * DEVICE_SHARE else values
