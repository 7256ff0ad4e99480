"""The weights of several candidates of one architecture, fitted in one pass: a stack.

A model runs once for all of them, by `torch.func.vmap` over weights, rows and dropout that are
each one's own, and its small operations become few large ones. The optimizers are apart, so a
candidate's step, clipping and decay are what they would be alone.

Suffixes of tensors: K candidates, B this worker's rows, P numbers of all weights, those that
decay first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.batch import Batch
from training.data.table import EmbeddingTable, kept_modalities, worker_slice
from training.fitting.checkpoint import FitState
from training.fitting.member import Member
from training.fitting.precision import autocast
from training.fitting.step import Step, adamw, divide, make_model, step_seed, sum_all, total_weight
from training.models.layers import RowDropout, dropout_draws
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.workers import worker_count, worker_rank

MOMENTS = ("exp_avg", "exp_avg_sq")


class Stack:
    """Models and their optimizers; see `training.fitting.loop.Weights` for what is asked of it."""

    def __init__(
        self,
        specs: Sequence[CandidateSpec],
        *,
        table: EmbeddingTable,
        modalities: tuple[str, ...],
        training: TrainingSpec,
        device: torch.device | str,
    ) -> None:
        self.specs, self.training, self.device = specs, training, torch.device(device)
        self.table, self.modalities = table, modalities
        inputs = table.inputs(modalities)
        self.models = [
            make_model(spec, table=table, modalities=modalities, device=device, inputs=inputs)
            for spec in specs
        ]
        self.numbers = list(range(len(specs)))
        self.template = self.models[0]
        self.dropouts = {
            name: layer
            for name, layer in self.template.named_modules()
            if isinstance(layer, RowDropout)
        }
        trained = [(n, p) for n, p in self.template.named_parameters() if p.requires_grad]
        ordered = sorted(trained, key=lambda item: item[1].ndim < 2)
        self.shapes = {name: p.shape for name, p in ordered}
        self.sizes = [p.numel() for _, p in ordered]
        self.decaying = sum(p.numel() for _, p in ordered if p.ndim >= 2)
        self.weights_KP = torch.stack([self._flat(model.state_dict()) for model in self.models])
        self.average_KP: Tensor | None = None
        """Of one whose average has not begun, its first weights."""
        self.averaged: set[int] = set()
        """Which candidates' averages have begun: after their first finite step, as alone."""
        self.weights = [self._halves(weights_P) for weights_P in self.weights_KP]
        self.optimizers = [
            adamw(matrices=halves[:1], vectors=halves[1:], spec=spec)
            for halves, spec in zip(self.weights, specs, strict=True)
        ]
        self.shared_buffers: dict[str, Tensor] = {}
        self.own_buffers: dict[str, Tensor] = {}
        self._stack_buffers()
        self.shape: tuple[Any, ...] | None = None

    def step(
        self, members: Sequence[Member], *, rows: Sequence[Tensor], calls: float
    ) -> list[Step]:
        """A step of each on a global batch of its own rows."""
        batch = self._batch(members, rows=rows)
        factors = self._factors(members, rows=len(rows[0]), batch=batch)
        scale_K = torch.tensor([member.scale.value for member in members], device=self.device)
        leaf_KP = self.weights_KP.detach().requires_grad_()
        shares: list[Tensor] = []
        gradients: list[Tensor] = []
        self.template.train()
        weight_K = total_weight(vmap(self.table.task.weight)(batch.targets))
        for part in divide(batch, parts=self.training.accumulate, dim=1):
            own = slice(part.first, part.first + part.batch.targets.shape[1])
            dropped = {name: factor[:, own] for name, factor in factors.items()}
            with autocast(self.training.precision, device=self.device), _attention(self.device):
                total_K = self._losses(leaf_KP, factors=dropped, part=part.batch)
            share_K = total_K / weight_K
            gradients += torch.autograd.grad((share_K * scale_K).sum(), leaf_KP)
            shares.append(share_K.detach())
        gradient_KP = gradients[0] if len(gradients) == 1 else torch.stack(gradients).sum(dim=0)
        values = torch.cat([torch.stack(shares).sum(dim=0), scale_K.new_tensor([calls])])
        values = sum_all(values, gradients=[gradient_KP])
        if self.training.precision == "float16":
            gradient_KP = gradient_KP / scale_K[:, None]
        norm_K = torch.linalg.vector_norm(gradient_KP, dim=1)
        clip_K = (self.training.gradient_clip / (norm_K + 1e-6)).clamp(max=1.0)
        gradient_KP = gradient_KP * clip_K[:, None]
        *losses, called = values.tolist()
        outcomes = [
            Step(loss=loss, gradient_norm=norm, calls=called)
            for loss, norm in zip(losses, norm_K.tolist(), strict=True)
        ]
        self._update(members, outcomes=outcomes, gradient_KP=gradient_KP)
        return outcomes

    def outputs(self, batch: Batch) -> Tensor:
        """Each one's answers `[K, B, C]` for the rows of one batch."""
        self.template.eval()
        tensors = self._views(self._validated_KP)

        def answer(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
            state = {**tensors, **self.shared_buffers, **own}
            outputs: Tensor = functional_call(self.template, state, batch.inputs)
            return outputs

        with autocast(self.training.precision, device=self.device), _attention(self.device):
            outputs_KBC: Tensor = vmap(answer)(tensors, self.own_buffers)
        return outputs_KBC.float()

    def own_losses(self, batch: Batch) -> Tensor:
        """A stack has none: models with a loss of their own are fitted alone."""
        raise NotImplementedError("a model with a loss of its own is fitted alone")

    def validated(self, number: int) -> dict[str, Tensor]:
        """A copy of one's tensors that are validated: the average, if there is one."""
        place = self.numbers.index(number)
        return self._state_dict(number, weights_P=self._validated_KP[place])

    def state(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Copies of all that the next step depends on, as `FitState` has it of one alone."""
        place = self.numbers.index(number)
        optimizer: dict[str, Tensor] = {}
        statistics = [self.optimizers[number].state.get(half, {}) for half in self.weights[number]]
        if all(statistics):
            for moment in MOMENTS:
                flat_P = torch.cat([found[moment] for found in statistics])
                for i, part in enumerate(flat_P.split(self.sizes)):
                    optimizer[f"{i}.{moment}"] = part.view(list(self.shapes.values())[i]).clone()
            for i in range(len(self.sizes)):
                optimizer[f"{i}.step"] = statistics[0]["step"].clone()
        average: dict[str, Tensor] = {}
        if self.average_KP is not None and number in self.averaged:
            average = self._named(self.average_KP[place])
        return {
            "model": self._state_dict(number, weights_P=self.weights_KP[place]),
            "optimizer": optimizer,
            "average": {name: x.clone() for name, x in average.items()},
        }

    def restore(self, number: int, state: FitState) -> None:
        """Let one go on from a state."""
        if not state.model:
            return
        place = self.numbers.index(number)
        self.models[number].load_state_dict(dict(state.model))
        self.weights_KP[place] = self._flat(state.model)
        if state.optimizer:
            places = range(len(self.sizes))
            moments = {
                moment: torch.cat([state.optimizer[f"{i}.{moment}"].flatten() for i in places])
                for moment in MOMENTS
            }
            halves = {name: self._cut(flat_P.to(self.device)) for name, flat_P in moments.items()}
            for i, half in enumerate(self.weights[number]):
                self.optimizers[number].state[half] = {
                    "step": state.optimizer["0.step"].clone(),
                    **{moment: halves[moment][i].clone() for moment in MOMENTS},
                }
        if state.average:
            if self.average_KP is None:
                self.average_KP = self.weights_KP.clone()
            self.average_KP[place] = self._flat(state.average)
            self.averaged.add(number)

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with some of them alone."""
        places = torch.tensor([self.numbers.index(n) for n in numbers], dtype=torch.long)
        self.weights_KP = self.weights_KP[places]
        if self.average_KP is not None:
            self.average_KP = self.average_KP[places]
        self.own_buffers = {name: x[places] for name, x in self.own_buffers.items()}
        self.numbers = list(numbers)
        for place, number in enumerate(numbers):
            for half, data in zip(self.weights[number], self._cut(self.weights_KP[place])):
                half.data = data

    def fitted(self, number: int, *, tensors: Mapping[str, Tensor]) -> nn.Module:
        """One's model with these tensors."""
        model = self.models[number]
        if tensors:
            model.load_state_dict(dict(tensors))
        return model.eval()

    @property
    def _validated_KP(self) -> Tensor:
        return self.weights_KP if self.average_KP is None else self.average_KP

    def _cut(self, flat_P: Tensor) -> list[Tensor]:
        """What decays, and what does not."""
        return [flat_P[: self.decaying], flat_P[self.decaying :]]

    def _halves(self, weights_P: Tensor) -> list[Tensor]:
        return [nn.Parameter(half) for half in self._cut(weights_P)]

    def _flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].detach().flatten().to(self.device) for name in self.shapes])

    def _views(self, weights_KP: Tensor) -> dict[str, Tensor]:
        """By name `[K, ...]`: one split, whose gradient is one joining."""
        parts = weights_KP.split(self.sizes, dim=1)
        return {
            name: part.unflatten(1, shape) if len(shape) else part[:, 0]
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _named(self, weights_P: Tensor) -> dict[str, Tensor]:
        parts = weights_P.split(self.sizes)
        return {n: part.view(s) for (n, s), part in zip(self.shapes.items(), parts, strict=True)}

    def _state_dict(self, number: int, *, weights_P: Tensor) -> dict[str, Tensor]:
        state = {**self.models[number].state_dict(), **self._named(weights_P)}
        return {name: x.detach().clone() for name, x in state.items()}

    def _stack_buffers(self) -> None:
        """What of the models is no weight: once where it is equal in all, else one each."""
        for name, first in self.template.state_dict().items():
            if name in self.shapes:
                continue
            values = [model.state_dict()[name] for model in self.models]
            if all(torch.equal(first, value) for value in values):
                self.shared_buffers[name] = first
            else:
                self.own_buffers[name] = torch.stack(values)

    def _batch(self, members: Sequence[Member], *, rows: Sequence[Tensor]) -> Batch:
        """This worker's part of each one's global batch, all tensors `[K, B, ...]`."""
        count = len(rows[0])
        part = worker_slice(count, rank=worker_rank(), workers=worker_count())
        taken = torch.cat([own[part] for own in rows])
        joined = self.table.batch(taken, modalities=self.modalities, device=self.device)

        def apart(x: Tensor) -> Tensor:
            return x.unflatten(0, (len(members), part.stop - part.start))

        presence = {m: apart(x) for m, x in joined.presence.items()}
        if any(member.spec.modality_dropout for member in members):
            kept = [
                kept_modalities(
                    modalities=self.modalities,
                    rows=count,
                    probability=member.spec.modality_dropout,
                    seed=member.spec.seed,
                    epoch=member.epoch,
                    step=member.step,
                )
                for member in members
            ]
            for m in presence:
                kept_KB = torch.stack([one[m][part] for one in kept])
                presence[m] = presence[m] & kept_KB.to(self.device)
        return Batch(
            embeddings={m: apart(x) for m, x in joined.embeddings.items()},
            presence=presence,
            targets=apart(joined.targets),
            masks={m: apart(x) for m, x in joined.masks.items()},
        )

    def _factors(self, members: Sequence[Member], *, rows: int, batch: Batch) -> dict[str, Tensor]:
        """What each dropout layer multiplies by, `[K, B, ...]`: each one's own draws."""
        of_candidates = all(layer.of_candidate for layer in self.dropouts.values())
        if of_candidates and not any(member.spec.dropout for member in members):
            return {}
        self._learn_shapes(batch)
        part = worker_slice(rows, rank=worker_rank(), workers=worker_count())
        own = part.stop - part.start
        drawn: dict[str, list[Tensor]] = {name: [] for name in self.dropouts}
        for member in members:
            seed = step_seed(member.spec.seed, epoch=member.epoch, step=member.step)
            draws = dropout_draws(len(drawn), seed=seed, rows=rows, first=part.start)
            for (name, layer), draw in zip(self.dropouts.items(), draws, strict=True):
                probability = member.spec.dropout if layer.of_candidate else layer.probability
                factor = draw.factor(
                    own, shape=layer.shape, probability=probability, device=self.device
                )
                drawn[name].append(factor)
        return {f"{name}.factor": torch.stack(d) for name, d in drawn.items()}

    @torch.no_grad()
    def _learn_shapes(self, batch: Batch) -> None:
        """Run the model on one's rows, so that its dropout layers meet the shape of a row."""
        shape = tuple((m, *x.shape[2:]) for m, x in batch.embeddings.items())
        if shape == self.shape:
            return
        one = Batch(
            embeddings={m: x[0] for m, x in batch.embeddings.items()},
            presence={m: x[0] for m, x in batch.presence.items()},
            targets=batch.targets[0],
            masks={m: x[0] for m, x in batch.masks.items()},
        )
        self.template.eval()(*one.inputs)
        self.shape = shape

    def _losses(self, weights_KP: Tensor, *, factors: Mapping[str, Tensor], part: Batch) -> Tensor:
        """The sum of the task's loss over this worker's rows, of each one `[K]`."""

        def loss(own: dict[str, Tensor], inputs: Any, targets_B: Tensor) -> Tensor:
            outputs = functional_call(self.template, {**self.shared_buffers, **own}, inputs)
            return self.table.task.loss(outputs, targets_B).total

        own = {**self._views(weights_KP), **self.own_buffers, **factors}
        totals_K: Tensor = vmap(loss)(own, part.inputs, part.targets)
        return totals_K

    @torch.no_grad()
    def _update(
        self, members: Sequence[Member], *, outcomes: Sequence[Step], gradient_KP: Tensor
    ) -> None:
        """A step of the optimizers of those whose gradients are finite."""
        moved = [place for place, outcome in enumerate(outcomes) if outcome.finite]
        for place in moved:
            member, number = members[place], self.numbers[place]
            for half, gradient in zip(
                self.weights[number], self._cut(gradient_KP[place]), strict=True
            ):
                half.grad = gradient
            optimizer = self.optimizers[number]
            for group in optimizer.param_groups:
                group["lr"] = member.rate(steps_taken=member.steps_taken)
            optimizer.step()
        if self.training.ema is not None:
            self._note_averages(moved, decay=self.training.ema)

    def _note_averages(self, moved: Sequence[int], *, decay: float) -> None:
        """As `Alone` does, of those at these places, which have taken a step."""
        if self.average_KP is None:
            self.average_KP = self.weights_KP.clone()
        going = [place for place in moved if self.numbers[place] in self.averaged]
        if len(going) == len(self.numbers):
            self.average_KP.lerp_(self.weights_KP, 1 - decay)
            return
        for place in moved:
            if place in going:
                self.average_KP[place].lerp_(self.weights_KP[place], 1 - decay)
            else:
                self.average_KP[place] = self.weights_KP[place]
                self.averaged.add(self.numbers[place])


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """A block in which attention is computed so that a stack's gradients go through it.

    Of the fused kernels of a GPU, the one that torch takes for short sequences refuses what vmap
    makes of them in the backward pass ("LSE is not correctly aligned").
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()
