"""Memory and time of the contrastive losses at a large batch, against the matrix of all pairs.

    python -m benchmarks.contrastive [--quick] [--rows N] [--repeats N] [--folder DIR]

Each run is a process of its own: forward and backward on unit vectors of two modalities, all on
one worker. The naive losses are those of open_clip (`ClipLoss`, `SigLipLoss`), written out; where
they do not fit in memory they are run on fewer rows, and time and memory taken times the square of
what is lacking. Peak memory is the resident set's, less what the process held before the loss.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import command
from benchmarks.measure import Series, in_turn, run_variant, short, tell
from benchmarks.processes import Share
from benchmarks.results import Target, report

DIMS = (64, 128)
LOSSES = {"infonce": "InfoNCE", "sigmoid": "sigmoid"}
MATRICES = 5.5
"""Of all pairs of rows: more than the naive losses hold at their peak."""
SETTINGS = "rows.json"


def main() -> None:
    variants = {
        f"{loss}-{kind}-{dim}": functools.partial(_run, loss=loss, naive=kind == "naive", dim=dim)
        for loss in LOSSES
        for dim in DIMS
        for kind in ("naive", "ours")
    }
    options = command.parse(__doc__, rows=32_768, quick=4_096, variants=variants)
    naive_rows = options.rows
    while 4 * MATRICES * naive_rows**2 > _available():
        naive_rows //= 2
    short_of = (options.rows / naive_rows) ** 2
    peaks: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, float] = {}
    found: dict[str, Series] = {}
    for loss in LOSSES:
        for dim in DIMS:
            names = [f"{loss}-{kind}-{dim}" for kind in ("naive", "ours")]
            found |= in_turn(
                {
                    name: (
                        rows,
                        functools.partial(
                            _watched,
                            name,
                            folder=options.folder,
                            rows=rows,
                            peaks=peaks[name],
                            losses=losses,
                        ),
                    )
                    for name, rows in zip(names, (naive_rows, options.rows), strict=True)
                },
                repeats=options.repeats,
            )
            naive, ours = (losses[name] for name in names)
            assert naive_rows < options.rows or abs(naive - ours) < 1e-4 * abs(naive), names
    lines, targets = [], []
    for loss, title in LOSSES.items():
        for dim in DIMS:
            for kind in ("naive", "ours"):
                name = f"{loss}-{kind}-{dim}"
                series, peak = found[name], max(peaks[name])
                rows = naive_rows if kind == "naive" else options.rows
                lines.append(
                    [
                        f"{title}, {dim} wide, {kind}",
                        f"{rows:,}",
                        short(series.seconds),
                        series.seconds_spread,
                        short(_cpu_seconds(series)),
                        short(peak / 1e9),
                        f"{series.foreign:.1f}",
                    ]
                )
            naive, ours = (found[f"{loss}-{kind}-{dim}"] for kind in ("naive", "ours"))
            taken, held = (max(peaks[f"{loss}-{kind}-{dim}"]) for kind in ("ours", "naive"))
            targets += [
                Target(
                    what=f"{title}, {dim} wide: memory", limit=0.25, found=taken / held / short_of
                ),
                Target(
                    what=f"{title}, {dim} wide: time by the clock",
                    limit=1.2,
                    found=ours.seconds / naive.seconds / short_of,
                ),
                Target(
                    what=f"{title}, {dim} wide: CPU time",
                    limit=1.2,
                    found=_cpu_seconds(ours) / _cpu_seconds(naive) / short_of,
                ),
            ]
    report(
        "contrastive",
        head=("loss", "rows", "seconds", "least–most", "CPU s", "peak, GB", "others' CPUs"),
        rows=lines,
        targets=targets,
        remarks=[
            f"{options.rows:,} rows, float32, forward and backward. Targets are ratios to the "
            f"naive loss, run on {naive_rows:,} rows and taken times {short_of:g}."
        ],
        write=not options.quick,
    )


def _cpu_seconds(series: Series) -> float:
    return statistics.median(run.cpu_seconds for run in series.runs)


def _watched(
    name: str, *, folder: Path, rows: int, peaks: list[float], losses: dict[str, float]
) -> Share:
    """One run of a variant: its share of the CPUs; its peak and loss go where they are kept."""
    (folder / SETTINGS).write_text(json.dumps({"rows": rows}))
    facts, share = run_variant("benchmarks.contrastive", name, folder=folder)
    peaks.append(facts["peak"])
    losses[name] = facts["loss"]
    return share


def _run(folder: Path, *, loss: str, naive: bool, dim: int) -> None:
    """One forward and backward pass, in a process of its own."""
    import torch
    import torch.nn.functional as F

    from training.losses.contrastive import info_nce
    from training.losses.sigmoid import sigmoid_loss

    rows = json.loads((folder / SETTINGS).read_text())["rows"]
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    common = torch.randn(rows, dim)
    x = F.normalize(common[:, None] + torch.randn(rows, 2, dim), dim=-1).requires_grad_()
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)

    def clip(x: torch.Tensor) -> torch.Tensor:
        logits = scale * x[:, 0] @ x[:, 1].T
        labels = torch.arange(len(x))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def siglip(x: torch.Tensor) -> torch.Tensor:
        logits = scale * x[:, 0] @ x[:, 1].T + bias
        labels = 2 * torch.eye(len(x)) - torch.ones(len(x))
        return -F.logsigmoid(labels * logits).sum() / len(x)

    def ours(x: torch.Tensor) -> torch.Tensor:
        presence = torch.ones(len(x), 2, dtype=torch.bool)
        if loss == "infonce":
            return info_nce(x, presence_BM=presence, scale=scale)
        return sigmoid_loss(x, presence_BM=presence, scale=scale, bias=bias)

    call: Callable[[torch.Tensor], torch.Tensor] = ours
    if naive:
        call = clip if loss == "infonce" else siglip
    call(x[:256]).backward()  # what is loaded at the first call is no part of it
    before = _peak()
    begun = time.time()
    value = call(x)
    value.backward()
    ended = time.time()
    tell(begun=begun, ended=ended, peak=_peak() - before, loss=float(value))


def _peak() -> float:
    """Greatest resident set of this process until now, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _available() -> float:
    """Bytes of memory that are free for a process."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return 1024 * float(fields["MemAvailable"].split()[0])


if __name__ == "__main__":
    main()
