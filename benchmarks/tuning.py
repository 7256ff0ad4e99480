"""A step of contrastive fine-tuning: time and memory against the bare loop, in chunks and not.

    python -m benchmarks.tuning [--quick] [--rows N] [--repeats N] [--folder DIR]

A text and an image transformer of random weights are tuned whole, with all rows in one batch. The
bare loop is a page of torch over `transformers`: both models on the whole batch, projections,
CLIP's loss, backward, AdamW; it is given tensors, this project payloads as its threads have
prepared them. Each run is a process of its own: a step after one on a few rows. Peak memory is the
resident set's, less what the process held before the step.
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
from typing import Any

from benchmarks import command
from benchmarks.measure import Series, in_turn, run_variant, short, tell
from benchmarks.processes import Share
from benchmarks.results import Target, report

WIDTH, LAYERS, SIDE, WORDS = 256, 4, 64, 30
CHUNK = 16
VARIANTS = {
    "bare": "bare loop",
    "whole": "this project",
    "chunks": f"this project, `cache_rows: {CHUNK}`",
}
SETTINGS = "rows.json"


def main() -> None:
    variants = {name: functools.partial(_run, kind=name) for name in VARIANTS}
    options = command.parse(__doc__, rows=256, quick=64, variants=variants)
    save_models(options.folder)
    (options.folder / SETTINGS).write_text(json.dumps({"rows": options.rows}))
    peaks: dict[str, list[float]] = {name: [] for name in variants}

    def run(name: str) -> Share:
        facts, share = run_variant("benchmarks.tuning", name, folder=options.folder)
        peaks[name].append(facts["peak"])
        return share

    found = in_turn(
        {name: (options.rows, functools.partial(run, name)) for name in variants},
        repeats=options.repeats,
    )
    peak = {name: max(values) for name, values in peaks.items()}
    cpu = {name: _cpu_seconds(series) for name, series in found.items()}
    report(
        "tuning",
        head=("step", "seconds", "least–most", "CPU s", "peak, GB", "others' CPUs"),
        rows=[
            [
                VARIANTS[name],
                short(series.seconds),
                series.seconds_spread,
                short(cpu[name]),
                short(peak[name] / 1e9),
                f"{series.foreign:.1f}",
            ]
            for name, series in found.items()
        ],
        targets=[
            Target(
                what="CPU time, of the bare loop's", limit=1.1, found=cpu["whole"] / cpu["bare"]
            ),
            Target(
                what="CPU time in chunks, of the bare loop's",
                limit=1.5,
                found=cpu["chunks"] / cpu["bare"],
            ),
            Target(
                what="memory in chunks, of the bare loop's",
                limit=0.25,
                found=peak["chunks"] / peak["bare"],
            ),
        ],
        remarks=[
            f"{options.rows:,} pairs in one batch, float32: a BERT and a ViT of {LAYERS} layers, "
            f"{WIDTH} wide, over {WORDS + 2} tokens and {(SIDE // 8) ** 2 + 1} patches. In chunks "
            "the forward pass is taken twice, a third of the work of a step more."
        ],
        write=not options.quick,
    )


def _cpu_seconds(series: Series) -> float:
    return statistics.median(run.cpu_seconds for run in series.runs)


def save_models(folder: Path) -> None:
    """The two models and what prepares their payloads, as the hub has them, if not there yet."""
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizer,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 4 * WIDTH,
    }
    text, image = folder / "bert", folder / "vit"
    if image.exists():
        return
    text.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (text / "vocab.txt").write_text("\n".join(words))
    BertTokenizer.from_pretrained(text, model_max_length=64).save_pretrained(text)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(text)
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **sizes)).save_pretrained(image)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(image)


def _run(folder: Path, *, kind: str) -> None:
    """One step on the whole batch, in a process of its own."""
    import numpy as np
    import torch

    rows = json.loads((folder / SETTINGS).read_text())["rows"]
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(list("abcdefghij"), size=WORDS)) for _ in range(rows)]
    pictures = list(random.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8))
    made = _bare(folder) if kind == "bare" else _ours(folder, chunks=kind == "chunks")
    few, whole = made(texts[:8], pictures[:8]), made(texts, pictures)
    few()  # what is loaded at the first call is no part of it
    before = _peak()
    begun = time.time()
    loss = whole()
    tell(begun=begun, ended=time.time(), peak=_peak() - before, loss=loss)


Make = Callable[[list[str], list[Any]], Callable[[], float]]
"""From texts and pictures to a step on them, which gives its loss."""


def _bare(folder: Path) -> Make:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    towers = nn.ModuleDict(
        {name: AutoModel.from_pretrained(folder / name).eval() for name in ("bert", "vit")}
    )
    heads = nn.ModuleDict(
        {
            name: nn.Sequential(
                nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, 64)
            )
            for name in towers
        }
    )
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.AdamW([*towers.parameters(), *heads.parameters(), scale], lr=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")

    def make(texts: list[str], pictures: list[Any]) -> Callable[[], float]:
        tokens = tokenizer(texts, return_tensors="pt", padding=True)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1

        def step() -> float:
            optimizer.zero_grad()
            mask = tokens["attention_mask"][:, :, None]
            words = towers["bert"](**tokens).last_hidden_state
            text = heads["bert"]((words * mask).sum(1) / mask.sum(1))
            image = heads["vit"](towers["vit"](pixel_values=pixels).last_hidden_state[:, 0])
            logits = scale.exp() * F.normalize(text, dim=1) @ F.normalize(image, dim=1).T
            labels = torch.arange(len(logits))
            loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return make


def _ours(folder: Path, *, chunks: bool) -> Make:
    import torch

    from features.encoders.huggingface_image import HuggingFaceImageSpec
    from features.encoders.huggingface_text import HuggingFaceTextSpec
    from training.batch import Batch
    from training.built_in import parse_candidate
    from training.fitting.step import make_optimizer, train_step
    from training.tuning.model import LiveInput, PreparedPayloads

    encoders = {
        "caption": HuggingFaceTextSpec(model=str(folder / "bert")),
        "photo": HuggingFaceImageSpec(model=str(folder / "vit")),
    }
    spec = parse_candidate(
        {
            "type": "finetune",
            "head": {
                "type": "alignment",
                "width": WIDTH,
                "dropout": 0,
                "cache_rows": CHUNK if chunks else None,
            },
            "encoders": dict.fromkeys(encoders, "full"),
        }
    )
    loaded = {name: encoder.load_trainable() for name, encoder in encoders.items()}
    inputs = {
        name: LiveInput(dim=WIDTH, spec=encoders[name], encoder=encoder)
        for name, encoder in loaded.items()
    }
    model = spec.build(inputs=inputs, outputs=2)
    optimizer = make_optimizer(model, spec=spec)

    def make(texts: list[str], pictures: list[Any]) -> Callable[[], float]:
        everywhere = torch.arange(len(texts))
        payloads: Any = {
            name: PreparedPayloads(
                rows=everywhere, prepared=[loaded[name].prepare(value) for value in values]
            )
            for name, values in (("caption", texts), ("photo", pictures))
        }
        batch = Batch(
            embeddings=payloads,
            presence={name: torch.ones(len(texts), dtype=torch.bool) for name in payloads},
            targets=torch.zeros(len(texts), dtype=torch.int64),
        )
        return lambda: train_step(model, optimizer=optimizer, batch=batch, objective="own").loss

    return make


def _peak() -> float:
    """Greatest resident set of this process until now, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
