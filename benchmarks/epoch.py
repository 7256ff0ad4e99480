"""An epoch of training over embeddings that are in the store, beside other ways to feed the model.

    python -m benchmarks.epoch [--quick] [--rows N] [--repeats N] [--folder DIR]

All fit the same model with the same optimizer, schedule, dropout and batches of the same size, for
two epochs, of which the second is timed, on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks import command, job
from benchmarks.measure import ENVIRONMENT, RATE_HEAD, in_turn, rate_rows, run_variant, short, tell
from benchmarks.processes import Share
from benchmarks.results import Target, report
from benchmarks.tables import lists
from features.shard import vectors
from training.built_in import parse_candidate
from training.data.table import EmbeddingTable, load_table
from training.fitting.loop import Epoch, fit_candidate
from training.fitting.step import learning_rate, make_model, make_optimizer
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

DIMS = {"text": 384, "image": 512, "audio": 768}
CLASSES = 10
CHUNK = 20_000
VALIDATION = 0.01
"""Share of the rows that are validated on, and of those that are tested."""
BATCH, EPOCHS = 1024, 2
TASK = ClassificationSpec(target="label")
SPEC = parse_candidate({"type": "early", "width": 128})
TRAINING = TrainingSpec(batch_size=BATCH, max_epochs=EPOCHS, patience=EPOCHS)
STREAMED_SHARE, SHUFFLED_SHARE = 0.4, 0.15
"""Of the embeddings' bytes, the memory of the stream; of the rows, those it shuffles among."""
OURS, STREAMED = "this project, in memory", "this project, streamed"
BARE = "bare loop over tensors in memory"
ROWS, RAY, RAY_ORDERED = (
    "DataLoader, a row at a time",
    "Ray Data iter_torch_batches, shuffled",
    "Ray Data iter_torch_batches, in order",
)
Batch = tuple[dict[str, Tensor], Tensor]


def main() -> None:
    options = command.parse(__doc__, rows=200_000, quick=20_000, repeats=5, variants=VARIANTS)
    folder = options.folder / str(options.rows)
    _prepare(folder, rows=options.rows)
    facts: dict[str, dict[str, Any]] = {}

    def run(name: str) -> Share:
        found, share = run_variant("benchmarks.epoch", name, folder=folder)
        facts[name] = found
        print(f"    loss {found['loss']:.4f}, peak {found['peak'] / 1e6:,.0f} MB", flush=True)
        return share

    trained = sum(f["split"] == "train" for f in _splits(options.rows))
    slow = {name: (trained, partial(run, name)) for name in (RAY, RAY_ORDERED, ROWS)}
    fast = {name: (trained, partial(run, name)) for name in (BARE, OURS, STREAMED)}
    found = in_turn(fast, repeats=options.repeats)
    found |= in_turn(slow, repeats=min(2, options.repeats))
    ours, limit = found[OURS], found[BARE]
    size = sum(DIMS.values()) * 2 * options.rows

    def least(what: str, value: float, least: float) -> Target:
        return Target(what=what, limit=least, found=value, at_least=True)

    report(
        "epoch",
        head=(*RATE_HEAD, "validation loss", "peak, MB"),
        rows=[
            [*row, f"{facts[row[0]]['loss']:.4f}", f"{facts[row[0]]['peak'] / 1e6:,.0f}"]
            for row in rate_rows(found, best=limit)
        ],
        targets=[
            least("of the bare loop, by the clock", ours.rate / limit.rate, 0.9),
            least("of the bare loop, by CPU time", ours.cpu_rate / limit.cpu_rate, 0.9),
            least("times Ray Data's iter_torch_batches, shuffled", ours.rate / found[RAY].rate, 5),
            least("times a DataLoader of rows", ours.rate / found[ROWS].rate, 10),
            least("streamed, of in memory", found[STREAMED].rate / ours.rate, 0.6),
            Target(
                what="difference of the validation loss from the bare loop's",
                limit=0.02,
                found=abs(facts[OURS]["loss"] - facts[BARE]["loss"]),
            ),
            Target(
                what="memory of the stream beside its budget, of all embeddings",
                limit=STREAMED_SHARE,
                found=facts[STREAMED]["held"] / size,
            ),
        ],
        remarks=[
            f"{options.rows:,} rows of {', '.join(f'{m} {d}' for m, d in DIMS.items())}, float16 "
            f"({short(size / 1e6)} MB), batches of {BATCH:,}, early fusion of width {SPEC.width}, "
            f"one thread, {options.repeats} runs in turn (2 of Ray Data and of the DataLoader). "
            f"Ours counts the validation on {VALIDATION:.0%} of the rows, the others' do not. "
            f"The stream holds {STREAMED_SHARE:.0%} of the embeddings and shuffles among "
            f"{SHUFFLED_SHARE:.0%} of the rows; Ray Data among 20,000. The peak is the process's "
            "own (VmHWM), with its libraries."
        ],
        write=not options.quick,
    )


