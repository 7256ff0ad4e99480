"""One of several real gloo workers: `python gloo_worker.py RANK WORKERS FOLDER`.

Runs every case below, and writes what this worker came to as FOLDER/RANK.json; or, if there is
a FOLDER/job.json, produces the candidates that it names, without Ray.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from features.storage import LocalStorage  # noqa: E402
from features.store import Store  # noqa: E402
from tests.training.shares import share_of  # noqa: E402
from training.batch import Batch  # noqa: E402
from training.built_in import parse_candidate  # noqa: E402
from training.candidate import plan_candidates  # noqa: E402
from training.data.table import load_table, table_of  # noqa: E402
from training.evaluation.answers import evaluate  # noqa: E402
from training.evaluation.calibration import calibrated  # noqa: E402
from training.evaluation.space import fit_probe, retrieval  # noqa: E402
from training.evaluation.study import study  # noqa: E402
from training.faults import agreement_group, all_workers_agree  # noqa: E402
from training.fitting.checkpoint import FitState  # noqa: E402
from training.fitting.grouping import group  # noqa: E402
from training.fitting.loop import fit_candidate, fit_together  # noqa: E402
from training.fitting.step import PLAIN, seed_step, train_step  # noqa: E402
from training.losses.contrastive import info_nce  # noqa: E402
from training.models.shared_space import SharedSpace  # noqa: E402
from training.models.translation import Translation  # noqa: E402
from training.produce import produce_together  # noqa: E402
from training.task import ClassificationSpec, RetrievalSpec, parse_task  # noqa: E402
from training.tasks import read_targets  # noqa: E402
from training.training_spec import TrainingSpec  # noqa: E402
from training.workers import gather_at_first, gather_rows, sum_over_workers, worker_rank  # noqa: E402

CONTRASTIVE = {
    # Rows of the first of two workers, out of 13.
    "even halves": {"first": 6, "absent_on_second": ()},
    "uneven halves": {"first": 4, "absent_on_second": ()},
    "all rows on one": {"first": 13, "absent_on_second": ()},
    "a pair on one alone": {"first": 8, "absent_on_second": (2,)},
}
FITS: dict[str, dict[str, Any]] = {
    "early": {"type": "early", "width": 16, "dropout": 0.3},
    "attention": {"type": "attention", "width": 16, "dropout": 0.3, "layers": 1},
    "alignment": {"type": "alignment", "width": 16, "dim": 8, "modality_dropout": 0.2},
    "sigmoid": {
        "type": "alignment",
        "loss": "sigmoid",
        "anchor": "photo",
        "width": 16,
        "dim": 8,
        "dropout": 0.3,
        "cache_rows": 5,
    },
    "cca": {"type": "cca", "dim": 4},
    "translation": {
        "type": "translation",
        "modalities": ["caption", "photo"],
        "width": 8,
        "noise": 4,
    },
}
STEPS: dict[str, dict[str, Any]] = {
    "early": {"type": "early"},
    "late-stacked": {"type": "late", "combine": "stacked"},
    "gated": {"type": "gated"},
    "low_rank": {"type": "low_rank"},
    "attention": {"type": "attention", "heads": 2},
    "co_attention": {"type": "co_attention", "heads": 2},
    "cross_modal": {"type": "cross_modal", "heads": 2},
    "bottleneck": {"type": "bottleneck", "heads": 2, "layers": 2, "fusion_layer": 0},
    "alignment": {"type": "alignment"},
    "hinge": {"type": "translation", "dropout": 0, "noise": 4},
    "wgan-gp": {"type": "translation", "dropout": 0, "noise": 4, "adversary": "wgan-gp"},
}
TRAINING = TrainingSpec(batch_size=37, max_epochs=6, checkpoint_every=2)


def make_columns(**options: Any) -> dict[str, Any]:
    """The made-up columns of conftest.py, which is not importable by name."""
    spec = importlib.util.spec_from_file_location("toy_columns", HERE / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_columns(**options)


def contrastive_data(absent_on_second: tuple[int, ...], first: int) -> tuple[torch.Tensor, ...]:
    """Embeddings `[13, 3, 4]`, presence `[13, 3]`, tower weights `[3, 4, 5]`, log scale."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 3, 4, generator=generator, dtype=torch.float64)
    presence = torch.rand(13, 3, generator=generator) < 0.7
    for modality in absent_on_second:
        presence[first:, modality] = False
    weight = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    return x, presence, weight, torch.tensor(1.3, dtype=torch.float64)


