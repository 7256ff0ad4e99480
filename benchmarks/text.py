"""Texts of mixed lengths to embeddings by MiniLM, Parquet to Parquet, start-up excluded.

python -m benchmarks.text [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks import command, job, text_peers
from benchmarks.measure import RATE_HEAD, in_turn, rate_rows, run_variant
from benchmarks.processes import Share
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_text_table
from benchmarks.text_loops import minilm, sorted_loop
from features.stored_embeddings import read_embeddings

SLOW_ROWS = 500
"""Rows for the peers that take minutes for more."""
CHECKED = 256
"""Rows whose embeddings are compared with those in float32."""
LOOPS = ("sorted-fp32", "sorted-bf16", "packed-bf16")
SLOW = ("sentence-transformers", "ray-recipe")


def main() -> None:
    options = command.parse(__doc__, rows=4_000, quick=1_000, variants=text_peers.VARIANTS)
    folder, slow = options.folder / str(options.rows), options.folder / "slow"
    pipelines = {}
    for precision in ("bfloat16", "float32"):
        encoder = {"type": "huggingface_text", "model": minilm(), "precision": precision}
        place = folder / precision
        write_text_table(place, rows=options.rows)
        pipelines[precision] = write_pipeline(
            place, features={"text": {"column": "text", "encoder": encoder}}
        )
    write_text_table(slow, rows=SLOW_ROWS)

    def project(precision: str) -> Share:
        return job.working_share(pipelines[precision])

    def peer(variant: str) -> Share:
        place = slow if variant in SLOW else folder / "bfloat16"
        return run_variant("benchmarks.text", variant, folder=place)[1]

    def of(name: str, rows: int, run: Callable[[str], Share]) -> tuple[int, Callable[[], Share]]:
        return rows, functools.partial(run, name)

    variants = {
        "this project, bf16": of("bfloat16", options.rows, project),
        **{name: of(name, options.rows, peer) for name in LOOPS},
        "this project, fp32": of("float32", options.rows, project),
        **{name: of(name, SLOW_ROWS, peer) for name in SLOW},
    }
    found = in_turn(variants, repeats=options.repeats)
    best = max((found[name] for name in LOOPS), key=lambda series: series.rate)
    best_cpu = max((found[name] for name in LOOPS), key=lambda series: series.cpu_rate)
    ours = found["this project, bf16"]
    alike = found["sorted-fp32"]
    cosines = {p: least_cosine(pipeline) for p, pipeline in pipelines.items()}

    def least(what: str, limit: float, value: float) -> Target:
        return Target(what=what, limit=limit, found=value, at_least=True)

    exact = found["this project, fp32"]
    defaults, recipe = (found[name] for name in SLOW)
    report(
        "text",
        head=RATE_HEAD,
        rows=rate_rows(found, best=best, best_cpu=best_cpu),
        targets=[
            least("of the best loop, by the clock", 0.85, ours.rate / best.rate),
            least("of the best loop, by CPU time", 0.85, ours.cpu_rate / best_cpu.cpu_rate),
            least("of the loop in fp32, in fp32, by the clock", 0.85, exact.rate / alike.rate),
            least(
                "of the loop in fp32, in fp32, by CPU time", 0.85, exact.cpu_rate / alike.cpu_rate
            ),
            least("times sentence-transformers' defaults", 3, ours.rate / defaults.rate),
            least("times the recipe of Ray's documentation", 8, ours.rate / recipe.rate),
            least("least cosine with fp32, bf16", 0.999, cosines["bfloat16"]),
            least("least cosine with fp32, fp32", 0.99999, cosines["float32"]),
        ],
        libraries=("tokenizers", "sentence-transformers"),
        remarks=[
            f"{options.rows:,} texts of 5 to 200 words ({SLOW_ROWS:,} for sentence-transformers "
            f"and Ray's recipe), float16 in the store, {options.repeats} runs of each in turn. "
            f"Cosines: of {CHECKED} rows as they stand in the store, with the loop in float32."
        ],
        write=not options.quick,
    )


def least_cosine(pipeline: Path) -> float:
    """Of the first embeddings in the store with those of the bare loop in float32."""
    store, snapshot = job.open_store(pipeline)
    stored = read_embeddings(store, snapshot, modality="text").values[:CHECKED].astype(np.float64)
    paths = sorted((pipeline.parent / "table").glob("*.parquet"))
    wanted = pq.read_table(paths[0], columns=["text"])["text"].to_pylist()[:CHECKED]
    expected = sorted_loop(torch.float32)(wanted).astype(np.float64)
    stored = stored[: len(expected)]
    products = (stored * expected).sum(axis=1)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(expected, axis=1)
    return float((products / norms).min())


if __name__ == "__main__":
    main()
