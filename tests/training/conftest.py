"""A small made-up table of three modalities, each of which tells a part of the class."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from features.samples import SampleShard
from features.shard import LAYOUT, Embeddings, embedding_bytes, embedding_table
from features.shard_names import embedding_path
from features.snapshot import ModalityShards, Snapshot
from features.sources import RowRange
from features.storage import LocalStorage
from features.store import Store, parquet_bytes
from training.data.table import EmbeddingTable, table_of
from training.task import parse_task

DIMS = {"caption": 5, "photo": 7, "speech": 6}
FRAME_DIM = 4
CLASSES = ["cat", "dog", "eel", "fox"]


def make_columns(
    *,
    rows: int = 240,
    noise: float = 0.7,
    missing: float = 0.15,
    seed: int = 0,
    sequences: bool = False,
):
    """Ids, splits, labels and embeddings, as a store would give them.

    caption tells the class modulo 2, photo its half, speech all of it but with more noise. With
    `sequences` there are frames too: up to 6 steps, whose mean tells the class.
    """
    rng = np.random.default_rng(seed)
    codes = rng.integers(len(CLASSES), size=rows)
    labels: list[str | None] = [CLASSES[c] for c in codes]
    labels[3] = labels[11] = None
    signal = {"caption": codes % 2, "photo": codes // 2, "speech": codes}
    embeddings = {}
    for modality, dim in DIMS.items():
        means = rng.normal(size=(len(CLASSES), dim)) * 2
        spread = noise * (2 if modality == "speech" else 1)
        values = means[signal[modality]] + rng.normal(size=(rows, dim)) * spread
        present = np.flatnonzero(rng.random(rows) >= missing)
        embeddings[modality] = Embeddings(rows=present, values=values[present].astype(np.float16))
    if sequences:
        present = np.flatnonzero(rng.random(rows) >= missing)
        lengths = rng.integers(1, 7, size=len(present))
        means = rng.normal(size=(len(CLASSES), FRAME_DIM)) * 2
        steps = means[codes[present]].repeat(lengths, axis=0)
        values = steps + rng.normal(size=steps.shape) * noise
        embeddings["frames"] = Embeddings(
            rows=present, values=values.astype(np.float16), lengths=lengths
        )
    split = np.array(["train"] * 5 + ["validation"] + ["test"] * 2)[np.arange(rows) % 8]
    return {
        "sample_ids": pa.chunked_array([[f"s{i}" for i in range(rows)]]),
        "split": pa.chunked_array([pa.array(split.tolist())]),
        "labels": pa.chunked_array([labels]),
        "embeddings": embeddings,
    }


def chosen(found: Embeddings, which: np.ndarray, *, first: int = 0) -> Embeddings:
    """Some of the embeddings, of which a row `first` is the first of a shard."""
    rows = found.rows[which] - first
    if found.lengths is None:
        return Embeddings(rows=rows, values=found.values[which])
    steps = which.repeat(found.lengths)
    return Embeddings(rows=rows, values=found.values[steps], lengths=found.lengths[which])


def write_store(
    folder: Path,
    columns: dict[str, Any],
    *,
    shard_rows: int = 100,
    patched: bool = False,
    contiguous: bool = True,
    groups: bool = False,
) -> Snapshot:
    """Write the columns as a store, through the store's own writers, and commit a snapshot.

    If it is `patched`, every third embedding of a shard stands in a patch. If it is not
    `contiguous`, its footers do not say that vectors can be read without being decoded. With
    `groups`, every 20 rows are one.
    """
    store = Store(LocalStorage(folder))
    rows = len(columns["sample_ids"])
    samples, shards = [], {modality: [] for modality in columns["embeddings"]}
    for start in range(0, rows, shard_rows):
        part = slice(start, min(start + shard_rows, rows))
        table = pa.table(
            {
                "sample_id": columns["sample_ids"][part],
                "split": columns["split"][part],
                "target.label": columns["labels"][part],
            }
        )
        if groups:
            names = [f"group {row // 20}" for row in range(part.start, part.stop)]
            table = table.append_column("group", pa.array(names))
        body = parquet_bytes(table).to_pybytes()
        shard = SampleShard(
            fingerprint=hashlib.blake2b(body, digest_size=16).hexdigest(),
            labels=hashlib.blake2b(body, digest_size=16).hexdigest(),
            rows=table.num_rows,
            ranges=(RowRange(file=0, start=part.start, stop=part.stop),),
            keys={},
            payloads={},
        )
        store.write_samples(shard, rows=table)
        samples.append(shard)
        for modality, embeddings in columns["embeddings"].items():
            inside = (embeddings.rows >= part.start) & (embeddings.rows < part.stop)
            if not inside.any():
                shards[modality].append(())
                continue
            found = chosen(embeddings, inside, first=part.start)
            later = (np.arange(len(found.rows)) % 3 == 1) & patched
            names = []
            for which in (~later, later):
                if not which.any():
                    continue
                some = chosen(found, which)
                keys = [b"0" * 16] * len(some.rows)
                metadata = {"sensorium.sequence": str(int(some.lengths is not None))}
                if contiguous:
                    metadata["sensorium.layout"] = LAYOUT
                table = embedding_table(some, keys=keys, metadata=metadata)
                body = embedding_bytes(table).to_pybytes()
                name = hashlib.blake2b(body, digest_size=16).hexdigest()
                store.storage.write_once(embedding_path(encoder=f"of-{modality}", shard=name), body)
                names.append(name)
            shards[modality].append(tuple(names))
    snapshot = Snapshot(
        name="toy",
        target="label",
        slices=(),
        samples=tuple(samples),
        modalities={
            modality: ModalityShards(
                kind="text",
                encoder={"type": "made-up", "dtype": "float16"},
                encoder_fingerprint=f"of-{modality}",
                dim=embeddings.values.shape[1],
                shards=tuple(shards[modality]),
                present=len(embeddings.rows),
                missing=rows - len(embeddings.rows),
                bad=0,
            )
            for modality, embeddings in columns["embeddings"].items()
        },
    )
    store.commit(snapshot)
    return snapshot


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., tuple[Store, Snapshot]]:
    """Writes a store of made-up columns under `tmp_path/name`; the store and its snapshot."""

    def make(
        name: str = "store",
        *,
        shard_rows: int = 100,
        patched: bool = False,
        contiguous: bool = True,
        groups: bool = False,
        **options: Any,
    ) -> tuple[Store, Snapshot]:
        folder = tmp_path / name
        snapshot = write_store(
            folder,
            make_columns(**options),
            shard_rows=shard_rows,
            patched=patched,
            contiguous=contiguous,
            groups=groups,
        )
        return Store(LocalStorage(folder)), snapshot

    return make


@pytest.fixture(scope="session")
def run_workers() -> Callable[[Path], None]:
    """Runs gloo_worker.py as two processes on a folder, and waits for them."""
    script = Path(__file__).with_name("gloo_worker.py")

    def run(folder: Path) -> None:
        workers = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), "2", str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            for worker in workers:
                output, _ = worker.communicate(timeout=240)
                assert worker.returncode == 0, output
        finally:
            for worker in workers:
                worker.kill()

    return run


@pytest.fixture(scope="session")
def columns() -> Callable[..., dict]:
    return make_columns


@pytest.fixture
def make_table() -> Callable[..., EmbeddingTable]:
    def make(**options: object) -> EmbeddingTable:
        return table_of(**make_columns(**options))

    return make


@pytest.fixture
def task_table() -> Callable[..., EmbeddingTable]:
    """The table with `label`, `tags` (lists) and `size` (a number), of a task of one of them."""

    def make(task: dict[str, Any]) -> EmbeddingTable:
        columns, spec = make_columns(), parse_task(task)
        rng = np.random.default_rng(1)
        names = columns["labels"].to_pylist()
        labels: dict[str, pa.Array] = {
            "label": columns["labels"],
            "tags": pa.array(
                [
                    None if n is None else ["tail"] * (n != "eel") + ["pet"] * (n < "e")
                    for n in names
                ]
            ),
            "size": pa.array(
                [None if n is None else 10.0 * ord(n[0]) + rng.normal() for n in names]
            ),
        }
        columns |= {"labels": {name: labels[name] for name in spec.targets}, "task": spec}
        return table_of(**columns)

    return make


@pytest.fixture
def table(make_table: Callable[..., EmbeddingTable]) -> EmbeddingTable:
    return make_table()


@pytest.fixture
def watched() -> Callable[[], AbstractContextManager[list[int]]]:
    """A block in which the sizes of all tensors are listed that torch makes."""

    @contextmanager
    def watch() -> Iterator[list[int]]:
        sizes: list[int] = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), options=None):
                result = function(*arguments, **(options or {}))
                parts = result if isinstance(result, tuple | list) else [result]
                sizes.extend(x.numel() for x in parts if isinstance(x, torch.Tensor))
                return result

        with Watch():
            yield sizes

    return watch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
