"""Which samples hold the same payload: what a contrastive loss counts as belonging together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from features.snapshot import Snapshot
from features.store import Store
from training.batch import ABSENT


def read_payload_numbers(
    store: Store, snapshot: Snapshot, *, modalities: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Per modality int64 `[N]`: equal numbers for samples whose payload has the same key.

    -1 where there is none. Empty if all payloads of all these modalities are different.
    """
    columns: dict[str, list[pa.Array]] = {modality: [] for modality in modalities}
    for shard in snapshot.samples:
        known = [modality for modality in modalities if modality in shard.keys]
        table = store.read_table(shard.path, columns=[f"key.{m}" for m in known]) if known else None
        for modality, parts in columns.items():
            if table is not None and modality in known:
                parts.append(table[f"key.{modality}"].combine_chunks().cast(pa.binary()))
            else:
                parts.append(pa.nulls(shard.rows, pa.binary()))
    numbers = {modality: numbered(pa.chunked_array(parts)) for modality, parts in columns.items()}
    repeated = [x[x != ABSENT].numel() > x[x != ABSENT].unique().numel() for x in numbers.values()]
    return numbers if any(repeated) else {}


def numbered(keys: pa.ChunkedArray) -> torch.Tensor:
    """A number for each different key, int64 `[N]`; -1 for null."""
    codes = keys.combine_chunks().dictionary_encode().indices.fill_null(ABSENT)
    return torch.from_numpy(codes.to_numpy(zero_copy_only=False).astype(np.int64))
