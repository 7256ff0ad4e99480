"""Embeddings out of the store, for training: held in memory if they fit a budget, else streamed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from features.shard_names import embedding_path
from features.snapshot import Snapshot
from features.store import READERS, Store
from features.stored_embeddings import read_embeddings, read_into
from training.data.stream import LEAST_BLOCKS, StreamedVectors, least_capacity
from training.data.vectors import PlacedVectors, placed_vectors

WIDENED = 3
"""What embeddings of 16 bits take as float32, and once more while they are made so."""


class MemoryTooSmall(ValueError):
    """The memory that training may take cannot hold what it needs at a time."""


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """A modality's shards, as blocks of vectors: each with its patches."""

    files: tuple[tuple[str, ...], ...]
    """Per block: the embedding shards that it consists of."""
    counts: tuple[tuple[int, ...], ...]
    """Per block and file: how many vectors it holds."""
    owners: np.ndarray
    lengths: np.ndarray | None

    @property
    def sizes(self) -> list[int]:
        return [sum(counts) for counts in self.counts]


def read_vectors(
    store: Store,
    snapshot: Snapshot,
    *,
    modalities: Sequence[str],
    memory: int | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, PlacedVectors]:
    """The embeddings of some modalities, all of them held if they take no more than `memory`.

    If there is room for `WIDENED` times as much, a processor holds them as float32, which they have
    to be at every step; a GPU makes them so in no time. If they take more, whole shards come and
    go; then `memory` bytes have to hold those of `window` rows at a time, or MemoryTooSmall says
    what would do.
    """
    blocks = {}
    sizes = {}
    for modality in modalities:
        part = snapshot.modalities[modality]
        width = part.dim * np.dtype(str(part.encoder["dtype"])).itemsize
        sizes[modality] = part.present * width
        if memory is not None and _is_sequence(store, snapshot, modality=modality):
            blocks[modality] = _find_blocks(store, snapshot, modality=modality)
            sizes[modality] = sum(blocks[modality].sizes) * width
    total = sum(sizes.values())
    if memory is None or total <= memory:
        on_cpu = torch.device(device).type == "cpu"
        widen = on_cpu and (memory is None or WIDENED * total <= memory)
        return {
            m: placed_vectors(
                read_embeddings(store, snapshot, modality=m), device=device, widen=widen
            )
            for m in modalities
        }
    _check_room(snapshot, modalities=modalities, memory=memory, total=total, window=window)
    return {
        m: _streamed(
            store,
            snapshot,
            modality=m,
            blocks=blocks.get(m) or _find_blocks(store, snapshot, modality=m),
            memory=memory * sizes[m] // total,
        )
        for m in modalities
    }


def _check_room(
    snapshot: Snapshot,
    *,
    modalities: Sequence[str],
    memory: int,
    total: int,
    window: int | None,
) -> None:
    largest = max(shard.rows for shard in snapshot.samples)
    rows = snapshot.rows if window is None else window + LEAST_BLOCKS * largest
    needed = total * min(rows, snapshot.rows) / snapshot.rows
    if needed <= memory:
        return
    fits = int(memory / total * snapshot.rows) - LEAST_BLOCKS * largest
    remedy = f"; or set training.shuffle_buffer to {fits} or less" if fits > 0 else ""
    raise MemoryTooSmall(
        f"training.memory: a worker may take {_amount(memory)}, and the embeddings of "
        f"{', '.join(modalities)} take {_amount(total)}, of which {_amount(int(needed))} are "
        f"needed at a time, since rows are shuffled among {window or snapshot.rows}; raise "
        f"training.memory{remedy}. The order of rows changes with shuffle_buffer, and does not "
        "with memory."
    )


def _amount(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _is_sequence(store: Store, snapshot: Snapshot, *, modality: str) -> bool:
    part = snapshot.modalities[modality]
    for shard in itertools.chain.from_iterable(part.shards):
        path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
        return store.read_metadata(path).get("sensorium.sequence") == "1"
    return False


def _find_blocks(store: Store, snapshot: Snapshot, *, modality: str) -> _Blocks:
    """The shards of a modality and whose the vectors in them are: no vector is read."""
    part = snapshot.modalities[modality]

    def owners_of(shard: str) -> np.ndarray:
        path = embedding_path(encoder=part.encoder_fingerprint, shard=shard)
        return store.read_table(path, columns=["row"])["row"].to_numpy().astype(np.int64)

    over = [(first, of) for first, of in zip(snapshot.first_rows, part.shards, strict=True) if of]
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        found = [list(pool.map(owners_of, of)) for _, of in over]
    rows = [
        numbers + first for (first, _), files in zip(over, found, strict=True) for numbers in files
    ]
    owners = np.concatenate([np.empty(0, np.int64), *rows])
    lengths = None
    if _is_sequence(store, snapshot, modality=modality):
        # The vectors of a sequence stand together, and no two sequences of a row.
        begins = np.flatnonzero(np.diff(owners, prepend=-1))
        lengths = np.diff(begins, append=len(owners))
        owners = owners[begins]
    return _Blocks(
        files=tuple(of for _, of in over),
        counts=tuple(tuple(map(len, files)) for files in found),
        owners=owners,
        lengths=lengths,
    )


def _streamed(
    store: Store, snapshot: Snapshot, *, modality: str, blocks: _Blocks, memory: int
) -> PlacedVectors:
    part = snapshot.modalities[modality]
    dtype = np.dtype(str(part.encoder["dtype"]))

    def read(block: int, into: np.ndarray) -> None:
        stop = 0
        for shard, count in zip(blocks.files[block], blocks.counts[block], strict=True):
            place = into[stop : stop + count]
            read_into(store, shard, encoder=part.encoder_fingerprint, into=place)
            stop += count

    least = least_capacity(blocks.sizes)
    capacity = max(memory // (part.dim * dtype.itemsize), least)
    return PlacedVectors(
        vectors=StreamedVectors(
            sizes=blocks.sizes, read=read, dim=part.dim, dtype=dtype, capacity=capacity
        ),
        owners=blocks.owners,
        lengths=blocks.lengths,
    )
