"""Training on a GPU: many heads in one pass, precisions, and a contrastive loss of a large batch.

python -m benchmarks.gpu_training [--quick] [--repeats N] [--folder DIR]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import command
from benchmarks.embeddings import made_table
from benchmarks.measure import short
from benchmarks.results import Target, report
from training.built_in import parse_candidate
from training.fitting.loop import fit_candidate, fit_together
from training.losses.contrastive import info_nce
from training.training_spec import TrainingSpec

CANDIDATES = 16


@dataclass(kw_only=True)
class Found:
    """Rows of a table, targets, and what is said of them."""

    rows: list[list[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remark: str


HEADS = {
    "gpu_many": ("fit", "s", "ms a step of each", "of the time apart"),
    "gpu_precision": ("precision", "steps/s", "peak, GB", "validation loss"),
    "gpu_contrastive": ("InfoNCE", "ms", "peak, GB"),
}


def main() -> None:
    options = command.parse(__doc__, rows=8_192, quick=2_048)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu_training needs a GPU, and torch sees none")
    measures: dict[str, Callable[[], Found]] = {
        "gpu_many": lambda: train_many(rows=options.rows, repeats=options.repeats),
        "gpu_precision": lambda: train_precisions(rows=options.rows * 8, repeats=options.repeats),
        "gpu_contrastive": lambda: memory_of_losses(rows=options.rows * 8),
    }
    for name, measure in measures.items():
        found = measure()
        report(
            name,
            head=HEADS[name],
            rows=found.rows,
            targets=found.targets,
            remarks=[f"{torch.cuda.get_device_name()}. {found.remark}"],
            write=not options.quick,
        )


def train_many(*, rows: int, repeats: int) -> Found:
    """Sixteen candidates in one pass, and one after another."""
    found = Found(
        remark=f"{CANDIDATES} candidates that differ in seed and learning rate, width 64, batch "
        "256, three epochs with validation, data on the GPU."
    )
    for kind in ("early", "late", "attention"):
        table = made_table(rows=rows, dim=64, device="cuda")
        training = TrainingSpec(batch_size=256, max_epochs=3, patience=3)
        specs = [
            parse_candidate(
                {"type": kind, "width": 64, "seed": i % 4, "learning_rate": 1e-3 * 2 ** (i // 4)}
            )
            for i in range(CANDIDATES)
        ]

        def together(table: Any = table, training: Any = training, specs: Any = specs) -> list[Any]:
            return fit_together(specs, table=table, training=training, device="cuda")

        def apart(table: Any = table, training: Any = training, specs: Any = specs) -> list[Any]:
            return [
                fit_candidate(spec, table=table, training=training, device="cuda") for spec in specs
            ]

        ways = {"together": together, "one after another": apart}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        losses: dict[str, np.ndarray] = {}
        for turn in range(repeats + 1):
            for way, run in ways.items():
                torch.cuda.synchronize()
                begun = time.perf_counter()
                fits = run()
                torch.cuda.synchronize()
                took = time.perf_counter() - begun
                print(f"  {kind}, {way}: {took:.2f} s", flush=True)
                if turn:
                    seconds[way].append(took)
                losses[way] = _answers(fits, table=table)
        steps = 3 * -(-(table.rows * 6 // 8) // 256)
        apart_s = statistics.median(seconds["one after another"])
        for way in ways:
            median = statistics.median(seconds[way])
            found.rows.append(
                [
                    f"{kind}, {way}",
                    short(median),
                    short(1000 * median / steps / CANDIDATES),
                    f"{median / apart_s:.3f}",
                ]
            )
        ratio = statistics.median(seconds["together"]) / apart_s
        far = float(np.abs(losses["together"] - losses["one after another"]).max())
        found.targets += [
            Target(what=f"{kind}, together, of the time apart", limit=0.15, found=ratio),
            Target(what=f"{kind}, probabilities differ by", limit=1e-3, found=far),
        ]
    return found


def _answers(fits: Sequence[Any], *, table: Any) -> np.ndarray:
    batch = table.batch(table.labelled("test"), device="cuda")
    with torch.no_grad():
        return np.stack([fit.model(*batch.inputs).softmax(dim=1).cpu().numpy() for fit in fits])


def train_precisions(*, rows: int, repeats: int) -> Found:
    """One large fusion in float32, bfloat16 and float16."""
    table = made_table(rows=rows, dim=768, device="cuda")
    spec = parse_candidate(
        {"type": "attention", "width": 1024, "layers": 6, "heads": 16, "learning_rate": 1e-4}
    )
    found = Found(
        remark="Attention fusion of 6 layers, 1,024 wide, three modalities, batch 4,096, two "
        "epochs with validation."
    )
    rates: dict[str, float] = {}
    losses: dict[str, float] = {}
    for precision in ("float32", "bfloat16", "float16"):
        training = TrainingSpec(batch_size=4_096, max_epochs=2, patience=2, precision=precision)
        took = []
        for turn in range(repeats + 1):
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            begun = time.perf_counter()
            epochs: list[Any] = []
            fit = fit_candidate(
                spec, table=table, training=training, device="cuda", on_epoch=epochs.append
            )
            torch.cuda.synchronize()
            if turn:
                took.append(time.perf_counter() - begun)
        steps = 2 * -(-(table.rows * 6 // 8) // 4_096)
        rates[precision] = steps / statistics.median(took)
        batch = table.batch(table.labelled("validation"), device="cuda")
        with torch.no_grad():
            losses[precision] = float(F.cross_entropy(fit.model(*batch.inputs), batch.targets))
        found.rows.append(
            [
                precision,
                short(rates[precision]),
                short(torch.cuda.max_memory_allocated() / 1e9),
                f"{losses[precision]:.4f}",
            ]
        )
    for precision in ("bfloat16", "float16"):
        found.targets += [
            Target(what=f"{precision}, times float32", limit=1.5,
                   found=rates[precision] / rates["float32"], at_least=True),
            Target(what=f"{precision}, loss differs from float32's by", limit=0.02,
                   found=abs(losses[precision] - losses["float32"])),
        ]  # fmt: skip
    return found


def memory_of_losses(*, rows: int) -> Found:
    """InfoNCE over a large batch: the matrix of all pairs, and in blocks."""
    count, dim = rows, 512
    draw = torch.Generator("cuda").manual_seed(0)
    sides = [F.normalize(torch.randn(count, dim, generator=draw, device="cuda")) for _ in range(2)]

    def naive(a_BD: Tensor, b_BD: Tensor, scale: Tensor) -> Tensor:
        logits_BB = scale * a_BD @ b_BD.T
        wanted_B = torch.arange(len(a_BD), device=a_BD.device)
        both = F.cross_entropy(logits_BB, wanted_B) + F.cross_entropy(logits_BB.T, wanted_B)
        return both / 2

    def ours(a_BD: Tensor, b_BD: Tensor, scale: Tensor) -> Tensor:
        both_B2D = torch.stack([a_BD, b_BD], dim=1)
        there_B2 = torch.ones(len(a_BD), 2, dtype=torch.bool, device=a_BD.device)
        return info_nce(both_B2D, presence_BM=there_B2, scale=scale)

    found = Found(remark=f"{count:,} pairs, {dim} wide, float32, forward and backward.")
    losses: dict[str, float] = {}
    peaks: dict[str, int] = {}
    times: dict[str, float] = {}
    ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "all pairs (open_clip's ClipLoss)": naive,
        "this project": ours,
    }
    for name, loss in ways.items():
        took = []
        for turn in range(4):
            leaves = [side.clone().requires_grad_() for side in sides]
            scale = torch.tensor(20.0, device="cuda", requires_grad=True)
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            value = loss(leaves[0], leaves[1], scale)
            value.backward()
            torch.cuda.synchronize()
            if turn:
                took.append(time.perf_counter() - begun)
            peaks[name] = torch.cuda.max_memory_allocated() - held
        losses[name], times[name] = float(value.detach()), statistics.median(took)
        found.rows.append([name, short(1000 * times[name]), short(peaks[name] / 1e9)])
    (one, other) = losses.values()
    theirs, own = peaks.values()
    found.targets += [
        Target(what="loss, relative difference", limit=1e-4, found=abs(one - other) / abs(one)),
        Target(what="memory, of all pairs'", limit=0.1, found=own / theirs),
    ]
    return found


if __name__ == "__main__":
    main()
