"""Made-up embeddings of three modalities, each of which tells a part of the class."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.shard import Embeddings
from training.data.table import EmbeddingTable, table_of
from training.data.vectors import placed_vectors

CLASSES = 10
MODALITIES = ("caption", "photo", "speech")


def made_table(*, rows: int, dim: int, missing: float = 0.1, device: str = "cpu") -> EmbeddingTable:
    """Three quarters to train on, the rest to validate and test; a tenth of all is missing."""
    rng = np.random.default_rng(0)
    codes = rng.integers(CLASSES, size=rows)
    embeddings = {}
    for modality in MODALITIES:
        means = rng.normal(size=(CLASSES, dim)).astype(np.float32)
        present = np.flatnonzero(rng.random(rows) >= missing)
        noise = rng.standard_normal((len(present), dim), dtype=np.float32) * 2
        part = Embeddings(rows=present, values=means[codes[present]] + noise)
        embeddings[modality] = placed_vectors(part, device=device)
    split = np.array(["train"] * 6 + ["validation", "test"])[np.arange(rows) % 8]
    return table_of(
        sample_ids=pa.array([str(i) for i in range(rows)]),
        split=pa.array(split.tolist()),
        labels=pa.array([f"class {code}" for code in codes]),
        embeddings=embeddings,
    )
