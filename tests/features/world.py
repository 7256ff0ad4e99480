"""A small world for the tests of stage 1: a table, an encoder that fails in many ways, a store."""

from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from features.commit import make_snapshot
from features.embedding import embed_shard
from features.encoders import EncoderSpec
from features.planning import make_plan
from features.quarantine import count_quarantine
from features.retry import retry_work, with_patches
from features.sample_shards import write_samples
from features.sources import RowReader, open_source
from features.spec import DatasetSpec, FeatureSpec, ShardSize
from features.storage import LocalStorage
from features.store import Store

ROWS = 900


class Letters:
    """Counts letters; fails in the ways in which encoders fail."""

    dim = 4

    def __init__(self, log):
        self.log = log

    def prepare(self, payload):
        if payload == "unusable":
            raise ValueError("too odd to use")
        return payload

    def size(self, prepared):
        return len(prepared)

    def encode(self, batch):
        if len(batch) > 8 and "memory" in batch:
            raise MemoryError
        if "poison" in batch:
            raise RuntimeError("cannot swallow this")
        self.log += batch
        rows = np.array([[text.count(c) for c in "aeio"] for text in batch], dtype=np.float32)
        for row, text in zip(rows, batch, strict=True):
            if text == "not finite":
                row[0] = np.nan
            if text == "huge":
                row[0] = 1e6
        return rows


class LettersSpec(EncoderSpec):
    kind: ClassVar = "text"
    type: Literal["tests.Letters"] = "tests.Letters"
    scale: int = 1
    log: ClassVar[list] = []

    def load(self):
        return Letters(self.log)


class World:
    """A table in a folder, a store beside it, and stage 1 over both in this process."""

    def __init__(self, folder):
        self.folder = folder
        self.path = "table.parquet"
        self.store = Store(LocalStorage(folder / "store"))
        self.frame = pd.DataFrame(
            {
                "id": [f"s{i}" for i in range(ROWS)],
                "text": [None if i % 10 == 0 else f"a text, e.g. {i:04}" for i in range(ROWS)],
                "note": [f"note {i}" for i in range(ROWS)],
                "label": [i % 3 for i in range(ROWS)],
                "split": "train",
            }
        )
        self.specs = {"text": LettersSpec(), "note": LettersSpec(scale=2)}

    def plan(self):
        self.frame.to_parquet(self.folder / "table.parquet", index=False)
        size = ShardSize(min=20, target=50, max=200)
        return make_plan(
            name="world",
            source=open_source(self.path, folder=str(self.folder)),
            dataset=DatasetSpec(path=self.path, id="id", split="split", shard_rows=size),
            features={m: FeatureSpec(column=m, encoder=spec) for m, spec in self.specs.items()},
            target="label",
            store=self.store,
        )

    def run(self):
        plan = self.plan()
        write_samples(plan, store=self.store)
        LettersSpec.log.clear()
        results = [self.embed(plan, work) for work in plan.work]
        snapshot = make_snapshot(
            plan, store=self.store, quarantine=count_quarantine(plan, store=self.store)
        )
        self.store.commit(snapshot)
        return plan, results, snapshot

    def retry(self):
        """Try again what is quarantined: the work, its results, and the snapshot after it."""
        plan = self.plan()
        LettersSpec.log.clear()
        work = retry_work(plan, store=self.store)
        results = [self.embed(plan, one) for one in work]
        plan = with_patches(plan, results)
        counts = count_quarantine(plan, store=self.store)
        snapshot = make_snapshot(plan, store=self.store, quarantine=counts)
        self.store.commit(snapshot)
        return work, results, snapshot

    def embed(self, plan, work):
        spec = self.specs[work.modality]
        return embed_shard(
            work,
            store=self.store,
            spec=spec,
            encoder=spec.load(),
            source=plan.source,
            reader=RowReader(plan.source, columns=[work.modality]),
            columns=FeatureSpec(column=work.modality, encoder=spec).payload_columns,
            payload_key_by="stat",
        )

    def expected(self, modality):
        texts = self.frame[modality]
        rows = np.flatnonzero(texts.notna())
        return rows, np.array([[texts[r].count(c) for c in "aeio"] for r in rows], np.float16)

    def files(self):
        found = {}
        for path in sorted((self.folder / "store").rglob("*.parquet")):
            status = path.stat()
            found[str(path.relative_to(self.folder))] = (status.st_ino, status.st_mtime_ns)
        return found
