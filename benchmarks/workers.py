"""An alignment candidate on two one-thread workers against one, over gloo.

Beside them two fits at once that share nothing: what two CPUs of this machine can give.

    python -m benchmarks.workers [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import functools
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks import command
from benchmarks.embeddings import made_table
from benchmarks.measure import in_turn, run_variant, short, tell
from benchmarks.processes import Share
from benchmarks.results import Target, report
from training.allocator import keep_freed_memory
from training.built_in import parse_candidate
from training.fitting.loop import fit_candidate
from training.training_spec import TrainingSpec

BATCH = 2048
EPOCHS = 3
TRAINING = TrainingSpec(batch_size=BATCH, max_epochs=EPOCHS)
SPEC = {"type": "alignment", "width": 256, "dim": 128}
DIM = 384
ONE, TWO, APART = "one worker", "two workers", "two fits that share nothing"
FITS = {ONE: (1, 1), TWO: (1, 2), APART: (2, 1)}
"""How many fits at once, of how many workers each."""


def main() -> None:
    variants = {
        name: functools.partial(fit, fits=fits, workers=workers)
        for name, (fits, workers) in FITS.items()
    }
    options = command.parse(__doc__, rows=32_768, quick=8_192, variants=variants)
    (options.folder / "rows").write_text(str(options.rows))

    def run(name: str) -> Share:
        return run_variant("benchmarks.workers", name, folder=options.folder)[1]

    work = {
        name: (fits * options.rows * EPOCHS, functools.partial(run, name))
        for name, (fits, _) in FITS.items()
    }
    found = in_turn(work, repeats=options.repeats)
    one, two, apart = (found[name] for name in FITS)
    report(
        "workers",
        head=("fit", "rows/s", "least–most", "rows/CPU s", "others' CPUs"),
        rows=[
            [name, short(s.rate), s.rate_spread, short(s.cpu_rate), f"{s.foreign:.1f}"]
            for name, s in found.items()
        ],
        targets=[
            Target(what="two workers, by the clock, of one", limit=1.6, found=two.rate / one.rate,
                   at_least=True, unit="×"),
            Target(what="two workers, by CPU time, of one", limit=1.6,
                   found=2 * two.cpu_rate / one.cpu_rate, at_least=True, unit="×"),
        ],
        remarks=[
            f"Alignment of three modalities of width {DIM}, batch {BATCH:,}, {EPOCHS} epochs with "
            "their validation; processes started and data loaded before. By CPU time: what two "
            "would be worth on CPUs of their own. Two fits at once that share neither rows nor "
            f"gradients get {apart.rate / one.rate:.2f} × the rows of one: more than that is "
            "not to be had here."
        ],
        write=not options.quick,
    )  # fmt: skip


def fit(folder: Path, *, fits: int, workers: int) -> None:
    """Fit on so many processes of one thread."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(fits * workers)]
    together = context.Barrier(fits * workers)
    for number in range(fits):
        (folder / f"rendezvous-{number}").unlink(missing_ok=True)
    processes = [
        context.Process(
            target=work,
            args=(place % workers, workers, folder, place // workers, together, theirs),
        )
        for place, (_, theirs) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, theirs in ends:
        theirs.close()  # so that a worker which fails is heard of
    times = [ours.recv() for ours, _ in ends]
    for process in processes:
        process.join()
    tell(begun=max(begun for begun, _ in times), ended=max(ended for _, ended in times))


def work(
    rank: int, workers: int, folder: Path, number: int, together: Any, answer: Connection
) -> None:
    """One worker: a short fit to warm up, and one that is timed; all begin `together`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    place = f"file://{folder / f'rendezvous-{number}'}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=workers)
    table = made_table(rows=int((folder / "rows").read_text()), dim=DIM)
    spec = parse_candidate(SPEC)
    fit_candidate(spec, table=table, training=TRAINING.model_copy(update={"max_epochs": 1}))
    together.wait()
    begun = time.time()
    fit_candidate(spec, table=table, training=TRAINING)
    dist.barrier()
    answer.send((begun, time.time()))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
