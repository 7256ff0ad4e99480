"""Embeddings that are held in memory, as a fitted model is asked for answers to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from features.shard import Embeddings

ANSWERED_ROWS = 1024
"""Rows that a model answers at a time."""


def in_parts(
    held: Mapping[str, Embeddings], *, rows: np.ndarray, alone: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """What `training.answering` takes of some rows, int64 `[N]`, `ANSWERED_ROWS` at a time.

    `alone` names the modalities that are there, as if the others were missing. Of no rows there is
    one part, without any.
    """
    for start in range(0, max(1, len(rows)), ANSWERED_ROWS):
        part = _taken(held, rows=rows[start : start + ANSWERED_ROWS])
        if alone is not None:
            part["presence"] = {m: x & (m in alone) for m, x in part["presence"].items()}
        yield part


def _taken(held: Mapping[str, Embeddings], *, rows: np.ndarray) -> dict[str, Any]:
    """The embeddings of some rows, whether each is present, and the masks of sequences."""
    embeddings, presence, masks = {}, {}, {}
    for name, found in held.items():
        present = np.isin(rows, found.rows)
        presence[name] = present
        places = np.searchsorted(found.rows, rows[present])
        if found.lengths is None:
            embeddings[name] = np.zeros((len(rows), found.values.shape[1]), np.float32)
            embeddings[name][present] = found.values[places]
            continue
        values, steps = found.padded(places)
        shape = (len(rows), max(1, steps.shape[1]))
        embeddings[name] = np.zeros((*shape, found.values.shape[1]), np.float32)
        masks[name] = np.zeros(shape, bool)
        if len(places):
            embeddings[name][present], masks[name][present] = values, steps
    return {"embeddings": embeddings, "presence": presence, "masks": masks}