def contrastive(case: dict[str, Any], *, part: slice) -> dict[str, Any]:
    """Loss and gradients, summed over workers, of three linear towers."""
    x, presence, weight, log_scale = contrastive_data(case["absent_on_second"], case["first"])
    weight.requires_grad_(True)
    log_scale.requires_grad_(True)
    aligned = F.normalize(torch.einsum("bmd,mds->bms", x[part], weight), dim=-1)
    share = info_nce(aligned, presence_BM=presence[part], scale=log_scale.exp())
    share.backward()
    assert weight.grad is not None
    assert log_scale.grad is not None
    return {
        "loss": float(sum_over_workers(share)),
        "weight": sum_over_workers(weight.grad).tolist(),
        "log_scale": float(sum_over_workers(log_scale.grad)),
    }


def classification(*, part: slice) -> dict[str, Any]:
    """Loss and gradients, summed over workers, of a linear classifier on 13 rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (13,), generator=generator)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    share = share_of(PLAIN, x[part] @ weight.T, y[part])
    share.backward()
    assert weight.grad is not None
    return {
        "loss": float(sum_over_workers(share)),
        "weight": sum_over_workers(weight.grad).tolist(),
    }


TASKS: dict[str, dict[str, Any]] = {
    "weighted": {"target": "y", "class_weights": {"b": 5.0}, "label_smoothing": 0.1},
    "focal": {"target": "y", "loss": "focal", "class_weights": "balanced"},
    "multilabel": {"type": "multilabel", "target": "labels", "positive_weights": "balanced"},
    "regression": {"type": "regression", "target": ["u", "v"], "loss": "huber"},
}
LABELS: dict[str, list[Any]] = {
    "y": ["a", "b", "c", "b", "a", "a", "a", "c", "a", "b", "a", "a", "c"],
    "labels": [["p"], [], ["p", "q"], ["q"], [], ["p"], [], ["q"], [], [], ["p"], [], ["q"]],
    "u": [float(i % 5) for i in range(13)],
    "v": [float(i**2) for i in range(13)],
}


def task_loss(options: dict[str, Any], *, part: slice) -> dict[str, Any]:
    """Loss and gradients, summed over workers, of a linear model of 13 rows."""
    spec = parse_task(options)
    labels = {name: pa.array(LABELS[name]) for name in spec.targets}
    split = {name: torch.arange(13) for name in ("train", "validation", "test")}
    targets = read_targets(spec, labels, split=split, rows=13)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    size = (targets.task.outputs, 4)
    weight = torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
    share = share_of(targets.task, x[part] @ weight.T, targets.values[part])
    share.backward()
    assert weight.grad is not None
    return {
        "loss": float(sum_over_workers(share)),
        "weight": sum_over_workers(weight.grad).tolist(),
    }


def step_gradients(options: dict[str, Any], *, part: slice) -> dict[str, Any]:
    """Gradients of a step with all that it draws, on 13 rows in float64."""
    table = table_of(**make_columns())
    rows = table.labelled("train")[:13]
    spec = parse_candidate({"width": 8, "dropout": 0.5, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = spec.build(inputs=table.inputs(tuple(table.embeddings)), outputs=4).double()
    whole = table.batch(rows)
    batch = Batch(
        embeddings={m: x[part].double() for m, x in whole.embeddings.items()},
        presence={m: p[part] for m, p in whole.presence.items()},
        targets=whole.targets[part],
    )
    seed_step(model, seed=1, epoch=2, step=3, rows=13)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = train_step(
        model, optimizer=optimizer, batch=batch, objective=spec.objective, gradient_clip=1e9
    )
    return {
        "loss": step.loss,
        "norm": step.gradient_norm,
        "gradients": {
            n: p.grad.tolist() for n, p in model.named_parameters() if p.grad is not None
        },
    }


def fit(options: dict[str, Any]) -> dict[str, Any]:
    """A whole fit with evaluation, once without a break and once resumed after epoch 4."""
    table = table_of(**make_columns())
    spec = parse_candidate(options)
    modalities = spec.resolved_modalities(tuple(table.embeddings))
    states: list[FitState] = []
    fitted = fit_candidate(spec, table=table, training=TRAINING, save=states.append)
    weights = {name: value.tolist() for name, value in fitted.model.state_dict().items()}
    # What is solved in closed form leaves no state to resume from.
    resume = states[1] if states else None
    resumed = fit_candidate(spec, table=table, training=TRAINING, resume=resume)
    again = {name: value.tolist() for name, value in resumed.model.state_dict().items()}
    found = None
    if isinstance(fitted.model, SharedSpace | Translation):
        fit_probe(fitted.model, table=table, modalities=modalities)
        found = retrieval(fitted.model, table=table, modalities=modalities)
    answers = evaluate(fitted.model, table=table, modalities=modalities)
    own = calibrated(fitted.model, table=table, modalities=modalities, training=TRAINING)
    studied = study(fitted.model, table=own, modalities=modalities)
    assert studied is not None
    assert studied.shapley is not None
    epochs = [dataclasses.asdict(epoch) for epoch in fitted.epochs]
    return {
        "epochs": [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in epochs],
        "best_epoch": fitted.best_epoch,
        "weights": weights,
        "resumed alike": weights == again,
        "rows": answers.rows.tolist(),
        "probabilities": answers.answers.tolist(),
        "without": {m: p.tolist() for m, p in answers.without.items()},
        "retrieval": found,
        "temperature": own.task.temperature,
        "subsets": [item["metrics"]["log_loss"] for item in studied.found["subsets"]],
        "perturbed": [item["values"]["log_loss"] for item in studied.found["perturbed"]],
        "shapley": [studied.shapley[f"shapley.{m}"].to_pylist() for m in modalities],
    }


def ranked() -> dict[str, Any]:
    """What a retrieval task answers and is worth, of a space as it is before it is fitted."""
    options = {**make_columns(), "labels": {}, "task": RetrievalSpec()}
    payloads = {"photo": torch.arange(240) // 3}
    table = table_of(**options, payloads=payloads)
    spec = parse_candidate({"type": "alignment", "width": 16, "dim": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = spec.build(inputs=table.inputs(tuple(table.index)), outputs=0)
    answers = evaluate(model, table=table, modalities=list(table.index))
    return {
        "rows": answers.rows.tolist(),
        "ranks": [[-1.0 if np.isnan(r) else r for r in row] for row in answers.answers.tolist()],
        "metrics": answers.metrics(),
    }


def stack() -> dict[str, Any]:
    """Three candidates in one pass, one of which fails, and resumed from within an epoch."""
    table = table_of(**make_columns())
    training = TRAINING.model_copy(update={"max_epochs": 3, "checkpoint_steps": 3})
    base = {"type": "early", "width": 8}
    own = ({"seed": 1}, {"seed": 2, "dropout": 0.4}, {"learning_rate": 1e36})
    specs = [parse_candidate({**base, **options}) for options in own]
    saved: list[Any] = []
    fits = fit_together(specs, table=table, training=training, save=saved.append)
    resumed = fit_together(specs, table=table, training=training, resume=saved[0])
    weights, again = (
        [{n: x.tolist() for n, x in fit.model.state_dict().items()} for fit in found[:2]]
        for found in (fits, resumed)
    )
    return {
        "losses": [[e.train_loss for e in fit.epochs] for fit in fits],
        "validation": [[e.validation_loss for e in fit.epochs] for fit in fits],
        "failed": [fit.failure is not None for fit in fits],
        "step": saved[0][0].step,
        "weights": weights,
        "resumed alike": weights == again,
    }


def called() -> list[int]:
    """After which steps a checkpoint is made, if the first worker's clock always asks for one."""
    training = TRAINING.model_copy(update={"max_epochs": 1, "checkpoint_minutes": 1e-9})
    saved: list[FitState] = []
    spec = parse_candidate({"type": "late", "width": 8})
    fit_candidate(spec, table=table_of(**make_columns()), training=training, save=saved.append)
    return [state.step for state in saved]


