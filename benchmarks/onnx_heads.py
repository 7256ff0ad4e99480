"""Every candidate as an ONNX graph: whether it has one, how near, how large, and how fast.

    python -m benchmarks.onnx_heads [--quick] [KIND ...]

Models of three modalities, one of them a sequence, with weights drawn at random. Each graph is
checked by onnxruntime with every subset of the modalities present. Times are of one row and of 32,
the median of many, torch and onnxruntime in turn, each with one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.measure import short
from benchmarks.results import Target, report
from training.answering import predict
from training.built_in import BUILT_IN, parse_candidate
from training.candidate import CandidateRecord
from training.models.members import with_members
from training.onnx_export import TOLERANCE, NotExportable, export_onnx, random_inputs
from training.spec import InputSpec
from training.task import parse_task

DIMS = {"caption": 384, "photo": 512, "steps": 64}
CLASSES = 10
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "single": [{"type": "single", "modality": "photo"}],
    "early": [{"type": "early"}],
    "late, mean": [{"type": "late", "combine": "mean"}],
    "late, learned": [{"type": "late"}],
    "late, stacked": [{"type": "late", "combine": "stacked"}],
    "gated": [{"type": "gated"}],
    "low_rank": [{"type": "low_rank"}],
    "attention": [{"type": "attention"}],
    "co_attention": [{"type": "co_attention"}],
    "cross_modal": [{"type": "cross_modal"}],
    "bottleneck": [{"type": "bottleneck"}],
    "alignment, infonce": [{"type": "alignment"}],
    "alignment, sigmoid": [{"type": "alignment", "loss": "sigmoid"}],
    "cca": [{"type": "cca"}],
    "translation": [{"type": "translation"}],
    "average": [
        {"type": "early"},
        {"type": "gated"},
        {"type": "average", "of": ["early", "gated"]},
    ],
    "soup": [
        {"type": "early", "name": "a"},
        {"type": "early", "name": "b", "learning_rate": 5e-4},
        {"type": "soup", "of": ["a", "b"]},
    ],
    "filled": [
        {"type": "attention"},
        {"type": "translation"},
        {"type": "filled", "of": ["attention", "translation"]},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="write nothing, and time less")
    parser.add_argument("kinds", nargs="*", help="these alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, worst, refused = [], 0.0, []
    for name, specs in VARIANTS.items():
        if options.kinds and name not in options.kinds:
            continue
        model, record = built(specs)
        begun = time.perf_counter()
        try:
            made = export_onnx(model, record=record)
        except NotExportable as error:
            refused.append(f"{name}: {error}")
            lines.append([name, "none", "", "", "", "", ""])
            continue
        seconds = time.perf_counter() - begun
        found = made.described["checked"]["greatest_difference"]
        worst = max(worst, found)
        times = timed(made.graph, model, record=record, repeats=20 if options.quick else 200)
        size = f"{len(made.graph) / 1e6:.2f}"
        lines.append([name, f"{found:.1e}", size, short(seconds), *times])
        print("  ", *lines[-1], flush=True)
    left = set(BUILT_IN) - {specs[-1]["type"] for specs in VARIANTS.values()} - {"finetune"}
    report(
        "onnx_heads",
        head=("candidate", "greatest difference", "MB", "s to export",
              "1 row: torch → ONNX, ms", "32 rows: torch → ONNX, ms", "torch / ONNX, 1 row"),
        rows=lines,
        targets=[
            Target(what="greatest difference of an answer", limit=TOLERANCE, found=worst),
            Target(what="candidates without a graph", limit=0, found=len(refused) + len(left)),
        ],
        libraries=("onnx", "onnxruntime", "onnxscript"),
        remarks=[
            "Weights at random, three modalities of 384, 512 and (five steps of) 64 numbers, with "
            "every subset of them present and NaN where one is missing. A `finetune` is one of "
            "these over tuned encoders.",
            *refused,
        ],
        write=not options.quick and not options.kinds,
    )  # fmt: skip


def built(specs: list[dict[str, Any]]) -> tuple[nn.Module, CandidateRecord]:
    """The last of some candidates, with weights and statistics that all matter."""
    task = {"type": "classification", "target": "label"}
    parsed = [parse_candidate(spec) for spec in specs]
    spec = with_members(parsed, task=parse_task(task))[-1]
    names = spec.resolved_modalities(tuple(DIMS))
    inputs = {m: InputSpec(dim=DIMS[m], sequence=m == "steps") for m in names}
    torch.manual_seed(7)
    model = spec.build(inputs=inputs, outputs=CLASSES).eval().requires_grad_(False)
    model.load_state_dict(
        {
            name: value + torch.randn_like(value).abs() * 0.1
            if value.is_floating_point()
            else value
            for name, value in model.state_dict().items()
        }
    )
    return model, CandidateRecord(
        fingerprint="", name=spec.name, spec=spec.model_dump(mode="json"), training={}, task=task,
        snapshot="", part="", classes=list(range(CLASSES)),
        modalities={m: {"dim": i.dim, "sequence": i.sequence} for m, i in inputs.items()},
        parameters=1, status="fitted", failure=None, best_epoch=1, epochs=[], seconds=1.0,
        workers=1, metrics=None, retrieval=None, temperature=1.7,
    )  # fmt: skip


def timed(
    graph: bytes, model: nn.Module, *, record: CandidateRecord, repeats: int
) -> tuple[str, str, str]:
    """Medians in ms, of one row and of 32, and their ratio for one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    texts, ratio = [], 0.0
    for rows in (1, 32):
        present = frozenset(record.modalities)
        given = random_inputs(record, present=present, rows=rows, steps=5, seed=0)
        given = {name: np.nan_to_num(value) for name, value in given.items()}
        parts: dict[str, Any] = {
            "embeddings": {m: given[m] for m in record.modalities},
            "presence": {m: given[f"{m}_present"] for m in record.modalities},
            "masks": {m: given[f"{m}_mask"] for m in record.modalities if f"{m}_mask" in given},
        }
        ours, theirs = [], []
        for _ in range(repeats):
            begun = time.perf_counter()
            predict(model, record=record, **parts)
            middle = time.perf_counter()
            session.run(None, given)
            theirs.append(time.perf_counter() - middle)
            ours.append(middle - begun)
        torch_ms, onnx_ms = (1000 * statistics.median(part) for part in (ours, theirs))
        texts.append(f"{short(torch_ms)} → {short(onnx_ms)}")
        ratio = ratio or torch_ms / onnx_ms
    return texts[0], texts[1], f"{ratio:.1f} ×"


if __name__ == "__main__":
    main()
