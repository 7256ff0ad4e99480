"""A table's rows as the encoders that were tuned embed them: once, for all that is told of them.

A model is judged by several passes over the rows: a probe, retrieval, answers with and without each
modality. Its encoders run in the first alone, and what they give is rounded and kept as stage 1
would store it, so what is told of the model is what its files answer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.batch import ABSENT
from training.data.table import EmbeddingTable, worker_rows
from training.data.vectors import HeldVectors, PlacedVectors
from training.models.probed import Probed
from training.tasks import Retrieval
from training.tuning.model import LiveModel, TunedEncoder
from training.workers import gather_rows, worker_count, worker_rank

BLOCK_ROWS = 256
"""Rows of a worker that are embedded at once; what comes of them is in memory meanwhile."""


@contextmanager
def embedded_table(
    model: nn.Module, *, table: EmbeddingTable, device: torch.device | str = "cpu"
) -> Iterator[EmbeddingTable]:
    """The table that the head of a fitted model is judged on, for the time of a block.

    It is the one that is given, unless the model has encoders. Then the live modalities hold the
    embeddings of the rows that are needed, and of those alone: the training rows only for a head
    that gets a probe. They are in a file of each worker, of which memory holds what the
    system keeps. All workers take part.
    """
    if not isinstance(model, LiveModel):
        yield table
        return
    splits = ["validation", "test"]
    if isinstance(model.head, Probed) and not isinstance(table.task, Retrieval):
        splits.insert(0, "train")
    rows = torch.cat([table.split[split] for split in splits])
    given = {f.name: getattr(table, f.name) for f in fields(EmbeddingTable) if f.init}
    model.eval()
    with tempfile.TemporaryDirectory(prefix="embedded-") as folder:
        for modality, encoder in model.encoders.items():
            assert isinstance(encoder, TunedEncoder)
            placed = _embed(
                encoder,
                modality=modality,
                table=table,
                rows=rows[table.index[modality][rows] != ABSENT],
                path=Path(folder) / modality,
                device=device,
            )
            index = placed.index(rows=table.rows)
            given["embeddings"] = {**given["embeddings"], modality: placed.vectors}
            given["index"] = {**given["index"], modality: index}
            if placed.starts is not None:
                given["starts"] = {**given["starts"], modality: placed.starts}
        yield EmbeddingTable(**given)


@torch.inference_mode()
def _embed(
    encoder: TunedEncoder,
    *,
    modality: str,
    table: EmbeddingTable,
    rows: Tensor,
    path: Path,
    device: torch.device | str,
) -> PlacedVectors:
    """The embeddings of some rows that have the modality, divided among the workers block by block.

    Every worker gets all.
    """
    dtype = getattr(torch, encoder.spec.dtype)
    workers = worker_count()
    blocks = rows.split(BLOCK_ROWS * workers) if len(rows) else ()
    parts = [worker_rows(block, steps=1, rank=worker_rank(), workers=workers) for block in blocks]
    table.expect(torch.cat([*parts, rows[:0]]), modalities=(modality,))
    lengths: list[Tensor] = []
    with open(path, "wb") as file:
        for part in parts:
            batch = table.batch(part, modalities=(modality,), device=device)
            payloads: Any = batch.embeddings[modality]  # `PreparedPayloads`
            vectors = torch.zeros(0, encoder.encoder.dim, dtype=dtype, device=device)
            counts = torch.zeros(0, dtype=torch.int64, device=device)
            if payloads.prepared:
                found, mask = encoder(payloads.prepared)
                counts = torch.ones(len(found), dtype=torch.int64, device=device)
                if mask is not None:
                    found, counts = found[mask], mask.sum(dim=1)
                vectors = found.to(dtype)
            gathered = gather_rows(vectors.contiguous()).rows
            file.write(gathered.cpu().numpy().tobytes())
            lengths.append(gather_rows(counts).rows.cpu())
    total = sum(int(some.sum()) for some in lengths)
    values = torch.zeros(0, dtype=dtype)
    if total:
        values = torch.from_file(str(path), size=total * encoder.encoder.dim, dtype=dtype)
    return PlacedVectors(
        vectors=HeldVectors(values=values.view(total, encoder.encoder.dim)),
        owners=rows.numpy(),
        lengths=torch.cat([*lengths, rows[:0]]).numpy() if encoder.spec.sequence else None,
    )
