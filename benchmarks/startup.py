"""From a job's start on a warm cluster to its first forward pass, beside a bare process.

python -m benchmarks.startup [--quick] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import command, job
from benchmarks.measure import in_turn, run_variant, short, tell
from benchmarks.processes import Share, busy_seconds
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_text_table
from benchmarks.text_loops import load, minilm

ROWS = 64


def bare(folder: Path) -> None:
    """Load the model and the tokenizer, and run one batch of them."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = load(), AutoTokenizer.from_pretrained(minilm(), local_files_only=True)
    with torch.inference_mode():
        model(**tokenizer(["a text"] * ROWS, return_tensors="pt"))
    tell(rows=ROWS)


VARIANTS: dict[str, Callable[[Path], None]] = {"bare": bare}


def main() -> None:
    options = command.parse(__doc__, rows=ROWS, quick=ROWS, repeats=5, variants=VARIANTS)
    folder = options.folder / str(options.rows)
    write_text_table(folder, rows=options.rows, files=1)
    encoder = {"type": "huggingface_text", "model": minilm()}
    pipeline = write_pipeline(folder, features={"text": {"column": "text", "encoder": encoder}})

    import ray

    from features.job import embed as run_job
    from workflows.pipeline import load_pipeline
    from workflows.plan import plan_embedding

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    loaded = load_pipeline(pipeline)

    def warm_job() -> Share:
        shutil.rmtree(folder / "store", ignore_errors=True)
        plan = plan_embedding(loaded)
        store = loaded.open_store()
        from features.sample_shards import write_samples

        write_samples(plan, store=store)
        busy, begun = busy_seconds(), time.time()
        run_job(plan, storage=store.storage)
        busy = busy_seconds() - busy
        (shard,) = job.shard_files(pipeline).values()
        seconds = shard.encoding_begun - begun
        return Share(seconds=seconds, cpu_seconds=0.0, foreign=max(0.0, busy / seconds - 1))

    def bare_process() -> Share:
        return run_variant("benchmarks.startup", "bare", folder=folder)[1]

    found = in_turn(
        {
            "bare process, to the end of its first forward pass": (ROWS, bare_process),
            "job on a warm cluster, to its first forward pass": (ROWS, warm_job),
        },
        repeats=options.repeats,
    )
    ray.shutdown()
    bare_series, job_series = found.values()
    report(
        "startup",
        head=("variant", "seconds", "least–most"),
        rows=[[name, short(s.seconds), s.seconds_spread] for name, s in found.items()],
        targets=[
            Target(
                what="of the bare process",
                limit=1.2,
                found=job_series.seconds / bare_series.seconds,
            )
        ],
        remarks=[
            "MiniLM in float32. The cluster is this machine, connected; a job begins with its plan "
            "at hand, and ends where the shard's own footer says that its encoding began. The "
            "model is loaded in a new worker each time: imports are in both."
        ],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
