"""The models of several modalities that the tests are made over, and rows to give them.

Suffixes: B rows, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.built_in import parse_candidate
from training.spec import InputSpec

DIMS = {"caption": 5, "photo": 7, "speech": 6}
CLASSES = 4
ROWS = 12

FUSIONS: dict[str, dict[str, Any]] = {
    "early": {"type": "early"},
    "late": {"type": "late"},
    "late-mean": {"type": "late", "combine": "mean"},
    "late-stacked": {"type": "late", "combine": "stacked"},
    "gated": {"type": "gated"},
    "low_rank": {"type": "low_rank", "rank": 3},
    "attention": {"type": "attention", "heads": 2},
    "co_attention": {"type": "co_attention", "heads": 2},
    "cross_modal": {"type": "cross_modal", "heads": 2},
    "bottleneck": {
        "type": "bottleneck",
        "heads": 2,
        "layers": 3,
        "fusion_layer": 1,
        "bottlenecks": 2,
    },
}
SUPERVISED = {"single": {"type": "single", "modality": "photo"}, **FUSIONS}
KINDS = {**SUPERVISED, "alignment": {"type": "alignment", "dim": 6, "temperature": 0.1}}
BY_STEPS = ("attention", "co_attention", "cross_modal", "bottleneck")
"""Those that take a sequence step by step, and not as the mean of its steps."""


def inputs(*names: str) -> dict[str, InputSpec]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: InputSpec(
            dim=DIMS[name],
            mean=torch.randn(DIMS[name], generator=generator),
            std=torch.rand(DIMS[name], generator=generator) + 0.5,
        )
        for name in names or DIMS
    }


def make(kind: str, *, dropout: float = 0.0, seed: int = 0, names: tuple[str, ...] = ()) -> Any:
    """A model whose parameters are all drawn, as if it had learned something."""
    torch.manual_seed(seed)
    spec = parse_candidate({"width": 8, "dropout": dropout, **KINDS[kind]})
    model = spec.build(
        inputs=inputs("photo") if kind == "single" else inputs(*names), outputs=CLASSES
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    if kind == "alignment":
        model.set_probe(
            weight_CS=torch.randn(CLASSES, 6),
            bias_C=torch.randn(CLASSES),
            prior_C=torch.randn(CLASSES),
        )
    # Who of a stack answers is drawn while training; where there is no dropout, nothing else is.
    return model.eval() if kind == "late-stacked" else model


def vectors(rows: int = ROWS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Pooled embeddings, and presence: none at all in row 0, all in row 1."""
    generator = torch.Generator().manual_seed(1)
    embeddings = {m: torch.randn(rows, d, generator=generator) for m, d in DIMS.items()}
    presence = {m: torch.rand(rows, generator=generator) < 0.6 for m in DIMS}
    for m in DIMS:
        presence[m][0], presence[m][1] = False, True
    return embeddings, presence


def sequences(
    rows: int = ROWS, *, pooled: tuple[str, ...] = ("speech",)
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Sequences of up to 3, 4 and 5 steps, each of some length, with presence and masks.

    A modality may be pooled beside them.
    """
    embeddings, presence = vectors(rows)
    generator = torch.Generator().manual_seed(3)
    masks = {}
    for steps, m in enumerate(DIMS, start=3):
        if m not in pooled:
            embeddings[m] = torch.randn(rows, steps, DIMS[m], generator=generator)
            length_B1 = torch.randint(1, steps + 1, (rows, 1), generator=generator)
            masks[m] = torch.arange(steps)[None, :] < length_B1
    return embeddings, presence, masks


def filled(
    embeddings: Mapping[str, Tensor],
    presence: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    value: float,
) -> dict[str, Tensor]:
    """The embeddings with a value in all rows and steps that are not there."""
    found = {}
    for m, x in embeddings.items():
        there = masks[m] & presence[m][:, None] if m in masks else presence[m]
        found[m] = torch.where(there.unsqueeze(-1), x, value)
    return found


def gradients(model: nn.Module, outcome: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter, zero where there is none."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(outcome, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }
