"""A table whose live modalities come as payloads, prepared ahead of the step that takes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from features.prepare import THREADS
from features.snapshot import Snapshot
from features.store import Store
from training.batch import ABSENT, Batch
from training.data.table import EmbeddingTable
from training.spec import CandidateSpec, InputSpec
from training.tuning.model import LiveInput, PreparedPayloads
from training.tuning.payloads import PayloadRows, PayloadSource
from training.tuning.spec import FinetuneSpec

BATCHES_AHEAD = 2
"""Batches of payloads that are prepared before they are asked for."""


@dataclass(kw_only=True)
class _Position:
    """The rows that batches will be of, int64, of which modalities, and how many are taken."""

    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    modalities: Sequence[str] = ()
    taken: int = 0


@dataclass(frozen=True, kw_only=True)
class LiveTable(EmbeddingTable):
    """A table of which some modalities come as prepared payloads and not as embeddings.

    Their embeddings of stage 1 are there for their statistics, and say which rows have one.
    """

    live: Mapping[str, PayloadRows]
    position: _Position = field(default_factory=_Position)

    def batch(
        self,
        rows: Tensor,
        *,
        modalities: Sequence[str] | None = None,
        padded_as: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """As ever; in the place of a live modality's embeddings stand its `PreparedPayloads`."""
        wanted = tuple(self.embeddings) if modalities is None else tuple(modalities)
        stored = [m for m in wanted if m not in self.live]
        batch = super().batch(rows, modalities=stored, padded_as=padded_as, device=device)
        embeddings: dict[str, Any] = dict(batch.embeddings)
        presence, numbers = dict(batch.presence), dict(batch.payloads)
        for modality in wanted:
            if modality in self.live:
                there = self.index[modality][rows] != ABSENT
                presence[modality] = there.to(device)
                if modality in self.payloads:
                    numbers[modality] = self.payloads[modality][rows].to(device)
                embeddings[modality] = PreparedPayloads(
                    rows=there.nonzero()[:, 0],
                    prepared=self.live[modality].take(rows[there].tolist()),
                )
        self._read_ahead(rows)
        return replace(batch, embeddings=embeddings, presence=presence, payloads=numbers)

    def expect(self, rows: Tensor, *, modalities: Sequence[str] | None = None) -> None:
        """As ever; of live modalities, the payloads of the next batches."""
        wanted = tuple(self.embeddings) if modalities is None else tuple(modalities)
        super().expect(rows, modalities=[m for m in wanted if m not in self.live])
        self.position.rows, self.position.taken = rows, 0
        self.position.modalities = [m for m in wanted if m in self.live]

    def inputs(self, modalities: Sequence[str]) -> dict[str, InputSpec]:
        """As ever; with a live modality comes its encoder, with the weights of stage 1."""
        found = super().inputs(modalities)
        for modality in modalities:
            if modality in self.live:
                feed = self.live[modality]
                of_stage_1 = {f.name: getattr(found[modality], f.name) for f in fields(InputSpec)}
                of_stage_1["sequence"] = feed.spec.sequence
                found[modality] = LiveInput(**of_stage_1, spec=feed.spec, encoder=feed.load())
        return found

    def _read_ahead(self, rows: Tensor) -> None:
        """If these are the next of the rows that were told, begin with those that follow them."""
        at = self.position
        taken = at.taken + len(rows)
        if not torch.equal(rows, at.rows[at.taken : taken]):
            return
        at.taken = taken
        following = at.rows[taken : taken + BATCHES_AHEAD * len(rows)]
        for modality in at.modalities:
            there = self.index[modality][following] != ABSENT
            self.live[modality].expect(following[there].tolist())


@contextmanager
def table_for(
    spec: CandidateSpec,
    *,
    table: EmbeddingTable,
    store: Store,
    snapshot: Snapshot,
    payloads: PayloadSource | None,
) -> Iterator[EmbeddingTable]:
    """The table that a candidate is fitted to, for the time of a block.

    It is the one that is given, unless the candidate tunes encoders: then a `LiveTable`, for which
    `payloads` are read. SourceError if a payload or an encoder is not the one of the snapshot.
    """
    if not isinstance(spec, FinetuneSpec):
        yield table
        return
    if payloads is None:
        raise ValueError(f"candidate {spec.name!r} tunes encoders; give `payloads`")
    snapshot = store.placed(snapshot.id)
    with (
        tempfile.TemporaryDirectory(prefix="payloads-") as folder,
        ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="payloads") as pool,
    ):
        live = {
            modality: PayloadRows(
                store=store,
                snapshot=snapshot,
                modality=modality,
                payloads=payloads,
                present=(table.index[modality] != ABSENT).nonzero()[:, 0].numpy(),
                folder=folder,
                pool=pool,
            )
            for modality in spec.encoders
        }
        given = {f.name: getattr(table, f.name) for f in fields(EmbeddingTable) if f.init}
        yield LiveTable(**given, live=live)
