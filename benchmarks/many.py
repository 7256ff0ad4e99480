"""Sixteen candidates of one architecture, fitted in one pass against one after another.

python -m benchmarks.many [--quick] [--rows N] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import command
from benchmarks.embeddings import made_table
from benchmarks.measure import in_turn, run_variant, short, tell
from benchmarks.processes import Share
from benchmarks.results import Target, report
from training.allocator import keep_freed_memory
from training.built_in import parse_candidate
from training.fitting.loop import fit_candidate, fit_together
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec

CANDIDATES = 16
EPOCHS = 3
TRAINING = TrainingSpec(batch_size=256, max_epochs=EPOCHS)
KINDS = {"early-64": ("early", 64), "late-64": ("late", 64), "early-384": ("early", 384)}
"""By name: the fusion, and the width of the three modalities' embeddings."""


def main() -> None:
    ways: dict[str, Callable[[Path], None]] = {
        f"{name} {way}": functools.partial(fit, name=name, together=way == "together")
        for name in KINDS
        for way in ("together", "apart")
    }
    options = command.parse(__doc__, rows=8_192, quick=2_048, repeats=5, variants=ways)
    (options.folder / "rows").write_text(str(options.rows))

    def run(name: str) -> Share:
        return run_variant("benchmarks.many", name, folder=options.folder)[1]

    steps = CANDIDATES * EPOCHS * -(-(options.rows * 6 // 8) // TRAINING.batch_size)
    found = in_turn(
        {name: (steps, functools.partial(run, name)) for name in ways}, repeats=options.repeats
    )
    rows, targets = [], []
    for name in KINDS:
        together, apart = found[f"{name} together"], found[f"{name} apart"]
        far = np.abs(
            np.load(options.folder / f"{name}-together.npy")
            - np.load(options.folder / f"{name}-apart.npy")
        ).max()
        for way, series in (("together", together), ("one after another", apart)):
            rows.append(
                [
                    f"{name}, {way}",
                    short(1000 * series.seconds / steps),
                    short(1000 / series.cpu_rate),
                    short(apart.cpu_rate / series.cpu_rate),
                    f"{series.foreign:.1f}",
                ]
            )
        ratio = apart.cpu_rate / together.cpu_rate
        targets.append(Target(what=f"{name}, together, of the time apart", limit=0.6, found=ratio))
        targets.append(Target(what=f"{name}, answers differ by", limit=1e-4, found=float(far)))
    report(
        "many",
        head=("fit", "ms a step", "CPU ms a step", "of the time apart", "others' CPUs"),
        rows=rows,
        targets=targets,
        remarks=[
            f"{CANDIDATES} candidates that differ in seed, learning rate and dropout, hidden width "
            f"64, batch {TRAINING.batch_size}, {EPOCHS} epochs on one thread; models, optimizers "
            "and validation included. Ratios are of CPU time, which others take little from."
        ],
        write=not options.quick,
    )


def specs(kind: str) -> list[CandidateSpec]:
    own = [
        {"seed": i % 4, "learning_rate": 1e-3 * 2 ** (i // 4), "dropout": 0.05 * (i % 3)}
        for i in range(CANDIDATES)
    ]
    return [parse_candidate({"type": kind, "width": 64, **options}) for options in own]


def fit(folder: Path, *, name: str, together: bool) -> None:
    """Fit all, and keep the answers of each for the test rows `[16, B, C]`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    kind, dim = KINDS[name]
    table = made_table(rows=int((folder / "rows").read_text()), dim=dim)
    candidates = specs(kind)
    warm = TRAINING.model_copy(update={"max_epochs": 1})
    fit_together(candidates[:2], table=table, training=warm)
    fit_candidate(candidates[0], table=table, training=warm)
    begun = time.time()
    if together:
        fits = fit_together(candidates, table=table, training=TRAINING)
    else:
        fits = [fit_candidate(spec, table=table, training=TRAINING) for spec in candidates]
    ended = time.time()
    batch = table.batch(table.labelled("test"))
    with torch.no_grad():
        answers = torch.stack([fit.model(*batch.inputs).softmax(dim=1) for fit in fits])
    np.save(folder / f"{name}-{'together' if together else 'apart'}.npy", answers.numpy())
    tell(begun=begun, ended=ended)


if __name__ == "__main__":
    main()
