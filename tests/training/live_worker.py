"""One of several real gloo workers: `python live_worker.py RANK WORKERS FOLDER`.

Takes steps with tuned encoders, and writes what this worker came to as FOLDER/live-RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from tests.training.live_world import ROWS, LiveWorld, finetune
from training.fitting.step import make_model, make_optimizer, seed_step, train_batch, train_step
from training.tuning.embedded import embedded_table

BOTH = ("caption", "photo")


FEW = torch.tensor([4, 5, 9, 11, 12, 15, 16, 18, 19, 20, 21, 22])
"""Three of which keep both modalities: one in the first half, two in the second."""
HEADS: dict[str, dict[str, Any]] = {
    "early": {"type": "early"},
    "alignment": {"type": "alignment", "cache_rows": 7},
    "sigmoid": {"type": "alignment", "loss": "sigmoid"},
}


def make_world(folder: Path) -> LiveWorld:
    """Captions are sequences, whose steps are padded; photos are one vector each."""
    return LiveWorld(folder, output="sequence")


def steps(world: LiveWorld, *, head: str) -> dict[str, Any]:
    """Losses, gradient norms and tuned weights of two steps, the second on few rows."""
    options = {"modality_dropout": 0.3, **HEADS[head]}
    spec = finetune(encoders=dict.fromkeys(BOTH, "full"), head=options)
    found: dict[str, Any] = {"losses": [], "norms": []}
    with world.live() as table:
        model = make_model(spec, table=table, modalities=BOTH)
        optimizer = make_optimizer(model, spec=spec)
        for step, rows in enumerate([torch.arange(ROWS - 3), FEW]):
            batch = train_batch(spec, table=table, rows=rows, modalities=BOTH, epoch=1, step=step)
            seed_step(model, seed=0, epoch=1, step=step, rows=len(rows))
            done = train_step(model, optimizer=optimizer, batch=batch, objective=spec.objective)
            found["losses"].append(done.loss)
            found["norms"].append(done.gradient_norm)
        with embedded_table(model, table=table) as embedded:
            batch = embedded.batch(torch.cat([table.split[s] for s in ("validation", "test")]))
    found["embeddings"] = {
        m: batch.embeddings[m][batch.masks.get(m, there)].flatten().tolist()
        for m, there in batch.presence.items()
    }
    found["weights"] = {
        name: p.flatten().tolist() for name, p in model.named_parameters() if p.requires_grad
    }
    return found


def main() -> None:
    rank, workers, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    # Before: of several workers, transformers lets the first alone save a model.
    world = make_world(folder / f"world-{rank}")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers
    )
    found = {head: steps(world, head=head) for head in HEADS}
    (folder / f"live-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
