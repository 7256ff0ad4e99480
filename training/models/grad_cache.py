"""Batches larger than memory: towers run chunk by chunk, and once more for their gradients.

Gao, Zhang, Han and Callan 2021 (GradCache), https://arxiv.org/abs/2101.06983, section 3.2: a
contrastive loss needs the outputs of all rows at once, but not the activations behind them. They
are dropped after a chunk's forward pass and computed again, with the same dropout, when the
gradient of its outputs is known. The gradient is that of the whole batch. This is done by
checkpointing each chunk (Chen et al. 2016, https://arxiv.org/abs/1604.06174), so the caller's
`backward()` is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.models.layers import Draw, dropout_layers

Inputs = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]]
"""Embeddings, presence and masks, each per modality `[B, ...]`."""
Towers = Callable[
    [Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Tensor]], tuple[Tensor, Tensor]
]


def in_chunks(
    towers: Towers, inputs: Inputs, *, model: nn.Module, rows: int | None
) -> tuple[Tensor, Tensor]:
    """What `towers(*inputs)` gives, `[B, ...]` twice, holding activations of so many rows at most.

    `model` is whose dropout layers the towers run. Of the two outputs the first is
    differentiated. All at once if `rows` is None, or not less than there are.
    """
    count = len(next(iter(inputs[1].values())))
    if rows is None or count <= rows:
        return towers(*inputs)
    drawn = [_Drawn(rows=count, draw=layer.draw) for layer in dropout_layers(model)]
    found = []
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))

        def run(*chunk: Mapping[str, Tensor], part: slice = part) -> tuple[Tensor, Tensor]:
            with _draws_of(part, model=model, drawn=drawn):
                return towers(*chunk)

        chunk = [{m: x[part] for m, x in values.items()} for values in inputs]
        if torch.is_grad_enabled():
            found.append(checkpoint(run, *chunk, use_reentrant=False))
        else:
            found.append(run(*chunk))
    outputs, others = zip(*found, strict=True)
    return torch.cat(outputs), torch.cat(others)


@dataclass(kw_only=True)
class _Drawn:
    """A dropout layer's draws for all of a worker's rows, made once: one byte a unit."""

    rows: int
    draw: Draw | None
    kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def part(
        self,
        part: slice,
        *,
        shape: tuple[int, ...],
        probability: float,
        device: torch.device | str,
    ) -> Tensor:
        """bool `[rows of the part, *shape]`: what is not dropped."""
        assert self.draw is not None
        if shape not in self.kept:
            factor = self.draw.factor(
                self.rows, shape=shape, probability=probability, device=device
            )
            self.kept[shape] = factor != 0
        return self.kept[shape][part]


@dataclass(frozen=True, kw_only=True)
class _ChunkDraw(Draw):
    """A dropout layer's draws for the rows of a chunk."""

    drawn: _Drawn
    part: slice

    def factor(
        self,
        rows: int,
        *,
        shape: tuple[int, ...],
        probability: float,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        kept = self.drawn.part(self.part, shape=shape, probability=probability, device=device)
        return kept.float() / (1 - probability)


@contextmanager
def _draws_of(part: slice, *, model: nn.Module, drawn: list[_Drawn]) -> Iterator[None]:
    """Within, a model's dropout layers draw for the rows of a chunk."""
    layers = dropout_layers(model)
    before = [(layer.draw, layer.factor) for layer in layers]
    for layer, own in zip(layers, drawn, strict=True):
        if own.draw is not None:
            layer.draw = _ChunkDraw(
                seed=own.draw.seed,
                rows=own.draw.rows,
                first=own.draw.first + part.start,
                drawn=own,
                part=part,
            )
        if layer.factor is not None:
            layer.factor = layer.factor[part]
    try:
        yield
    finally:
        for layer, (draw, factor) in zip(layers, before, strict=True):
            layer.draw, layer.factor = draw, factor
