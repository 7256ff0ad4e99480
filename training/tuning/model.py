"""A head on live encoders: prepared payloads → embeddings, with gradients → the head's outputs.

Suffixes of tensors: B rows, P rows that are present, T steps of a sequence, D width of an
embedding, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from features.encoders import EncoderSpec, Sound, TrainableEncoder
from features.encoding import Prepared, budget_of, form_batches
from training.batch import Batch, Tensors
from training.models.layers import PerModality
from training.spec import CandidateSpec, InputSpec
from training.tuning.spec import TuningSpec
from training.tuning.weights import Tuning, recompute_layers
from training.workers import gather_sizes


@dataclass(frozen=True, kw_only=True)
class LiveInput(InputSpec):
    """A modality that is embedded anew, by an encoder whose weights are tuned."""

    spec: EncoderSpec
    encoder: TrainableEncoder
    """Loaded for this model alone."""


@dataclass(frozen=True, kw_only=True)
class PreparedPayloads:
    """A live modality of a batch, in the place of its embeddings."""

    rows: Tensor
    """int64 `[P]`: which rows of the batch have a payload, ascending."""
    prepared: Sequence[Any]
    """P payloads, as the encoder has prepared them."""

    def narrow(self, dim: int, start: int, length: int) -> PreparedPayloads:
        """Those of some consecutive rows, as `torch.Tensor.narrow` has it."""
        assert dim == 0, "payloads are along the rows"
        first, stop = torch.searchsorted(self.rows, torch.tensor([start, start + length])).tolist()
        return PreparedPayloads(
            rows=self.rows[first:stop] - start, prepared=self.prepared[first:stop]
        )


class TunedEncoder(nn.Module):
    """An encoder that is tuned: prepared payloads → embeddings.

    While it trains, float32 as they come; in evaluation as they would be stored, so that an
    answer is that of the embedding in a store.
    """

    def __init__(
        self,
        encoder: TrainableEncoder,
        *,
        spec: EncoderSpec,
        tuning: TuningSpec,
        gradient_checkpointing: bool = False,
        cache_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.encoder = spec, encoder
        self.cache_rows = cache_rows
        """Rows whose activations are held at once, and computed again in the backward pass; all
        if None. See `training.models.grad_cache`."""
        self.module = encoder.module
        self._stored = getattr(torch, spec.dtype)
        self.tuning = Tuning(
            self.module, spec=tuning, probe=self._probe, encoder=f"the encoder {spec.type!r}"
        )
        if gradient_checkpointing:
            recompute_layers(self.tuning.layers)
        self.fixed = frozenset(
            name for name, p in self.module.named_parameters() if not p.requires_grad
        )
        """Names of the module's parameters that stay as they were loaded."""

    def train(self, mode: bool = True) -> TunedEncoder:
        """The encoder's own dropout and batch statistics stay as in evaluation, always."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, prepared: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """P payloads → float32 `[P, D]`; of sequences `[P, T, D]` and bool `[P, T]`."""
        items = [
            Prepared(row=row, payload=payload, size=self.encoder.size(payload))
            for row, payload in enumerate(prepared)
        ]
        found: list[Tensor] = []
        order: list[int] = []
        most = min(self.spec.batch_size, self.cache_rows or self.spec.batch_size)
        batches = list(form_batches(items, rows=most, budget=budget_of(self.encoder)))
        cached = self.cache_rows is not None and len(batches) > 1 and torch.is_grad_enabled()
        for batch in batches:
            payloads = [item.payload for item in batch]
            if cached:
                found += checkpoint(self._embed, payloads, use_reentrant=False)
            else:
                found += self._embed(payloads)
            order += [item.row for item in batch]
        rows = [found[place] for place in sorted(range(len(order)), key=order.__getitem__)]
        if not self.spec.sequence:
            return torch.stack(rows), None
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        steps_BTD = pad_sequence(rows, batch_first=True)
        places_T = torch.arange(steps_BTD.shape[1], device=steps_BTD.device)
        return steps_BTD, places_T < lengths[:, None]

    def _embed(self, batch: list[Any]) -> list[Tensor]:
        rows = [row.float() for row in self.encoder.embed(batch)]
        return rows if self.training else [row.to(self._stored).float() for row in rows]

    def _probe(self) -> Tensor:
        """Embeddings that depend on all weights that any do."""
        payload = {"text": "a", "image": _picture(), "audio": _sound()}[self.spec.kind]
        return torch.cat(
            [row.flatten() for row in self.encoder.embed([self.encoder.prepare(payload)])]
        )


class LiveModel(nn.Module):
    """A head on embeddings of which some are computed here, from `PreparedPayloads`.

    Its state is what is tuned, and the head's: weights that stay as they were loaded are left
    out of it.
    """

    def __init__(
        self,
        head: nn.Module,
        *,
        encoders: Mapping[str, TunedEncoder],
        encoder_learning_rate: float,
    ) -> None:
        super().__init__()
        self.head = head
        self.encoders = PerModality(encoders)
        self._encoder_learning_rate = encoder_learning_rate

    def forward(
        self,
        embeddings: Mapping[str, Any],
        presence: Tensors,
        masks: Tensors,
    ) -> Tensor:
        """The outputs `[B, C]`; of the live modalities `embeddings` are `PreparedPayloads`.

        A payload whose modality is not present (any more, after modality dropout) is not embedded.
        """
        computed, steps = self._computed(embeddings, presence, masks)
        outputs_BC: Tensor = self.head(computed, presence, steps)
        return outputs_BC

    def loss_share(self, batch: Batch) -> Tensor:
        """This worker's share of the head's own loss, for a batch as `forward` takes it."""
        computed, steps = self._computed(*batch.inputs)
        share: Tensor = self.head.loss_share(replace(batch, embeddings=computed, masks=steps))  # type: ignore[operator]
        return share

    def after_step(self) -> None:
        """What the head does after an optimizer's step."""
        if hasattr(self.head, "after_step"):
            self.head.after_step()  # type: ignore[operator]

    def _computed(
        self, embeddings: Mapping[str, Any], presence: Tensors, masks: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Embeddings and masks, of the live modalities too."""
        computed: dict[str, Any] = dict(embeddings)
        steps = dict(masks)
        for modality, encoder in self.encoders.items():
            computed[modality], mask = _embedded(
                embeddings[modality], presence=presence[modality], encoder=encoder
            )
            if mask is not None:
                if self.training:
                    # What is dropped is drawn for the whole batch, so its rows are padded alike.
                    longest = max(gather_sizes(mask.shape[1], device=mask.device))
                    more = longest - mask.shape[1]
                    computed[modality] = pad(computed[modality], (0, 0, 0, more))
                    mask = pad(mask, (0, more))
                steps[modality] = mask
        return computed, steps

    def parameter_groups(self, spec: CandidateSpec) -> list[dict[str, Any]]:
        """Matrices that decay, and vectors, of the head and of the encoders: for an optimizer.

        `scale` is what the schedule's learning rate is multiplied by.
        """
        scale = self._encoder_learning_rate / spec.learning_rate
        groups = []
        for part, factor in ((self.head, 1.0), (self.encoders, scale)):
            tuned = [p for p in part.parameters() if p.requires_grad]
            for decay, some in (
                (spec.weight_decay, [p for p in tuned if p.ndim >= 2]),
                (0.0, [p for p in tuned if p.ndim < 2]),
            ):
                if some:
                    groups.append(
                        {
                            "params": some,
                            "weight_decay": decay,
                            "scale": factor,
                            "lr": spec.learning_rate * factor,
                        }
                    )
        return groups

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, without the weights that are not tuned."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for name in self._fixed():
            state.pop(prefix + name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As ever; what is not tuned is there already."""
        own = dict(super().state_dict())
        fixed = {name: own[name] for name in self._fixed() if name in own}
        return super().load_state_dict({**fixed, **state_dict}, *args, **kwargs)

    def _fixed(self) -> list[str]:
        return [
            f"encoders.layers.of-{modality}.module.{name}"
            for modality, encoder in self.encoders.items()
            for name in encoder.fixed  # type: ignore[union-attr]
        ]


def _embedded(
    payloads: PreparedPayloads, *, presence: Tensor, encoder: nn.Module
) -> tuple[Tensor, Tensor | None]:
    """A modality's `[B, D]`, zero where it is not, or `[B, T, D]` with the mask of its steps."""
    assert isinstance(encoder, TunedEncoder)
    rows = payloads.rows.to(presence.device)
    wanted = presence[rows]
    prepared = [p for p, used in zip(payloads.prepared, wanted.tolist(), strict=True) if used]
    if not prepared:
        shape = (len(presence), 1, encoder.encoder.dim)
        nothing = torch.zeros(shape, device=presence.device)
        if encoder.spec.sequence:
            return nothing, torch.zeros(shape[:2], dtype=torch.bool, device=presence.device)
        return nothing[:, 0], None
    found, steps = encoder(prepared)
    place = rows[wanted]
    whole = found.new_zeros(len(presence), *found.shape[1:]).index_copy(0, place, found)
    if steps is None:
        return whole, None
    mask = steps.new_zeros(len(presence), steps.shape[1]).index_copy(0, place, steps)
    return whole, mask


def _sound() -> Any:
    import numpy as np

    noise = np.random.default_rng(0).normal(0, 0.1, (1, 16_000))
    return Sound(samples=noise.astype(np.float32), rate=16_000)


def _picture() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
