"""A loaded Hugging Face text model: padded batches of tokens through it, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoders.base import import_extra
from features.encoders.huggingface import LoadedModel, quiet_loading
from features.encoders.pooling import pool
from features.encoders.sentence_folders import DenseLayer
from features.encoders.tokenizing import TextTokenizer, Tokens, padded

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Padded tokens of a batch at most: on a CPU, larger batches leave its caches."""

TEXT_TOWERS = frozenset(
    {
        "align",
        "altclip",
        "chinese_clip",
        "clap",
        "clip",
        "clipseg",
        "groupvit",
        "metaclip_2",
        "owlv2",
        "owlvit",
        "siglip",
        "siglip2",
        "vision-text-dual-encoder",
        "xclip",
    }
)
"""Model types that embed texts beside images or sounds, by `get_text_features`."""
_READ_PADDING = frozenset(("siglip", "siglip2", "siglip_text_model", "siglip2_text_model"))
"""Model types that were trained on texts padded to the full length, and without a mask."""
_POSITIONS_AFTER_PADDING = frozenset(
    {
        "altclip_text_model",
        "camembert",
        "clap_text_model",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types that count positions from behind that of the padding, so have that many fewer."""
_POSITIONS_ARE_NO_LIMIT = frozenset(["t5", "mt5", "umt5", "longt5", "switch_transformers"])
"""Model types with an `n_positions` that binds nothing, since they know distances alone."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a text is read and pooled: the options of a spec and of the model's files together."""

    pooling: str
    """One of `pooling.POOLINGS`, `pooler`, or `none` for a sequence."""
    dense: tuple[DenseLayer, ...]
    normalize: bool
    max_length: int
    prefix: str
    suffix: str
    lowercase: bool
    special_tokens: bool


def is_text_tower(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model with a text side that others share a space with."""
    return config.get("model_type") in TEXT_TOWERS


def read_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a config.json says that the model can read, if it says."""
    text = config.get("text_config") or config
    name = text.get("model_type", config.get("model_type"))
    if is_text_tower(config) and text is not config:
        name = f"{config['model_type']}_text_model"
    positions = text.get("max_position_embeddings")
    if positions is None and name not in _POSITIONS_ARE_NO_LIMIT:
        positions = text.get("n_positions")
    if not isinstance(positions, int) or positions <= 0:
        return None
    if name in _POSITIONS_AFTER_PADDING:
        padding = text.get("pad_token_id", 1)
        return positions - (1 if padding is None else padding) - 1
    return positions


class TextModel:
    """An encoder of texts; see `HuggingFaceTextSpec`, which says what it does."""

    def __init__(
        self, loaded: LoadedModel, *, choices: Choices, remote: bool, batch_tokens: int | None
    ) -> None:
        import torch

        transformers = import_extra("transformers", extra="text")
        self._choices = choices
        self._sequence = choices.pooling == "none"
        self._whole = loaded
        config = loaded.model.config
        self._tower = hasattr(loaded.model, "get_text_features")
        if not self._tower and config.is_encoder_decoder:
            loaded = loaded.with_model(loaded.model.get_encoder())
        if hasattr(config, "use_cache"):
            config.use_cache = False  # of keys and values, for tokens that will never come
        self._loaded = loaded
        with quiet_loading():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                loaded.folder, trust_remote_code=remote, local_files_only=True
            )
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._takes_type_ids = "token_type_ids" in tokenizer.model_input_names
        text_config = getattr(config, "text_config", None) or config
        self._full_length: int | None = None
        if config.model_type in _READ_PADDING:
            self._full_length = int(text_config.max_position_embeddings)
        self._pad_left = self._full_length is not None and tokenizer.padding_side == "left"
        longest = read_positions(config.to_dict()) or choices.max_length
        longest = min(longest, tokenizer.model_max_length)
        if choices.max_length > longest:
            raise ValueError(
                f"texts of `max_length` {choices.max_length} are more than the model can read; "
                f"set `max_length: {longest}` or less"
            )
        self._tokenizer = TextTokenizer(
            tokenizer,
            max_length=choices.max_length,
            prefix=choices.prefix,
            suffix=choices.suffix,
            lowercase=choices.lowercase,
            mark_special=not choices.special_tokens,
        )
        self._dense = [
            _load_dense(layer, folder=loaded.folder, device=loaded.device)
            for layer in choices.dense
        ]
        self.budget = batch_tokens or BATCH_TOKENS[loaded.device.type]
        # What a model is wide is not in one place of its configuration: ask it.
        with torch.inference_mode():
            self.dim = int(np.shape(self.encode([self.prepare("a")])[0])[-1])

    def prepare(self, payload: str) -> Tokens:
        """The tokens of one text. Raises ValueError if it has none."""
        (tokens,) = self.prepare_all([payload])
        if isinstance(tokens, ValueError):
            raise tokens
        return tokens

    def prepare_all(self, payloads: Sequence[str]) -> list[Tokens | ValueError]:
        """The tokens of many texts, by as many threads as the tokenizer likes."""
        return self._tokenizer(payloads)

    def size(self, prepared: Tokens) -> int:
        """Tokens that the model reads for the text."""
        return self._full_length or len(prepared.ids)

    def counts(self, prepared: Tokens) -> dict[str, int]:
        """Tokens that are read, and whether the text has more."""
        return {"tokens": len(prepared.ids), "truncated": int(prepared.truncated)}

    @property
    def module(self) -> Any:
        """The whole model, of which more may be there than texts go through."""
        return self._whole.model

    def save(self, folder: str, *, module: Any | None = None) -> None:
        """See `LoadedModel.save`."""
        self._whole.save(folder, module=module)

    def encode(self, batch: list[Tokens]) -> np.ndarray | list[np.ndarray]:
        """As ever; a sequence has the states of the last layer, in float32."""
        import torch

        with torch.inference_mode():
            found = self.embed(batch)
            if isinstance(found, list):
                return [states_TD.cpu().numpy() for states_TD in found]
            array_BD: np.ndarray = found.cpu().numpy()
            return array_BD

    def embed(self, batch: list[Tokens]) -> Any:
        """What `encode` gives as tensors on the model's device, with gradients if it has any."""
        output, mask_BT = self._forward(batch)
        if self._sequence:
            return self._sequences(output.last_hidden_state, mask_BT, batch=batch)
        if self._choices.pooling == "pooler":
            pooled_BD = _pooler_output(output)
        else:
            pooled_BD = pool(output.last_hidden_state, mask_BT=mask_BT, how=self._choices.pooling)
        for layer in self._dense:
            pooled_BD = layer.to(pooled_BD.device)(pooled_BD)
        return self._loaded.scaled(pooled_BD)

    def _forward(self, batch: Sequence[Tokens]) -> tuple[Any, Any]:
        """The model's output for a batch, and bool `[B, T]`, true where there are tokens."""
        import torch

        device = self._loaded.device
        width = self._full_length or max(len(tokens.ids) for tokens in batch)

        def array(rows: list[list[int]], value: int) -> Any:
            padded_BT = padded(rows, value=value, width=width, left=self._pad_left)
            return torch.from_numpy(padded_BT).to(device)

        lengths_B1 = torch.tensor([[len(tokens.ids)] for tokens in batch], device=device)
        places_T = torch.arange(width, device=device)
        mask_BT = (places_T.flip(0) if self._pad_left else places_T) < lengths_B1
        inputs = {"input_ids": array([tokens.ids for tokens in batch], self._pad_id)}
        if self._full_length is None:
            inputs["attention_mask"] = mask_BT.long()
        if self._takes_type_ids:
            types = [tokens.type_ids for tokens in batch if tokens.type_ids is not None]
            inputs["token_type_ids"] = (
                array(types, 0) if types else torch.zeros_like(inputs["input_ids"])
            )
        if self._tower:
            inputs.pop("token_type_ids", None)
            return self._loaded.model.get_text_features(**inputs), mask_BT
        return self._loaded.model(**inputs), mask_BT

    def _sequences(self, hidden_BTD: Any, mask_BT: Any, *, batch: Sequence[Tokens]) -> list[Any]:
        import torch

        hidden_ND = hidden_BTD[mask_BT].float()
        if self._choices.normalize:
            hidden_ND = torch.nn.functional.normalize(hidden_ND, dim=1)
        rows = list(hidden_ND.split([len(tokens.ids) for tokens in batch]))
        if self._choices.special_tokens:
            return rows
        return [
            row[torch.tensor(tokens.special, device=row.device) == 0]
            for row, tokens in zip(rows, batch, strict=True)
        ]


def _pooler_output(output: Any) -> Any:
    """float32 `[B, D]`: what the model itself makes of a text."""
    import torch

    pooled = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
    if pooled is None:
        raise ValueError("the model has no pooled output of its own; set `pooling: mean`")
    if pooled.ndim != 2:
        raise ValueError(f"the model's own output has {pooled.ndim} dimensions and not 2")
    return pooled.float()


def _load_dense(layer: DenseLayer, *, folder: str, device: str) -> Any:
    """A linear layer and its activation, in float32."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(f"{folder}/{layer.folder}/model.safetensors")
    activation = getattr(torch.nn, layer.activation, None)
    if activation is None or set(weights) - {"linear.weight", "linear.bias"}:
        raise ValueError(f"`model`: {layer.folder} is no layer that is known here")
    linear = torch.nn.utils.skip_init(
        torch.nn.Linear,
        weights["linear.weight"].shape[1],
        weights["linear.weight"].shape[0],
        bias="linear.bias" in weights,
    )
    linear.load_state_dict({k.removeprefix("linear."): v for k, v in weights.items()})
    return torch.nn.Sequential(linear, activation()).requires_grad_(False).to(device)
