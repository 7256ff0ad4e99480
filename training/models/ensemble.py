"""Models made of fitted models: means of answers or weights, or one that is given another's.

Suffixes of tensors: B rows, C outputs, R validation rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training.batch import Tensors
from training.models.translation import Translation


class Averaged(nn.Module):
    """The mean of several models' answers, given as outputs that lead to it.

    A model that sees nothing of a row, since all its modalities are missing, has no say in it,
    unless none of them sees anything.
    """

    temperatures: Tensor

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        modalities: Sequence[Sequence[str]],
        link: Literal["softmax", "sigmoid", "identity"],
        temperatures: Sequence[float] = (),
    ) -> None:
        """`modalities` are those that each model takes; `link` makes answers of its outputs, each
        divided by its model's temperature, 1 if none are given.
        """
        super().__init__()
        self.register_buffer(
            "temperatures", torch.tensor(list(temperatures) or [1.0] * len(models))
        )
        self.models = nn.ModuleList(models)
        self.modalities_of = tuple(tuple(names) for names in modalities)
        self.link = link

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """Outputs `[B, C]`; logarithms of probabilities, their log odds, or numbers."""
        answers, sees = [], []
        for number, (model, names) in enumerate(zip(self.models, self.modalities_of, strict=True)):
            outputs_BC = model(
                {m: embeddings[m] for m in names},
                {m: presence[m] for m in names},
                {m: masks[m] for m in names if m in masks},
            )
            outputs_BC = outputs_BC.double() / self.temperatures[number].double()
            answers.append(self._answers(outputs_BC))
            sees.append(torch.stack([presence[m] for m in names], dim=1).any(dim=1))
        sees_KB = torch.stack(sees)
        says_KB = sees_KB | ~sees_KB.any(dim=0)
        heard_KBC = torch.where(says_KB.unsqueeze(2), torch.stack(answers), 0.0)
        mean_BC = heard_KBC.sum(dim=0) / says_KB.sum(dim=0).unsqueeze(1)
        return self._outputs(mean_BC).float()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *options: Any, **more: Any
    ) -> None:
        # One that was written before there were temperatures had none.
        state_dict.setdefault(f"{prefix}temperatures", torch.ones(len(self.models)))
        super()._load_from_state_dict(state_dict, prefix, *options, **more)

    def _answers(self, outputs_BC: Tensor) -> Tensor:
        if self.link == "softmax":
            return outputs_BC.softmax(dim=-1)
        return outputs_BC.sigmoid() if self.link == "sigmoid" else outputs_BC

    def _outputs(self, answers_BC: Tensor) -> Tensor:
        """What the link makes these answers of."""
        if self.link == "identity":
            return answers_BC
        least = torch.finfo(torch.float32).tiny
        if self.link == "softmax":
            return answers_BC.clamp(min=least).log()
        return (answers_BC.clamp(min=least) / (1 - answers_BC).clamp(min=least)).log()


class Filled(nn.Module):
    """A model that is given what is missing, as a translation draws it from what is there."""

    def __init__(
        self, model: nn.Module, translation: nn.Module, *, modalities: Sequence[str]
    ) -> None:
        """`modalities` are those that the model takes; `translation` a `Translation`."""
        super().__init__()
        assert isinstance(translation, Translation), "the spec has seen to it"
        self.model, self.translation = model, translation
        self.modalities = tuple(modalities)

    def fills(self, presence: Tensors) -> dict[str, Tensor]:
        """By modality that can be filled in, in which rows it is: bool `[B]`.

        Where it is missing, and another that the translation knows is not.
        """
        known = self.translation.modalities
        some_B = torch.stack([presence[m] for m in known]).any(dim=0)
        return {m: some_B & ~presence[m] for m in self.modalities if m in known}

    def forward(self, embeddings: Tensors, presence: Tensors, masks: Tensors) -> Tensor:
        """The model's outputs `[B, C]`. A sequence that is missing is filled in as one step."""
        made = self.translation.restored(embeddings, presence, masks)
        given = {m: embeddings[m] for m in self.modalities}
        there = {m: presence[m] for m in self.modalities}
        steps = {m: masks[m] for m in self.modalities if m in masks}
        for m, fills_B in self.fills(presence).items():
            there[m] = there[m] | fills_B
            if m in steps:
                first_T = torch.arange(steps[m].shape[1], device=fills_B.device) == 0
                # As logic: onnxruntime has no `where` of booleans.
                fills_B1 = fills_B[:, None]
                steps[m] = (fills_B1 & first_T) | (~fills_B1 & steps[m])
                drawn = made[m][:, None] * first_T[None, :, None]
                given[m] = torch.where(fills_B[:, None, None], drawn, given[m])
            else:
                given[m] = torch.where(fills_B[:, None], made[m], given[m])
        outputs_BC: Tensor = self.model(given, there, steps)
        return outputs_BC


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the tensors of several models of one architecture, by name.

    Summed as float64, so that what is equal in all of them stays so to the last bit. What is no
    floating-point number (a counter) is the first model's.
    """
    first = states[0]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in first.items()
    }


@dataclass(frozen=True, kw_only=True)
class Tasted:
    """A fit that was tried as an ingredient of a soup."""

    number: int
    """Which of the models it is."""
    alone: float
    """What was measured of it alone."""
    with_it: float
    """What was measured of the soup with it."""
    taken: bool


def greedy_soup(
    models: Sequence[nn.Module],
    *,
    measure: Callable[[nn.Module], float],
    lower_is_better: bool,
) -> tuple[nn.Module, list[Tasted]]:
    """A model with the mean of the weights of some of these, and how it came to that.

    From the best on, as `measure` finds over the validation rows, a model is added if the soup is
    not worse with it: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1. Of models
    that are equally good, the one given first comes first; what is not a number is taken last, and
    never added.
    """
    worst = float("inf") if lower_is_better else float("-inf")
    alone = [_number(measure(model), otherwise=worst) for model in models]
    sign = 1 if lower_is_better else -1
    order = sorted(range(len(models)), key=lambda number: sign * alone[number])
    states = [model.state_dict() for model in models]
    soup = copy.deepcopy(models[order[0]])
    taken, best = [order[0]], alone[order[0]]
    tasted = [Tasted(number=order[0], alone=best, with_it=best, taken=True)]
    for number in order[1:]:
        soup.load_state_dict(mean_weights([states[n] for n in (*taken, number)]))
        value = _number(measure(soup), otherwise=worst)
        better = sign * value <= sign * best and value != worst
        tasted.append(Tasted(number=number, alone=alone[number], with_it=value, taken=better))
        if better:
            taken, best = [*taken, number], value
    soup.load_state_dict(mean_weights([states[n] for n in taken]))
    return soup, tasted


def _number(value: float, *, otherwise: float) -> float:
    return otherwise if value != value else value
