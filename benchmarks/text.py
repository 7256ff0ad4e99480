"""Texts of mixed lengths to embeddings by MiniLM, Parquet to Parquet, start-up excluded.

python -m benchmarks.text [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks import command, job, text_peers
from benchmarks.measure import in_turn, run_variant, short
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_text_table
from benchmarks.text_loops import minilm, sorted_loop

SLOW_ROWS = 1000
"""Rows for the peers that take minutes for more."""
CHECKED = 256
"""Rows whose embeddings are compared with those in float32."""
LOOPS = ("sorted-fp32", "sorted-bf16", "packed-bf16")
SLOW = ("sentence-transformers", "ray-recipe")


def main() -> None:
    options = command.parse(__doc__, rows=12_000, quick=3_000, variants=text_peers.VARIANTS)
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

    def project(precision: str) -> tuple[float, float]:
        watched = job.embed(pipelines[precision])
        return options.rows / job.working_seconds(pipelines[precision]), watched.foreign

    def peer(variant: str) -> tuple[float, float]:
        place = slow if variant in SLOW else folder / "bfloat16"
        facts, watched = run_variant("benchmarks.text", variant, folder=place)
        return facts["rows"] / facts["seconds"], watched.foreign

    variants = {
        "this project, bf16": functools.partial(project, "bfloat16"),
        **{name: functools.partial(peer, name) for name in LOOPS},
        "this project, fp32": functools.partial(project, "float32"),
        **{name: functools.partial(peer, name) for name in SLOW},
    }
    found = in_turn(variants, repeats=options.repeats)
    rates = {name: series.median for name, series in found.items()}
    best = max(rates[name] for name in LOOPS)
    ours = max(rates["this project, bf16"], rates["this project, fp32"])
    cosines = {p: least_cosine(pipeline) for p, pipeline in pipelines.items()}
    report(
        "text",
        head=("variant", "rows/s, median", "least–most", "of the best loop"),
        rows=[
            [name, short(series.median), series.spread, f"{series.median / best:.2f}"]
            for name, series in found.items()
        ],
        targets=[
            Target(what="of the best loop", limit=0.85, found=ours / best, at_least=True),
            Target(
                what="of the best loop in fp32, in fp32",
                limit=0.85,
                found=rates["this project, fp32"] / rates["sorted-fp32"],
                at_least=True,
            ),
            Target(
                what="times sentence-transformers' defaults",
                limit=3,
                found=ours / rates["sentence-transformers"],
                at_least=True,
            ),
            Target(
                what="times the recipe of Ray's documentation",
                limit=8,
                found=ours / rates["ray-recipe"],
                at_least=True,
            ),
            Target(
                what="least cosine with fp32, bf16",
                limit=0.999,
                found=cosines["bfloat16"],
                at_least=True,
            ),
            Target(
                what="least cosine with fp32, fp32",
                limit=0.99999,
                found=cosines["float32"],
                at_least=True,
            ),
        ],
        foreign=[value for series in found.values() for value in series.foreign],
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
    stored = store.read_embeddings(snapshot, modality="text").values[:CHECKED].astype(np.float64)
    paths = sorted((pipeline.parent / "table").glob("*.parquet"))
    wanted = pq.read_table(paths[0], columns=["text"])["text"].to_pylist()[:CHECKED]
    expected = sorted_loop(torch.float32)(wanted).astype(np.float64)
    stored = stored[: len(expected)]
    products = (stored * expected).sum(axis=1)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(expected, axis=1)
    return float((products / norms).min())


if __name__ == "__main__":
    main()
