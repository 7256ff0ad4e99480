"""The weights of one candidate that is fitted by itself: any model, any objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.batch import Batch
from training.data.table import EmbeddingTable
from training.fitting.checkpoint import FitState, load_optimizer, optimizer_tensors
from training.fitting.member import Member
from training.fitting.precision import autocast
from training.fitting.step import (
    Step,
    loss_share,
    make_model,
    make_optimizer,
    seed_step,
    train_batch,
    train_step,
)
from training.models.layers import give_factors
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec
from training.workers import sum_over_workers


class Alone:
    """A model and its optimizer; see `training.fitting.loop.Weights` for what is asked of it."""

    def __init__(
        self,
        spec: CandidateSpec,
        *,
        table: EmbeddingTable,
        modalities: tuple[str, ...],
        training: TrainingSpec,
        device: torch.device | str,
    ) -> None:
        self.spec, self.training, self.device = spec, training, torch.device(device)
        self.table, self.modalities = table, modalities
        self.model = make_model(spec, table=table, modalities=modalities, device=device)
        self.optimizer = make_optimizer(self.model, spec=spec)
        self.average: list[Tensor] = []
        self.numbers = [0]
        self.compiled = False

    def step(
        self, members: Sequence[Member], *, rows: Sequence[Tensor], calls: float
    ) -> list[Step]:
        """One step of the fit on a global batch of rows."""
        (member,), (own,) = members, rows
        batch = train_batch(
            self.spec,
            table=self.table,
            rows=own,
            modalities=self.modalities,
            epoch=member.epoch,
            step=member.step,
            device=self.device,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = member.rate(steps_taken=member.steps_taken) * group.get("scale", 1.0)
        seed_step(
            self.model, seed=self.spec.seed, epoch=member.epoch, step=member.step, rows=len(own)
        )
        if self.training.compile:
            self._prepare_compiled(batch)
        outcome = train_step(
            self.model,
            optimizer=self.optimizer,
            batch=batch,
            objective=self.spec.objective,
            task=self.table.task,
            gradient_clip=self.training.gradient_clip,
            accumulate=self.training.accumulate,
            precision=self.training.precision,
            scale=member.scale.value,
            calls=calls,
        )
        if outcome.finite and self.training.ema is not None:
            self._note_average(self.training.ema)
        return [outcome]

    def outputs(self, batch: Batch) -> Tensor:
        """The answers `[1, B, C]` of the weights that are validated."""
        with self._validated(), autocast(self.training.precision, device=self.device):
            outputs: Tensor = self.model(*batch.inputs)
        return outputs.float()[None]

    def own_losses(self, batch: Batch) -> Tensor:
        """The model's own loss `[1]` over the global batch, of the weights that are validated."""
        with self._validated(), autocast(self.training.precision, device=self.device):
            share = loss_share(self.model, batch=batch, weight=None)
        return sum_over_workers(share)[None]

    def validated(self, number: int) -> dict[str, Tensor]:
        """A copy of the model's tensors that are validated: the average, if there is one."""
        with self._validated():
            return {name: x.detach().clone() for name, x in self.model.state_dict().items()}

    def state(self, number: int) -> dict[str, dict[str, Tensor]]:
        """Copies of all that the next step depends on, as `FitState` has it."""
        return {
            "model": {name: x.detach().clone() for name, x in self.model.state_dict().items()},
            "optimizer": {n: x.clone() for n, x in optimizer_tensors(self.optimizer).items()},
            "average": {
                name: x.clone() for name, x in zip(self._names(), self.average, strict=False)
            },
        }

    def restore(self, number: int, state: FitState) -> None:
        """Go on from a state."""
        if not state.model:
            return
        self.model.load_state_dict(dict(state.model))
        load_optimizer(self.optimizer, tensors=state.optimizer)
        if state.average:
            self.average = [state.average[name].to(self.device) for name in self._names()]

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these candidates alone."""
        self.numbers = list(numbers)

    def fitted(self, number: int, *, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model with these tensors, or as it is if there are none."""
        if tensors:
            self.model.load_state_dict(dict(tensors))
        return self.model.eval()

    def _names(self) -> list[str]:
        return [name for name, p in self.model.named_parameters() if p.requires_grad]

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def _note_average(self, decay: float) -> None:
        """As `torch.optim.swa_utils.AveragedModel`: the first weights, then decayed towards."""
        weights = [p.detach() for p in self._trained()]
        if not self.average:
            self.average = [w.clone() for w in weights]
        else:
            torch._foreach_lerp_(self.average, weights, 1 - decay)

    @contextmanager
    def _validated(self) -> Iterator[None]:
        """A block in which the model is evaluated with the weights that are validated."""
        self.model.eval()
        pairs = list(zip(self._trained(), self.average, strict=True)) if self.average else []
        kept = [parameter.data for parameter, _ in pairs]
        for parameter, average in pairs:
            parameter.data = average
        try:
            yield
        finally:
            for (parameter, _), data in zip(pairs, kept, strict=True):
                parameter.data = data

    @torch.no_grad()
    def _prepare_compiled(self, batch: Batch) -> None:
        """Draw what the compiled pass multiplies by, and compile it at the first step."""
        if not self.compiled:
            # Uncompiled, so that its dropout layers learn the shape of a row.
            self.model.eval()(*batch.inputs)
            self.model.compile(dynamic=True)
            self.compiled = True
        give_factors(self.model, rows=batch.rows)
