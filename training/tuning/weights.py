"""What of an encoder is tuned: all of its weights, those of the last layers, or low-rank additions.

Nothing here knows an architecture by name. Which weights an embedding depends on is asked of the
backward pass of a probe, so a tower or pooler that is not used is neither tuned nor decayed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from features.encoders.base import import_extra
from training.data.targets import Untrainable
from training.tuning.spec import TuningSpec

RANK = 8
"""Of low-rank matrices, if none is given."""


class Tuning:
    """The weights of a module that are tuned, from now on those that require a gradient.

    `probe` gives the embeddings of some payloads, and `encoder` is the name of the encoder, for
    messages. Low-rank matrices are drawn from torch's global generator. Untrainable if the module
    has not so many layers, or no linear ones.
    """

    def __init__(
        self, module: nn.Module, *, spec: TuningSpec, probe: Callable[[], Tensor], encoder: str
    ) -> None:
        self._module = module
        self._adapted: Any = None
        reached = reached_by(module, probe=probe)
        self.layers = layers_of(module, reached=reached)
        if spec.tune == "lora":
            rank = spec.rank or RANK
            names = _linear_names(module, reached=reached)
            if not names:
                raise Untrainable(
                    f"`tune: lora` adds to linear layers, and {encoder} has none; take `last`"
                )
            self._adapted = _adapted(module, names=names, rank=rank, alpha=spec.alpha or 2 * rank)
        elif spec.tune == "last":
            count = spec.layers or 0
            if count > len(self.layers):
                raise Untrainable(
                    f"`layers: {count}` of {encoder} are to be tuned, which has {len(self.layers)}"
                )
            earlier = {id(p) for layer in self.layers[:-count] for p in layer.parameters()}
            with _cut_before(self.layers[-count]):
                found = reached_by(module, probe=probe)
            _require(p for p in found if id(p) not in earlier)
        else:
            _require(reached)

    def merged(self) -> nn.Module:
        """The module with its tuned weights, as it was built; a copy if anything was added."""
        if self._adapted is None:
            return self._module
        merged: nn.Module = copy.deepcopy(self._adapted).merge_and_unload()
        return merged


def reached_by(module: nn.Module, *, probe: Callable[[], Tensor]) -> list[nn.Parameter]:
    """The parameters that a probe's output depends on. All are left without a gradient."""
    module.requires_grad_(True)
    try:
        with torch.enable_grad():
            probe().sum().backward()
        return [p for p in module.parameters() if p.grad is not None]
    finally:
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)


def layers_of(module: nn.Module, *, reached: Collection[nn.Parameter]) -> list[nn.Module]:
    """The layers of a model, in order: the longest list of modules that is in no other such list.

    The transformer blocks of a BERT or ViT, the stages of a ResNet or Swin; of a model with two
    towers those of the one whose weights are `reached`.
    """
    known = {id(p) for p in reached}
    found: list[nn.Module] = []
    inner: set[int] = set()
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and id(child) not in inner:
            inner |= {id(deeper) for deeper in child.modules()}
            used = any(id(p) in known for p in child.parameters())
            if used and len(child) > len(found):
                found = list(child)
    return found


def recompute_layers(layers: list[nn.Module]) -> None:
    """Have the layers computed again in the backward pass: Chen et al. 2016.

    https://arxiv.org/abs/1604.06174. Of the layers' input alone is kept what the backward pass
    needs.
    """
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _require(parameters: Any) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)


@contextmanager
def _cut_before(layer: nn.Module) -> Iterator[None]:
    """A block in which no gradient leaves a layer by its inputs."""

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(_detached, args)), {k: _detached(v) for k, v in kwargs.items()}

    handle = layer.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _linear_names(module: nn.Module, *, reached: list[nn.Parameter]) -> list[str]:
    """Names of the linear layers among the weights that matter."""
    known = {id(p) for p in reached}
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and id(child.weight) in known
    ]


def _adapted(module: nn.Module, *, names: list[str], rank: int, alpha: float) -> Any:
    """The module with low-rank matrices in its linear layers, which alone require a gradient."""
    peft = import_extra("peft", extra="finetune")
    # Without dropout, whose draws would depend on the worker.
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none"
    )
    return peft.LoraModel(module, {"default": config}, "default")
