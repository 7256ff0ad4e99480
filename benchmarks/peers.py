"""What the jobs of the peers have in common: reading, a loop, writing, and the clock."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import ENVIRONMENT, tell
from benchmarks.tables import lists

T = TypeVar("T")
Loop = Callable[[Sequence[Any]], np.ndarray]
"""Payloads to embeddings, float `[N, D]`, in their order."""


def prepared_ahead(
    payloads: Sequence[Any], *, prepare: Callable[[Any], T], batch: int, threads: int
) -> Iterator[list[T]]:
    """The payloads in batches, prepared by threads that are one batch ahead of who takes them."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(prepare, payload) for payload in payloads[: 2 * batch]]
        for start in range(0, len(payloads), batch):
            ready = [future.result() for future in waiting[:batch]]
            ahead = payloads[start + 2 * batch : start + 3 * batch]
            waiting = waiting[batch:] + [pool.submit(prepare, payload) for payload in ahead]
            yield ready


def bare_job(make: Callable[[], Loop], *, folder: Path, column: str) -> None:
    """Read, embed, write; no more."""
    loop = make()
    paths = sorted((folder / "table").glob("*.parquet"))
    loop(pq.read_table(paths[0], columns=[column])[column].to_pylist()[:8])  # warm
    made, begun = empty(folder), time.time()
    table = pa.concat_tables([pq.read_table(path, columns=["id", column]) for path in paths])
    values = loop(table[column].to_pylist()).astype(np.float16)
    result = pa.table({"id": table["id"], "embedding": lists(values)})
    pq.write_table(result, made / "part.parquet", compression="none", use_dictionary=False)
    tell(rows=table.num_rows, begun=begun, ended=time.time())


def ray_job(make: Callable[[], Loop], *, folder: Path, column: str, batch: int) -> None:
    """Ray Data as its documentation shows it: a model in an actor, and batches of rows for it."""
    import ray

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    made = empty(folder)
    ray.data.read_parquet(str(folder / "table")).map_batches(
        _Actor,
        fn_constructor_args=(make, str(folder), column),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    ).write_parquet(str(made))
    tell(rows=rows_in(made), begun=ready_at(folder), ended=time.time())


class _Actor:
    def __init__(self, make: Callable[[], Loop], folder: str, column: str) -> None:
        self._loop, self._column = make(), column
        note_ready(Path(folder))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        payloads = list(batch.pop(self._column))
        batch["embedding"] = self._loop(payloads)
        return batch


def daft_job(make: Callable[[], Loop], *, folder: Path, column: str, batch: int, dim: int) -> None:
    """Daft with a loop as its function; one of them, with all threads."""
    import daft

    @daft.cls(max_concurrency=1)
    class Embedder:
        def __init__(self) -> None:
            self.loop = make()
            note_ready(folder)

        @daft.method.batch(
            return_dtype=daft.DataType.embedding(daft.DataType.float32(), dim), batch_size=batch
        )
        def embed(self, payloads: Any) -> Any:
            return self.loop(payloads.to_pylist())

    made = empty(folder)
    table = daft.read_parquet(f"{folder}/table/*.parquet")
    table = table.with_column("embedding", Embedder().embed(daft.col(column)))
    table.exclude(column).write_parquet(str(made))
    tell(rows=rows_in(made), begun=ready_at(folder), ended=time.time())


def empty(folder: Path) -> Path:
    """The folder of what a job makes, with nothing of an earlier one."""
    for path in folder.glob("ready-*"):
        path.unlink()
    shutil.rmtree(folder / "made", ignore_errors=True)
    (folder / "made").mkdir()
    return folder / "made"


def note_ready(folder: Path) -> None:
    """Say that a model is loaded."""
    (folder / f"ready-{time.time_ns()}").touch()


def ready_at(folder: Path) -> float:
    """When the first of the actors was ready, in seconds since 1970."""
    return min(int(path.name.partition("-")[2]) for path in folder.glob("ready-*")) / 1e9


def rows_in(folder: Path) -> int:
    """Rows of all Parquet files in a folder."""
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def has_daft(python: str) -> bool:
    """Whether a Python can import daft; says what to do if it cannot."""
    if subprocess.run([python, "-c", "import daft"], capture_output=True).returncode == 0:
        return True
    print("  Daft is left out: name a Python with `pip install daft` by --peers")
    return False
