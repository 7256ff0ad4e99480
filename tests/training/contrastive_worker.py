"""One of three real gloo workers, by `python -m`, with the arguments RANK WORKERS FOLDER.

Each contrastive case once with all three workers, and once with the first two as a group of their
own; and steps of models that draw, with all three.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.training.contrastive_cases import ROWS, batch, labels
from tests.training.gloo_worker import STEPS, step_gradients
from training.data.table import worker_slice
from training.losses.contrastive import info_nce
from training.losses.sigmoid import sigmoid_loss
from training.workers import Group, sum_over_workers

CASES = [
    f"{loss}, {positives}"
    for loss in ("infonce", "sigmoid")
    for positives in ("one positive", "several positives", "by class", "several by class")
]
STEPS_OF_THREE = ("early", "alignment", "hinge", "wgan-gp")
PARTS = {
    # How many of the rows each worker has, of two and of three.
    "even": {2: (12, 11), 3: (8, 8, 7)},
    "uneven": {2: (3, 20), 3: (2, 16, 5)},
    "some empty": {2: (0, 23), 3: (11, 0, 12)},
    "all on one": {2: (23, 0), 3: (0, 0, 23)},
}


def shares(case: str, *, part: slice, group: Group = None) -> dict[str, Any]:
    """Loss and gradients, summed over the workers, of three linear towers on a part of the rows."""
    rows, presence, payloads = batch()
    towers, scale, bias = (
        torch.eye(5, dtype=torch.float64).repeat(3, 1, 1).requires_grad_(),
        torch.tensor(7.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-3.0, dtype=torch.float64, requires_grad=True),
    )
    x = F.normalize(torch.einsum("bms,mst->bmt", rows[part], towers), dim=-1)
    given = {
        "presence_BM": presence[part],
        "payloads_BM": payloads[part] if "several" in case else None,
        "classes_B": labels()[part] if "class" in case else None,
        "scale": scale,
        "group": group,
    }
    if case.startswith("infonce"):
        share = info_nce(x, **given) + 0 * bias
    else:
        share = sigmoid_loss(x, **given, bias=bias)
    share.backward()
    found = {"loss": share, "towers": towers.grad, "scale": scale.grad, "bias": bias.grad}
    return {name: sum_over_workers(value, group=group).tolist() for name, value in found.items()}


def main(rank: int, workers: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    two = dist.new_group([0, 1])
    found: dict[str, Any] = {}
    for count, group in ((2, two), (3, None)):
        if rank >= count:
            continue
        for parts, sizes in PARTS.items():
            first = sum(sizes[count][:rank])
            part = slice(first, first + sizes[count][rank])
            assert sum(sizes[count]) == ROWS
            for case in CASES:
                place = found.setdefault(str(count), {}).setdefault(parts, {})
                place[case] = shares(case, part=part, group=group)
    own = worker_slice(13, rank=rank, workers=workers)
    found["steps"] = {name: step_gradients(STEPS[name], part=own) for name in STEPS_OF_THREE}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