# ------------------------------------------------------------------ the table, as all read it


def _splits(rows: int) -> Iterator[dict[str, str]]:
    few = round(rows * VALIDATION)
    for row in range(rows):
        place = row * 7919 % rows  # 7919 is prime, and no divisor of the numbers of rows
        held = "validation" if place < few else "test" if place < 2 * few else "train"
        yield {"split": held}


def _prepare(folder: Path, *, rows: int) -> None:
    """The table, the store with its embeddings, and the joined file that the others read."""
    if not (folder / "joined").exists():
        rng = np.random.default_rng(0)
        means = {m: rng.normal(size=(CLASSES, dim)) * 0.06 for m, dim in DIMS.items()}
        splits = [s["split"] for s in _splits(rows)]
        for name in ("table", "making"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            labels = rng.integers(CLASSES, size=count)
            columns: dict[str, Any] = {
                "id": [f"r{i:08d}" for i in range(first, first + count)],
                "split": splits[first : first + count],
                "label": pa.array(labels),
            }
            for m, dim in DIMS.items():
                values = means[m][labels] + rng.standard_normal((count, dim), np.float32)
                columns[m] = lists(values.astype(np.float16).astype(np.float32))
            table = pa.table(columns)
            pq.write_table(table, folder / "table" / f"{first:08d}.parquet", compression="none")
            for m, dim in DIMS.items():
                half = pa.array(vectors(table[m]).astype(np.float16).reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(half, dim)
                table = table.set_column(table.column_names.index(m), m, column)
            pq.write_table(
                table, folder / "making" / f"{first:08d}.parquet", compression="none",
                use_dictionary=False, row_group_size=5000,
            )  # fmt: skip
        (folder / "making").rename(folder / "joined")
    pipeline = folder / "pipeline.yaml"
    spec = {
        "name": "benchmark",
        "dataset": {
            "path": "table",
            "id": "id",
            "split": "split",
            "shard_rows": {"min": rows // 400, "target": rows // 130, "max": rows // 25},
        },
        "features": {
            m: {"column": m, "encoder": {"type": "vector", "dim": dim}} for m, dim in DIMS.items()
        },
        "task": {"type": "classification", "target": "label"},
        "candidates": [{"type": "early"}],
        "store": "store",
    }
    pipeline.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    job.embed(pipeline, afresh=False)


def _table(folder: Path, **options: Any) -> EmbeddingTable:
    store, snapshot = job.open_store(folder / "pipeline.yaml")
    return load_table(store, snapshot, task=TASK, modalities=tuple(DIMS), **options)


# ------------------------------------------------------------------ this project


def _ours(folder: Path, *, streamed: bool) -> None:
    torch.set_num_threads(1)
    training, options = TRAINING, {}
    if streamed:
        _, snapshot = job.open_store(folder / "pipeline.yaml")
        size = sum(2 * part.dim * part.present for part in snapshot.modalities.values())
        window = round(snapshot.rows * SHUFFLED_SHARE)
        training = TRAINING.model_copy(update={"shuffle_buffer": window})
        options = {"memory": round(size * STREAMED_SHARE), "window": window}
    table = _table(folder, **options)
    times = []

    def note(epoch: Epoch) -> None:
        times.append((time.time() - epoch.seconds, time.time()))

    fit = fit_candidate(SPEC, table=table, training=training, on_epoch=note)
    begun, ended = times[-1]
    held = sum(
        getattr(reader, "nbytes", len(reader) * reader.dim * 2)
        for reader in table.embeddings.values()
    )
    loss = fit.epochs[-1].validation_loss
    tell(begun=begun, ended=ended, loss=loss, peak=_peak(), held=held)


# ------------------------------------------------------------------ the others


def _fit(
    epoch: Callable[[int], Iterator[Batch]], *, model: nn.Module, validation: Batch, rows: int
) -> None:
    """The loop that one writes by hand: no missing rows, no checkpoint, no check of anything."""
    optimizer = make_optimizer(model, spec=SPEC)
    steps, step = EPOCHS * math.ceil(rows / BATCH), 0
    begun = ended = 0.0
    for number in range(EPOCHS):
        begun = time.time()
        model.train()
        for embeddings, targets in epoch(number):
            rate = learning_rate(
                step, steps=steps, warmup=TRAINING.warmup, highest=SPEC.learning_rate
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = F.cross_entropy(model(*_inputs(embeddings)), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), TRAINING.gradient_clip)
            optimizer.step()
            step += 1
        ended = time.time()
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(*_inputs(validation[0])), validation[1])
    tell(begun=begun, ended=ended, loss=float(loss), peak=_peak())


def _inputs(
    embeddings: Mapping[str, Tensor],
) -> tuple[Mapping[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    there = torch.ones(len(next(iter(embeddings.values()))), dtype=torch.bool)
    return embeddings, dict.fromkeys(embeddings, there), {}


def _tensors(folder: Path, table: EmbeddingTable, split: str) -> Batch:
    """A split's embeddings, float32, and class indices."""
    rows = table.split[split]
    found = {m: torch.empty(len(rows), dim) for m, dim in DIMS.items()}
    for start in range(0, len(rows), CHUNK):
        batch = table.batch(rows[start : start + CHUNK])
        for m, values in batch.embeddings.items():
            found[m][start : start + CHUNK] = values
    return found, table.targets[rows]


def _bare(folder: Path) -> None:
    torch.set_num_threads(1)
    table = _table(folder)
    model = make_model(SPEC, table=table, modalities=tuple(sorted(DIMS)))
    validation = _tensors(folder, table, "validation")
    embeddings, targets = _tensors(folder, table, "train")
    del table

    def epoch(_: int) -> Iterator[Batch]:
        order = torch.randperm(len(targets))
        for some in order.split(BATCH):
            yield {m: x.index_select(0, some) for m, x in embeddings.items()}, targets[some]

    _fit(epoch, model=model, validation=validation, rows=len(targets))


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, embeddings: Mapping[str, Tensor], targets: Tensor) -> None:
        self._embeddings, self._targets = embeddings, targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, row: int) -> tuple[dict[str, Tensor], Tensor]:
        return {m: x[row] for m, x in self._embeddings.items()}, self._targets[row]


def _rows(folder: Path) -> None:
    torch.set_num_threads(1)
    table = _table(folder)
    model = make_model(SPEC, table=table, modalities=tuple(sorted(DIMS)))
    validation = _tensors(folder, table, "validation")
    data = _Rows(*_tensors(folder, table, "train"))
    del table
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    _fit(lambda _: iter(loader), model=model, validation=validation, rows=len(data))


def _ray(folder: Path, *, shuffled: bool) -> None:
    import ray

    torch.set_num_threads(1)
    table = _table(folder)
    model = make_model(SPEC, table=table, modalities=tuple(sorted(DIMS)))
    validation, rows = _tensors(folder, table, "validation"), len(table.split["train"])
    del table
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    data = ray.data.read_parquet(str(folder / "joined")).filter(
        expr=ray.data.expressions.col("split") == "train"
    )
    data = data.select_columns([*DIMS, "label"])
    options: dict[str, Any] = {"local_shuffle_buffer_size": 20_000} if shuffled else {}

    def epoch(_: int) -> Iterator[Batch]:
        for batch in data.iter_torch_batches(batch_size=BATCH, **options):
            yield {m: batch[m].float() for m in DIMS}, batch["label"].long()

    _fit(epoch, model=model, validation=validation, rows=rows)


def _peak() -> int:
    """The greatest resident size that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


VARIANTS: dict[str, Callable[[Path], None]] = {
    BARE: _bare,
    OURS: partial(_ours, streamed=False),
    STREAMED: partial(_ours, streamed=True),
    RAY: partial(_ray, shuffled=True),
    RAY_ORDERED: partial(_ray, shuffled=False),
    ROWS: _rows,
}

if __name__ == "__main__":
    main()
