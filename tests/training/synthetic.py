"""Generated sets on which one way of joining modalities is known to win over another.

Suffixes: B rows, T steps, D width of an embedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from training.batch import Batch


def parity(*, rows: int, modalities: int, seed: int, noise: float = 0.3) -> Batch:
    """Each modality holds one bit, and the class is their parity: XOR, of two.

    No modality alone, and no sum of what each says alone, tells anything of the class; a product
    of all does.
    """
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (modalities, rows), generator=generator)
    # The same directions whatever the seed, which draws the rows alone.
    directions = torch.randn(modalities, 6, generator=torch.Generator().manual_seed(0))
    embeddings = {
        f"m{i}": (2.0 * bits[i] - 1)[:, None] * directions[i]
        + noise * torch.randn(rows, 6, generator=generator)
        for i in range(modalities)
    }
    return _all_present(embeddings, targets=bits.sum(dim=0) % 2)


def whom_to_believe(*, rows: int, seed: int, noise: float = 0.3) -> Batch:
    """`left` and `right` each claim a class out of three, and `witness` says which of them lies.

    What a witness says is no evidence for any class by itself: it gates the other two.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(3, (2, rows), generator=generator)
    believed = torch.randint(2, (rows,), generator=generator)
    codes = torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(1))
    signals = {"left": left, "right": right, "witness": believed}
    embeddings = {
        m: codes[i][signal] + noise * torch.randn(rows, 6, generator=generator)
        for i, (m, signal) in enumerate(signals.items())
    }
    return _all_present(embeddings, targets=torch.where(believed == 0, left, right))


def halves(*, rows: int, seed: int, noise: float = 0.3) -> Batch:
    """Four classes, of which one modality tells the parity and the other which half."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (rows,), generator=generator)
    codes = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(2))
    embeddings = {
        m: codes[i][signal] + noise * torch.randn(rows, 6, generator=generator)
        for i, (m, signal) in enumerate({"odd": classes % 2, "half": classes // 2}.items())
    }
    return _all_present(embeddings, targets=classes)


def lagged(*, rows: int, seed: int, steps: int = 3, noise: float = 0.1) -> Batch:
    """An event in each of two sequences; `effect` has it one step after `cause`, or one before.

    The steps go round, so that no sequence alone tells the class; and each has the same steps in
    some order whatever the class, so what is pooled over time tells nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(2, (rows,), generator=generator)
    cause_B = torch.randint(steps, (rows,), generator=generator)
    effect_B = (cause_B + 2 * classes - 1) % steps
    directions = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    embeddings = {
        m: torch.eye(steps)[event_B][:, :, None] * directions[i]
        + noise * torch.randn(rows, steps, 4, generator=generator)
        for i, (m, event_B) in enumerate({"cause": cause_B, "effect": effect_B}.items())
    }
    mask_BT = torch.ones(rows, steps, dtype=torch.bool)
    return replace(
        _all_present(embeddings, targets=classes), masks=dict.fromkeys(embeddings, mask_BT)
    )


def _all_present(embeddings: dict[str, Tensor], targets: Tensor) -> Batch:
    there = torch.ones(len(targets), dtype=torch.bool)
    return Batch(embeddings=embeddings, presence=dict.fromkeys(embeddings, there), targets=targets)
