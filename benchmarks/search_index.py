"""The index of a space: comparing with all vectors, mapped from Parquet, against FAISS.

    python -m benchmarks.search_index [--quick] [--rows N] [--folder DIR]

Unit vectors in clusters that overlap, and queries drawn as they are. `exact` and `cells` are what
`sensorium search` does, from files, in parts as it cuts them; the others are FAISS's own indexes
over all vectors, in memory, opened before. A query is asked one at a time, the files being in the
page cache; `opened` is from the file to the first answer, in a process that has read nothing else.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Target, report
from features.shard import Embeddings, embedding_bytes, embedding_table
from features.storage import LocalStorage
from features.store import Store
from workflows.space.cells import PROBES, Cells
from workflows.space.nearest import search
from workflows.space.parts import MEAN_ROWS, Part
from workflows.space.recall import RECALL_AT

DIM = 256
CLUSTERS = 2000
LATENT = 32
"""Dimensions in which clusters and what is within them differ, as those of learned embeddings are
far fewer than their numbers: of noise in all 256, nothing but a comparison with all finds the
nearest."""
NOISE = 0.6
"""Deviation of a latent number about its cluster's centre, whose own deviation is 1."""
QUERIES = 100
TIMED = 20


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to search, measured."""

    name: str
    build: float
    """Seconds, from vectors in memory to the file."""
    bytes: int
    opened: float
    """Seconds from the file to the first answer."""
    latency: float
    """Seconds a query, the median."""
    recall: float

    @property
    def cells(self) -> list[str]:
        return [
            self.name,
            f"{self.build:.1f} s",
            f"{self.bytes / 1e6:,.0f} MB",
            f"{self.opened * 1000:,.0f} ms",
            f"{self.latency * 1000:.1f} ms",
            f"{self.recall:.3f}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rows, and write nothing")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the files are kept")
    options = parser.parse_args()
    base = options.folder or Path(tempfile.gettempdir()) / "sensorium-benchmarks"
    folder = base / "search_index"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = 50_000 if options.quick else options.rows
    vectors, queries = clustered(rows)
    true = np.argsort(-(queries @ vectors.T), axis=1)[:, :RECALL_AT]
    found = list(of_sensorium(vectors, queries=queries, true=true, folder=folder))
    found += list(of_faiss(vectors, queries=queries, true=true, folder=folder))
    exact, cells = found[0], found[1]
    shutil.rmtree(folder)
    report(
        "search_index",
        head=("way", "build", "bytes", "opened", "a query", f"recall@{RECALL_AT}"),
        rows=[way.cells for way in found],
        targets=[
            Target(what="recall of the exact way", limit=1, found=exact.recall, at_least=True),
            Target(
                what="a query of the exact way, the files being cached",
                limit=0.5,
                found=exact.latency,
                unit="s",
            ),
            Target(what="recall of cells", limit=0.95, found=cells.recall, at_least=True),
        ],
        libraries=("faiss-cpu",),
        remarks=[
            f"{rows:,} unit vectors of {DIM} numbers, which differ in {LATENT} dimensions, about "
            f"{CLUSTERS:,} centres, "
            f"{QUERIES} queries, of which {TIMED} are timed one by one; cells look into {PROBES} "
            "of each part's. `build` of the ways of `sensorium search` includes the Parquet files, "
            "on which cells stand. Peak memory of the process: "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB, of which the "
            f"vectors themselves are {vectors.nbytes / 1e9:.1f}."
        ],
        write=not options.quick,
    )


def clustered(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors `[N, DIM]` and queries `[QUERIES, DIM]`, of length 1."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, LATENT)).astype(np.float32)
    into = rng.standard_normal((LATENT, DIM)).astype(np.float32)

    def drawn(number: int) -> np.ndarray:
        noise = rng.standard_normal((number, LATENT)).astype(np.float32)
        made = (centres[rng.integers(CLUSTERS, size=number)] + NOISE * noise) @ into
        unit: np.ndarray = made / np.linalg.norm(made, axis=1, keepdims=True)
        return unit

    vectors = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, 2**16):
        vectors[start : start + 2**16] = drawn(min(2**16, rows - start))
    return vectors, drawn(QUERIES)


def of_sensorium(
    vectors: np.ndarray, *, queries: np.ndarray, true: np.ndarray, folder: Path
) -> Iterator[Way]:
    """The exact way and that by cells, as `sensorium search` takes them."""
    store, parts = Store(LocalStorage(folder)), list[Part]()
    starts = list(range(0, len(vectors), MEAN_ROWS))
    begun = time.perf_counter()
    for start in starts:
        part = Part(name=f"{start:09}", space="space", first=0, over=())
        some = vectors[start : start + MEAN_ROWS]
        table = embedding_table(
            Embeddings(rows=np.arange(len(some)), values=some),
            keys=[bytes(16)] * len(some),
            metadata={"sensorium.layout": "contiguous"},
        )
        store.storage.write_once(part.path, embedding_bytes(table))
        parts.append(part)
    build = time.perf_counter() - begun

    def asked(by_cells: bool) -> Callable[[np.ndarray], np.ndarray]:
        def ask(some: np.ndarray) -> np.ndarray:
            hits = search(store, parts, queries=some, k=RECALL_AT, by_cells=by_cells)
            return np.asarray(starts)[hits.parts] + hits.places

        return ask

    yield measured(
        "exact, mapped Parquet",
        lambda: asked(False),
        build=build,
        bytes=_bytes(folder, "*.parquet"),
        queries=queries,
        true=true,
    )
    begun = time.perf_counter()
    for part, start in zip(parts, starts, strict=True):
        made = Cells.of(vectors[start : start + MEAN_ROWS])
        store.storage.write_once(part.cells_path, made.to_bytes())
    yield measured(
        "cells by part, float16, mapped",
        lambda: asked(True),
        build=build + time.perf_counter() - begun,
        bytes=_bytes(folder, "*"),
        queries=queries,
        true=true,
    )


def of_faiss(
    vectors: np.ndarray, *, queries: np.ndarray, true: np.ndarray, folder: Path
) -> Iterator[Way]:
    """FAISS's indexes over all vectors."""
    import faiss

    product = faiss.METRIC_INNER_PRODUCT
    half = faiss.ScalarQuantizer.QT_fp16
    cells = max(1, round(len(vectors) ** 0.5))
    ways: list[tuple[str, Callable[[], Any]]] = [
        ("FAISS flat, float32", lambda: faiss.IndexFlatIP(DIM)),
        ("FAISS flat, float16", lambda: faiss.IndexScalarQuantizer(DIM, half, product)),
        (
            f"FAISS IVF {cells:,}, float16",
            lambda: faiss.IndexIVFScalarQuantizer(
                faiss.IndexFlatIP(DIM), DIM, cells, half, product
            ),
        ),
        ("FAISS HNSW 16, float16", lambda: faiss.IndexHNSWSQ(DIM, half, 16, product)),
    ]
    for name, make in ways:
        begun = time.perf_counter()
        index = make()
        if not index.is_trained:
            index.train(vectors[:: max(1, len(vectors) // (64 * cells))])
        index.add(vectors)
        path = folder / "faiss"
        faiss.write_index(index, str(path))
        build = time.perf_counter() - begun
        del index

        def opened(path: Path = path) -> Callable[[np.ndarray], np.ndarray]:
            index = faiss.read_index(str(path))
            if hasattr(index, "nprobe"):
                index.nprobe = max(1, cells // 32)
            if hasattr(index, "hnsw"):
                index.hnsw.efSearch = 128
            return lambda some: np.asarray(index.search(some, RECALL_AT)[1])

        yield measured(
            name, opened, build=build, bytes=path.stat().st_size, queries=queries, true=true
        )
        path.unlink()


def measured(
    name: str,
    opened: Callable[[], Callable[[np.ndarray], np.ndarray]],
    *,
    build: float,
    bytes: int,
    queries: np.ndarray,
    true: np.ndarray,
) -> Way:
    """A way, opened and asked one query after another, then all for the recall."""
    begun = time.perf_counter()
    ask = opened()
    ask(queries[:1])
    first = time.perf_counter() - begun
    seconds = []
    for i in range(TIMED):
        begun = time.perf_counter()
        ask(queries[i : i + 1])
        seconds.append(time.perf_counter() - begun)
    found = ask(queries)
    right = [len(set(a) & set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    way = Way(
        name=name,
        build=build,
        bytes=bytes,
        opened=first,
        latency=float(np.median(seconds)),
        recall=sum(right) / true.size,
    )
    print("  ", *way.cells, flush=True)
    return way


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


if __name__ == "__main__":
    main()
