"""The whole state of an unfinished fit, in files that hold no code: safetensors and JSON.

There is no state of a random generator to keep: all that is drawn is a function of the seed,
the epoch and the step, so the position is the random state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

TENSORS_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True, kw_only=True)
class FitState:
    """A fit after some epoch: continued from here, it ends as if it had not been interrupted."""

    epoch: int
    """The last finished epoch, counted from 1; the schedule and all draws follow from it."""
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    """Per parameter's number and statistic, `3.exp_avg`."""
    best: Mapping[str, Tensor]
    """The model's weights after its best epoch."""
    progress: Mapping[str, Any]
    """Epochs so far, best epoch, early stopping, seconds: plain JSON values."""


def write_checkpoint(
    state: FitState, *, folder: str | os.PathLike[str], about: Mapping[str, Any]
) -> None:
    """Write a state into a folder, with plain values that say what it is of."""
    parts = {"model": state.model, "optimizer": state.optimizer, "best": state.best}
    tensors = {
        f"{part}.{name}": value.cpu().contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    progress = {"about": about, "epoch": state.epoch, "progress": state.progress}
    Path(folder, TENSORS_FILE).write_bytes(safetensors.torch.save(tensors))
    Path(folder, PROGRESS_FILE).write_text(json.dumps(progress, indent=1))


def read_about(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint is of."""
    about: dict[str, Any] = json.loads(Path(folder, PROGRESS_FILE).read_text())["about"]
    return about


def read_checkpoint(folder: str | os.PathLike[str]) -> FitState:
    """The state that a folder holds, on the CPU."""
    progress = json.loads(Path(folder, PROGRESS_FILE).read_text())
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
    for name, value in safetensors.torch.load(Path(folder, TENSORS_FILE).read_bytes()).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return FitState(epoch=progress["epoch"], progress=progress["progress"], **parts)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's statistics by parameter and name; what it was made with is not among them."""
    return {
        f"{number}.{name}": value
        for number, statistics in optimizer.state_dict()["state"].items()
        for name, value in statistics.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, *, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer made as before the statistics it had."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
