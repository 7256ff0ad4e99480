"""The whole state of an unfinished fit, in files that hold no code: safetensors and JSON.

There is no state of a random generator to keep: all that is drawn is a function of the seed,
the epoch and the step, so the position is the random state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from training.fitting.adamw import AdamW

TENSORS_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True, kw_only=True)
class FitState:
    """A fit after some step: continued from here, it ends as if it had not been interrupted."""

    epoch: int
    """The last finished epoch, counted from 1."""
    step: int = 0
    """Steps taken since; the schedule and all draws follow from the two."""
    model: Mapping[str, Tensor]
    """None, as in the next two, for a fit that is over."""
    optimizer: Mapping[str, Tensor]
    """Per parameter's number and statistic, `3.exp_avg`."""
    average: Mapping[str, Tensor] = field(default_factory=dict)
    """The moving average of the weights, if there is one."""
    best: Mapping[str, Tensor]
    """The model's weights after its best epoch."""
    progress: Mapping[str, Any]
    """Epochs so far, best epoch, early stopping, sums of the epoch: plain JSON values."""


PARTS = ("model", "optimizer", "average", "best")


def write_checkpoint(
    *states: FitState, folder: str | os.PathLike[str], about: Mapping[str, Any]
) -> None:
    """Write the states of fits that go on together, with plain values that say what they are of."""
    tensors = {
        f"{number}.{part}.{name}": value.cpu().contiguous()
        for number, state in enumerate(states)
        for part in PARTS
        for name, value in getattr(state, part).items()
    }
    fits = [{"epoch": s.epoch, "step": s.step, "progress": s.progress} for s in states]
    Path(folder, TENSORS_FILE).write_bytes(safetensors.torch.save(tensors))
    Path(folder, PROGRESS_FILE).write_text(json.dumps({"about": about, "fits": fits}, indent=1))


def read_about(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint is of."""
    about: dict[str, Any] = json.loads(Path(folder, PROGRESS_FILE).read_text())["about"]
    return about


def read_checkpoint(folder: str | os.PathLike[str]) -> FitState:
    """The state of a fit by itself that a folder holds, on the CPU."""
    (state,) = read_checkpoints(folder)
    return state


def read_checkpoints(folder: str | os.PathLike[str]) -> list[FitState]:
    """The states that a folder holds, in the order in which they were written, on the CPU."""
    fits = json.loads(Path(folder, PROGRESS_FILE).read_text())["fits"]
    parts: list[dict[str, dict[str, Tensor]]] = [{part: {} for part in PARTS} for _ in fits]
    for name, value in safetensors.torch.load(Path(folder, TENSORS_FILE).read_bytes()).items():
        number, part, rest = name.split(".", 2)
        parts[int(number)][part][rest] = value
    return [
        FitState(
            epoch=fit["epoch"],
            step=fit["step"],
            progress=fit["progress"],
            model=tensors["model"],
            optimizer=tensors["optimizer"],
            average=tensors["average"],
            best=tensors["best"],
        )
        for fit, tensors in zip(fits, parts, strict=True)
    ]


def optimizer_tensors(optimizer: AdamW) -> dict[str, Tensor]:
    """An optimizer's statistics by parameter and name; what it was made with is not among them."""
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: AdamW, *, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer made as before the statistics it had."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        own = value.clone().to(parameter.device)
        optimizer.state.setdefault(parameter, {})[name] = own


def _parameters(optimizer: AdamW) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
