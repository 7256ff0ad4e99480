"""What a search tries next, by Optuna; the only file here that knows it.

A tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter
optimization") draws a generation from what all before it have come to. Its draws are a function of
the seed and of what it is told, so a search that starts again proposes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic

from training.search.spec import RangeSpec, SearchSpec, Value, is_whole
from training.spec import CandidateSpec

DRAWS = 100
"""Draws for a trial after which a space is given up: its values do not go together."""


class NothingToPropose(ValueError):
    """A space in which no values go together; the message is for the one who wrote it."""


class Proposals:
    """The trials of a search, generation by generation."""

    def __init__(self, search: SearchSpec, *, base: CandidateSpec, lower_is_better: bool) -> None:
        """ImportError, with what to install, if Optuna is not here."""
        optuna = _import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._search = search
        self._base = base
        self._study = optuna.create_study(
            direction="minimize" if lower_is_better else "maximize",
            sampler=optuna.samplers.TPESampler(
                seed=search.seed,
                n_startup_trials=search.generation,
                # Those of a generation keep away from one another.
                constant_liar=True,
            ),
        )
        self._asked: list[Any] = []
        self._number = 0

    def ask(self, count: int) -> list[tuple[dict[str, Value], CandidateSpec]]:
        """The next so many trials: their values, and the candidates with these."""
        return [self._ask() for _ in range(count)]

    def tell(self, values: Sequence[float | None]) -> None:
        """What the trials asked last have come to; None of one that failed."""
        for trial, value in zip(self._asked, values, strict=True):
            if value is None:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, value)
        self._asked = []

    def _ask(self) -> tuple[dict[str, Value], CandidateSpec]:
        error: pydantic.ValidationError | None = None
        for _ in range(DRAWS):
            trial = self._study.ask()
            values = {field: self._suggest(trial, field) for field in self._search.space}
            try:
                spec = self._search.trial(self._base, number=self._number, values=values)
            except pydantic.ValidationError as wrong:
                error = wrong
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                continue
            self._asked.append(trial)
            self._number += 1
            return values, spec
        assert error is not None, "something was drawn"
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise NothingToPropose(
            f"search of {self._search.of!r}: {DRAWS} draws from `space` gave no candidate: {text}"
        )

    def _suggest(self, trial: Any, field: str) -> Value:
        dimension = self._search.space[field]
        found: Value
        if not isinstance(dimension, RangeSpec):
            found = trial.suggest_categorical(field, list(dimension))
        elif is_whole(self._base, field):
            found = trial.suggest_int(
                field, int(dimension.low), int(dimension.high), log=dimension.log
            )
        else:
            found = trial.suggest_float(field, dimension.low, dimension.high, log=dimension.log)
        return found


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise  # it is there, and misses one of its own
        raise ImportError(
            "optuna is not installed, and a search needs it: pip install 'sensorium[search]'"
        ) from error
    return optuna
