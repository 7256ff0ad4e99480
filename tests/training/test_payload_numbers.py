"""Payloads that are held twice, from the store's keys to a batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import torch

from features.samples import make_shard
from features.snapshot import Snapshot
from features.sources import RowRange
from features.storage import LocalStorage
from features.store import Store
from training.data.payload_numbers import numbered, read_payload_numbers
from training.data.table import load_table
from training.task import ClassificationSpec


def write(store: Store, base: Snapshot, *parts: dict[str, list[bytes | None]]) -> Snapshot:
    """A snapshot of sample shards with these payload keys; the rest as in `base`."""
    shards = []
    for part in parts:
        rows = len(next(iter(part.values())))
        columns = {f"key.{m}": pa.array(keys, pa.binary(16)) for m, keys in part.items()}
        ids = pa.array([f"{len(shards)}-{i}" for i in range(rows)])
        table = pa.table({"sample_id": ids, **columns})
        shard, table = make_shard([table], ranges=[RowRange(file=0, start=0, stop=rows)])
        store.write_samples(shard, rows=table)
        shards.append(shard)
    return dataclasses.replace(base, samples=tuple(shards))


def key(letter: str) -> bytes:
    return letter.encode() * 16


def test_equal_keys_have_equal_numbers_across_shards(tmp_path: Path, make_store) -> None:
    _, base = make_store()
    store = Store(LocalStorage(tmp_path / "keys"))
    snapshot = write(
        store,
        base,
        {"photo": [key("a"), None, key("b")], "caption": [key("x"), key("y"), key("z")]},
        {"photo": [None, None], "caption": [key("u"), key("v")]},  # no photo at all
        {"photo": [key("b"), key("a")], "caption": [key("w"), key("t")]},
    )
    found = read_payload_numbers(store, snapshot, modalities=["photo", "caption"])
    photo = found["photo"].tolist()
    assert photo[0] == photo[6] != photo[2] == photo[5]
    assert [photo[i] for i in (1, 3, 4)] == [-1, -1, -1]
    assert len(set(found["caption"].tolist())) == 7
    # Where nothing is held twice, nothing is told apart.
    assert read_payload_numbers(store, snapshot, modalities=["caption"]) == {}


def test_numbers_do_not_depend_on_chunks() -> None:
    keys = [key("a"), key("b"), None, key("a")]
    whole = numbered(pa.chunked_array([keys], pa.binary()))
    parted = numbered(pa.chunked_array([keys[:1], keys[1:]], pa.binary()))
    assert torch.equal(whole, parted)
    assert whole.tolist() == [0, 1, -1, 0]


def test_a_table_from_the_store_numbers_them_and_a_batch_carries_them(make_store) -> None:
    store, base = make_store()
    shards = []
    for shard in base.samples:
        table = store.read_table(shard.path)
        keys = [f"{i // 2:016d}".encode() for i in range(shard.rows)]
        for modality in base.modalities:
            table = table.append_column(f"key.{modality}", pa.array(keys, pa.binary(16)))
        made, table = make_shard([table], ranges=shard.ranges)
        store.write_samples(made, rows=table)
        shards.append(made)
    snapshot = dataclasses.replace(base, samples=tuple(shards))
    task, modalities = ClassificationSpec(target="label"), tuple(base.modalities)
    table = load_table(store, snapshot, task=task, modalities=modalities)
    batch = table.batch(torch.tensor([0, 1, 2, 100]))
    for modality in modalities:
        first, twin, other, again = batch.payloads[modality].tolist()
        assert first == twin == again != other
    assert load_table(store, base, task=task, modalities=modalities).payloads == {}
