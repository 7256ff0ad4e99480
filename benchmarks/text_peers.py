"""Jobs from Parquet to Parquet by others: the bare loops, sentence-transformers, Ray Data, Daft.

Each runs in a process of its own and says how long it worked, start and model loading excluded:
from the moment its model is ready to the last file in its place.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure import ENVIRONMENT, tell
from benchmarks.text_loops import Loop, minilm, packed_loop, sorted_loop

ST_BATCH = 64
"""Rows that the recipe of Ray's documentation gives to an actor at once."""
DAFT_BATCH = 4096


def bare(make: Callable[[], Loop], folder: Path) -> None:
    """Read, embed, write; no more."""
    loop = make()
    loop(["warm", "up"])
    begun = time.time()
    made = _empty(folder)
    paths = sorted((folder / "table").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path, columns=["id", "text"]) for path in paths])
    values = loop(table["text"].to_pylist()).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    made_table = pa.table({"id": table["id"], "embedding": column})
    pq.write_table(made_table, made / "part.parquet", compression="none", use_dictionary=False)
    tell(rows=table.num_rows, begun=begun, ended=time.time())


def sentence_transformers_loop() -> Loop:
    """`SentenceTransformer(…).encode` as it is."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm(), device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def ray_recipe(folder: Path) -> None:
    """Embedding by Ray Data as its documentation shows it: a model in an actor, batches of rows."""
    import ray

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    made = _empty(folder)
    rows = ray.data.read_parquet(str(folder / "table"))
    rows.map_batches(
        _RecipeEmbedder,
        fn_constructor_args=(str(folder),),
        batch_size=ST_BATCH,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    ).write_parquet(str(made))
    tell(rows=_rows_in(made), begun=_ready_at(folder), ended=time.time())


class _RecipeEmbedder:
    def __init__(self, folder: str) -> None:
        self._encode = sentence_transformers_loop()
        _note_ready(Path(folder))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self._encode(list(batch["text"]))
        return batch


def daft_loop(folder: Path) -> None:
    """Daft with the best loop as its function."""
    import daft

    @daft.cls(max_concurrency=1)
    class Embedder:
        def __init__(self) -> None:
            torch.set_num_threads(2)
            self.loop = sorted_loop(torch.bfloat16)
            _note_ready(folder)

        @daft.method.batch(
            return_dtype=daft.DataType.embedding(daft.DataType.float32(), 384),
            batch_size=DAFT_BATCH,
        )
        def embed(self, column: Any) -> Any:
            return self.loop(column.to_pylist())

    made = _empty(folder)
    table = daft.read_parquet(f"{folder}/table/*.parquet")
    table = table.with_column("embedding", Embedder().embed(daft.col("text")))
    table.write_parquet(str(made))
    tell(rows=_rows_in(made), begun=_ready_at(folder), ended=time.time())


VARIANTS: dict[str, Callable[[Path], None]] = {
    "sorted-fp32": lambda folder: bare(lambda: sorted_loop(torch.float32), folder),
    "sorted-bf16": lambda folder: bare(lambda: sorted_loop(torch.bfloat16), folder),
    "packed-bf16": lambda folder: bare(lambda: packed_loop(torch.bfloat16), folder),
    "sentence-transformers": lambda folder: bare(sentence_transformers_loop, folder),
    "ray-recipe": ray_recipe,
    "daft": daft_loop,
}


def _empty(folder: Path) -> Path:
    for path in folder.glob("ready-*"):
        path.unlink()
    shutil.rmtree(folder / "made", ignore_errors=True)
    (folder / "made").mkdir()
    return folder / "made"


def _note_ready(folder: Path) -> None:
    (folder / f"ready-{time.time_ns()}").touch()


def _ready_at(folder: Path) -> float:
    """When the first of the actors was ready."""
    return min(int(path.name.partition("-")[2]) for path in folder.glob("ready-*")) / 1e9


def _rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))
