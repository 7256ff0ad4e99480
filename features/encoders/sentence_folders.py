"""What a folder of sentence-transformers says of its own pooling, length and prompt.

Format: `modules.json` lists what the states of the model go through; `sentence_bert_config.json`
holds the length, and `config_sentence_transformers.json` the prompts (sbert.net, "Creating
Custom Models"). Reading them needs no library.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

MODULES = "modules.json"
LENGTH = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"

_POOLINGS = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}
"""Names in files old (after `pooling_mode_`) and new, and ours."""


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A linear layer with an activation, after the pooling."""

    folder: str
    """Its folder within the model's, with `model.safetensors`."""
    activation: str
    """A class of torch.nn, such as `Tanh`."""


@dataclass(frozen=True, kw_only=True)
class Modules:
    """What follows the model: pooling, linear layers, scaling to length 1."""

    pooling: str
    """One of `pooling.POOLINGS`."""
    dense: tuple[DenseLayer, ...]
    normalize: bool


def read_modules(folder: str) -> Modules | None:
    """What `modules.json` lists; None without that file.

    Raises ValueError if it lists what is not done here, or if a file is missing.
    """
    if not os.path.exists(os.path.join(folder, MODULES)):
        return None
    modules = [
        (str(module["type"]).rpartition(".")[2], str(module.get("path", "")))
        for module in read_json(folder, MODULES)
    ]
    modules = [module for module in modules if module[0] != "Dropout"]
    names = [name for name, _ in modules]
    body = names[2:-1] if names[-1] == "Normalize" else names[2:]
    if names[:2] != ["Transformer", "Pooling"] or set(body) - {"Dense"} or modules[0][1]:
        raise ValueError(
            f"{MODULES} lists {', '.join(names)}; `pooling: auto` follows a Transformer in the "
            "folder itself, Pooling, Dense and Normalize, in that order. Set `pooling` yourself"
        )
    return Modules(
        pooling=_read_pooling(folder, modules[1][1]),
        dense=tuple(_read_dense(folder, path) for name, path in modules if name == "Dense"),
        normalize=names[-1] == "Normalize",
    )


def _read_pooling(folder: str, path: str) -> str:
    config = read_json(folder, path, "config.json")
    modes = config.get("pooling_mode") or [
        name.removeprefix("pooling_mode_")
        for name, used in config.items()
        if name.startswith("pooling_mode_") and used is True
    ]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLINGS or not config.get("include_prompt", True):
        without = "" if config.get("include_prompt", True) else " without the prompt"
        raise ValueError(
            f"{path}/config.json pools by {' and '.join(modes)}{without}, which `pooling: auto` "
            "does not do; set `pooling` yourself"
        )
    return _POOLINGS[modes[0]]


def _read_dense(folder: str, path: str) -> DenseLayer:
    config = read_json(folder, path, "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    places = {config.get("module_input_name"), config.get("module_output_name")}
    if (
        not activation.startswith("torch.nn.")
        or config.get("use_residual")
        or places - {None, "sentence_embedding"}
    ):
        raise ValueError(
            f"{path}/config.json describes a layer (of {activation}) that `pooling: auto` does "
            "not know; set `pooling` yourself"
        )
    return DenseLayer(folder=path, activation=activation.rpartition(".")[2])


def read_length(folder: str) -> tuple[int | None, bool]:
    """How many tokens are read of a text, if the folder says, and whether it is lower-cased."""
    if not os.path.exists(os.path.join(folder, LENGTH)):
        return None, False
    config = read_json(folder, LENGTH)
    return config.get("max_seq_length"), bool(config.get("do_lower_case", False))


def read_prompt(folder: str) -> str:
    """The prompt that is put before a text if nobody asks for another; often none."""
    if not os.path.exists(os.path.join(folder, PROMPTS)):
        return ""
    config = read_json(folder, PROMPTS)
    name = config.get("default_prompt_name")
    return str(config.get("prompts", {})[name] or "") if name else ""


def read_json(folder: str, *names: str) -> Any:
    """A JSON file of the folder; ValueError if it is not there or no JSON."""
    path = os.path.join(folder, *names)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"`model`: {path!r} is missing or no JSON") from error
