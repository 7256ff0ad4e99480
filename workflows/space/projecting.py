"""A part of an index is made: embeddings out of the store, through the model's head, into a file.

Embeddings are read shard by shard, and no encoder is loaded; memory is that of one part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from features.shard import Embeddings, embedding_bytes, embedding_table, merge_patches
from features.shard_names import embedding_path
from features.storage import Storage
from features.store import Store
from features.stored_embeddings import read_embedding_shard
from training.candidate import CandidateRecord, restore_model
from training.held import ANSWERED_ROWS
from workflows.space.parts import PART, Over, Part

if TYPE_CHECKING:
    from training.models.shared_space import SharedSpace


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What makes vectors of one modality's embeddings; it travels to workers as it is."""

    store: Storage
    record: CandidateRecord
    weights: bytes
    """Of the model over embeddings, as safetensors."""
    modality: str
    encoder: str
    """Fingerprint of the encoder whose embeddings the model was fitted to."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Vectors of some consecutive rows."""

    rows: np.ndarray
    """int64 `[P]`, ascending: numbers of the samples that have one."""
    keys: list[bytes]
    """Of their payloads."""
    vectors: np.ndarray
    """float32 `[P, S]`, of length 1."""


class PartBuilder:
    """Makes part after part with a model that is loaded once."""

    def __init__(self, projection: Projection) -> None:
        self._of = projection
        self._store = Store(projection.store)
        self._model: SharedSpace | None = None

    def __call__(self, text: str) -> str:
        """Make a part, given as JSON, if it is not there; its name."""
        part = PART.validate_json(text)
        if not self._store.storage.exists(part.path):
            self._write(part)
        return part.name

    def _write(self, part: Part) -> None:
        found, first = [], 0
        for over in part.over:
            found.append((first, self.project(over)))
            first += over.rows
        table = embedding_table(
            Embeddings(
                rows=np.concatenate([one.rows + first for first, one in found]),
                values=np.concatenate([one.vectors for _, one in found]),
            ),
            keys=[key for _, one in found for key in one.keys],
            metadata={
                "sensorium.layout": "contiguous",
                "sensorium.space": part.space,
                "sensorium.modality": self._of.modality,
                "sensorium.candidate": self._of.record.fingerprint,
            },
        )
        self._store.storage.write_once(part.path, embedding_bytes(table))

    def project(self, over: Over) -> Projected:
        """The vectors of a sample shard's rows, numbered within it."""
        parts = [
            read_embedding_shard(self._store, shard, encoder=self._of.encoder, of=over.rows)
            for shard in over.shards
        ]
        merged = merge_patches(parts)
        if merged is None or not len(merged.rows):
            width = self.space.probe_weight_CS.shape[1]
            return Projected(
                rows=np.empty(0, np.int64), keys=[], vectors=np.empty((0, width), np.float32)
            )
        keys: dict[int, bytes] = {}
        for shard in over.shards:
            path = embedding_path(encoder=self._of.encoder, shard=shard)
            table = self._store.read_table(path, columns=["row", "payload_key"])
            keys.update(
                zip(table["row"].to_pylist(), table["payload_key"].to_pylist(), strict=True)
            )
        return Projected(
            rows=merged.rows,
            keys=[keys[row] for row in merged.rows.tolist()],
            vectors=self._vectors(merged),
        )

    def _vectors(self, held: Embeddings) -> np.ndarray:
        """The model's unit vectors of embeddings, `[P, S]`."""
        import torch

        found = []
        for start in range(0, len(held.rows), ANSWERED_ROWS):
            places = np.arange(start, min(start + ANSWERED_ROWS, len(held.rows)))
            if held.lengths is None:
                values, mask = held.values[places], None
            else:
                values, steps = held.padded(places)
                mask = torch.from_numpy(steps)
            with torch.inference_mode():
                found.append(
                    self.space.embed(
                        self._of.modality,
                        x=torch.from_numpy(values.astype(np.float32)),
                        present_B=torch.ones(len(places), dtype=torch.bool),
                        mask_BT=mask,
                    )
                    .float()
                    .numpy()
                )
        return np.concatenate(found)

    @property
    def space(self) -> SharedSpace:
        """The model."""
        if self._model is None:
            self._model = restore_model(self._of.record, weights=self._of.weights)  # type: ignore[assignment]
        assert self._model is not None
        return self._model