def fit_without_rows(options: dict[str, Any]) -> list[float]:
    """Losses of a fit in whose steps one of two workers has no row."""
    training = TrainingSpec(batch_size=1, max_epochs=2)
    spec = parse_candidate(options)
    fitted = fit_candidate(spec, table=table_of(**make_columns(rows=48)), training=training)
    return [loss for e in fitted.epochs for loss in (e.train_loss, e.validation_loss)]


def failure() -> dict[str, Any]:
    """A fit whose loss becomes infinite."""
    spec = parse_candidate({"type": "early", "width": 8, "learning_rate": 1e36})
    fitted = fit_candidate(spec, table=table_of(**make_columns()), training=TRAINING)
    assert fitted.failure is not None
    return dataclasses.asdict(fitted.failure)


class Split(torch.nn.Module):
    """The sum of an output of "a" on the first worker, and of "b" on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict({n: torch.nn.Linear(1, 1) for n in ("a", "b")})

    def loss_share(self, batch: Batch) -> torch.Tensor:
        own: torch.Tensor = self.layers["a" if worker_rank() == 0 else "b"](torch.ones(1, 1))
        return own.sum()


def unreached_parameter() -> dict[str, Any]:
    """The gradients of a step in which only the first worker's rows reach a parameter."""
    model = Split()
    batch = Batch(embeddings={}, presence={}, targets=torch.zeros(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    train_step(model, optimizer=optimizer, batch=batch, objective="own", gradient_clip=1e9)
    return {n: p.grad.tolist() for n, p in model.layers.named_parameters() if p.grad is not None}


def gathered(*, rank: int) -> dict[str, Any]:
    """Rows joined from workers that hold 3 and none."""
    own = torch.arange(6.0).view(3, 2) if rank == 0 else torch.empty(0, 2)
    found, at_first = gather_rows(own), gather_at_first(own + 0)
    return {"rows": found.rows.tolist(), "first": found.first, "at first": at_first.tolist()}


def agreed(*, rank: int) -> list[bool]:
    """Whether all workers agree: once where both ask, once where the first asks alone."""
    group = agreement_group()
    both = all_workers_agree(group)
    return [both, rank == 0 and all_workers_agree(group, seconds=0.5)]


def run(part: Callable[[int, int], slice], *, rank: int) -> dict[str, Any]:
    """All cases; `part(rows of the first worker, all rows)` is this worker's."""
    return {
        "contrastive": {
            name: contrastive(case, part=part(case["first"], 13))
            for name, case in CONTRASTIVE.items()
        },
        "classification": classification(part=part(4, 13)),
        "tasks": {name: task_loss(task, part=part(4, 13)) for name, task in TASKS.items()},
        "steps": {
            name: step_gradients(options, part=part(6, 13)) for name, options in STEPS.items()
        },
        "fits": {name: fit(options) for name, options in FITS.items()},
        "without rows": {name: fit_without_rows(options) for name, options in FITS.items()},
        "ranked": ranked(),
        "failure": failure(),
        "stack": stack(),
        "called": called(),
    }


def produce(job: dict[str, Any]) -> None:
    """What the Ray job does, on this process group."""
    store = Store(LocalStorage(job["store_root"]))
    snapshot = store.read_snapshot(job["snapshot_id"])
    task, training = ClassificationSpec(**job["task"]), TrainingSpec(**job["training"])
    options: dict[str, Any] = {"snapshot": snapshot, "task": task, "training": training}
    specs = [parse_candidate(spec) for spec in job["candidates"]]
    planned = plan_candidates(store, candidates=specs, **options)
    table = load_table(store, snapshot, task=task, modalities=tuple(snapshot.modalities))
    modalities = [candidate.modalities for candidate in planned]
    for together in group(planned, specs=specs, modalities=modalities, training=training):
        produce_together(together, store=store, table=table, **options)


def main(rank: int, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )

    if (folder / "job.json").exists():
        produce(json.loads((folder / "job.json").read_text()))
        dist.destroy_process_group()
        return

    def part(first: int, rows: int) -> slice:
        return slice(0, first) if rank == 0 else slice(first, rows)

    found = run(part, rank=rank)
    found["gathered"] = gathered(rank=rank)
    found["unreached"] = unreached_parameter()
    found["agreed"] = agreed(rank=rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
