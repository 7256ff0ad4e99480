"""JPEG files to embeddings by a vision transformer, Parquet to Parquet, start-up excluded.

python -m benchmarks.images [--quick] [--rows N] [--folder DIR] [--peers PYTHON]
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import command, job
from benchmarks.measure import RATE_HEAD, in_turn, rate_rows, run_variant
from benchmarks.media import jpegs, save_vit
from benchmarks.peers import Loop, bare_job, daft_job, has_daft, prepared_ahead, ray_job
from benchmarks.processes import Share
from benchmarks.results import Target, report
from benchmarks.tables import write_pipeline, write_table

SIDE = 224
BATCH = 32
THREADS = 2
DIM = 192


def best_loop(model_folder: str) -> Loop:
    """PIL in threads one batch ahead, bf16, batches that stay in the caches."""
    import torch
    from PIL import Image
    from transformers import ViTModel

    model = ViTModel.from_pretrained(
        model_folder, dtype=torch.bfloat16, add_pooling_layer=False
    ).eval()

    def decode(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    @torch.inference_mode()
    def forward(pixels: list[np.ndarray]) -> np.ndarray:
        batch_BHW3 = torch.from_numpy(np.stack(pixels)).to(torch.bfloat16)
        batch_B3HW = (batch_BHW3 / 127.5 - 1).permute(0, 3, 1, 2)
        states_BTD = model(pixel_values=batch_B3HW).last_hidden_state
        return states_BTD[:, 1:].float().mean(dim=1).numpy()

    def loop(payloads: Sequence[bytes]) -> np.ndarray:
        batches = prepared_ahead(payloads, prepare=decode, batch=BATCH, threads=THREADS)
        return np.concatenate([forward(pixels) for pixels in batches])

    return loop


def recipe_loop(model_folder: str) -> Loop:
    """As the documentation of Ray and transformers shows it: processor, model, batch by batch."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder).eval()

    @torch.inference_mode()
    def loop(payloads: Sequence[bytes]) -> np.ndarray:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in payloads]
        inputs = processor(images=images, return_tensors="pt")
        return model(**inputs).last_hidden_state[:, 1:].mean(dim=1).numpy()

    return loop


def _make(loop: Callable[[str], Loop], folder: Path) -> Callable[[], Loop]:
    return functools.partial(loop, str(folder / "model"))


VARIANTS: dict[str, Callable[[Path], None]] = {
    "best": lambda folder: bare_job(_make(best_loop, folder), folder=folder, column="image"),
    "daft": lambda folder: daft_job(
        _make(best_loop, folder), folder=folder, column="image", batch=256, dim=DIM
    ),
    "daft-recipe": lambda folder: daft_job(
        _make(recipe_loop, folder), folder=folder, column="image", batch=BATCH, dim=DIM
    ),
    "ray-recipe": lambda folder: ray_job(
        _make(recipe_loop, folder), folder=folder, column="image", batch=BATCH
    ),
}


def main() -> None:
    options = command.parse(__doc__, rows=2_048, quick=256, variants=VARIANTS)
    folder = options.folder / str(options.rows)
    if not (folder / "table").exists():
        for first in range(0, options.rows, 256):
            write_table(folder, {"image": jpegs(256, seed=first)}, first=first)
    encoder = {
        "type": "huggingface_image",
        "model": save_vit(folder / "model"),
        "precision": "bfloat16",
    }
    pipeline = write_pipeline(
        folder,
        features={"image": {"column": "image", "encoder": encoder}},
        shard_rows={"min": 256, "target": 512, "max": 1024},
    )

    def peer(variant: str) -> Share:
        python = options.peers if variant.startswith("daft") else command.PYTHON
        return run_variant("benchmarks.images", variant, folder=folder, python=python)[1]

    names = ["best", *(["daft", "daft-recipe"] if has_daft(options.peers) else []), "ray-recipe"]
    found = in_turn(
        {
            "this project": (options.rows, functools.partial(job.working_share, pipeline)),
            **{name: (options.rows, functools.partial(peer, name)) for name in names},
        },
        repeats=options.repeats,
    )
    ours = found["this project"]
    targets = [
        Target(what=f"{what}, {by}", limit=limit, found=ratio, at_least=True)
        for name, what, limit in (
            ("best", "of the best loop", 0.85),
            ("ray-recipe", "times the recipe of Ray's documentation", 1.5),
            ("daft", "times Daft with the best loop", 1.2),
            ("daft-recipe", "times Daft with a model as its documentation shows one", 1.2),
        )
        if name in found
        for by, ratio in (
            ("by the clock", ours.rate / found[name].rate),
            ("by CPU time", ours.cpu_rate / found[name].cpu_rate),
        )
    ]
    report(
        "images",
        head=RATE_HEAD,
        rows=rate_rows(found, best=found["best"]),
        targets=targets,
        libraries=("pillow", "daft"),
        remarks=[
            f"{options.rows:,} JPEG files of 500 × 375 in Parquet, ViT-Ti/16 with random weights, "
            "bf16 (the recipe: as the library loads it), mean over the patches."
        ],
        write=not options.quick,
    )


if __name__ == "__main__":
    main()
