"""Others' jobs over texts: the bare loops, sentence-transformers, Ray Data, Daft.

Each runs in a process of its own and says when it worked, start and model loading excluded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers import Loop, bare_job, daft_job, ray_job
from benchmarks.text_loops import minilm, packed_loop, sorted_loop


def sentence_transformers_loop() -> Loop:
    """`SentenceTransformer(…).encode` as it is."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm(), device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


def _bare(make: Callable[[], Loop]) -> Callable[[Path], None]:
    return lambda folder: bare_job(make, folder=folder, column="text")


def _ray(folder: Path) -> None:
    ray_job(sentence_transformers_loop, folder=folder, column="text", batch=64)


def _daft(folder: Path) -> None:
    make = functools.partial(sorted_loop, torch.bfloat16)
    daft_job(make, folder=folder, column="text", batch=4096, dim=384)


VARIANTS: dict[str, Callable[[Path], None]] = {
    "sorted-fp32": _bare(lambda: sorted_loop(torch.float32)),
    "sorted-bf16": _bare(lambda: sorted_loop(torch.bfloat16)),
    "packed-bf16": _bare(lambda: packed_loop(torch.bfloat16)),
    "sentence-transformers": _bare(sentence_transformers_loop),
    "ray-recipe": _ray,
    "daft": _daft,
}
