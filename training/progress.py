"""What the workers of a training tell the one who started it: rounds, epochs and ends. No Ray.

They post it to an actor (`training.mailbox`), from which the driver takes it now and then: a driver
that is slow, or gone, holds up no worker.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.agenda import Due
from training.candidate import PlannedCandidate
from training.fitting.loop import Epoch
from training.passes import Passes, names_of
from training.training_spec import TrainingSpec
from training.workers import worker_rank


@dataclass(frozen=True, kw_only=True)
class RoundProgress:
    """The begin of a round."""

    search: str | None
    """The search whose round it is; None of the candidates."""
    title: str
    apart: Sequence[Sequence[str]]
    """Names of the candidates that single workers fit, side by side, those in one pass together."""
    groups: Sequence[Sequence[str]]
    """The same of those that all workers fit."""


@dataclass(frozen=True, kw_only=True)
class FitProgress:
    """A candidate's epoch, or its end."""

    candidate: str
    number: int
    """Which of the round's candidates to fit it is, counted from 1."""
    of: int
    epoch: int
    max_epochs: int
    validation_loss: float | None
    validation_accuracy: float | None
    done: bool
    failure: str | None
    process: int
    """The first worker's process id."""


Progress = RoundProgress | FitProgress


def received(item: Mapping[str, Any]) -> Progress:
    """What has come as plain values by the mailbox."""
    values = {name: value for name, value in item.items() if name != "kind"}
    return RoundProgress(**values) if item["kind"] == "round" else FitProgress(**values)


def post_round(mailbox: Any, *, due: Due, passes: Passes) -> None:
    """Tell the driver of a round, from the first worker."""
    _post(
        mailbox,
        RoundProgress(
            search=due.search,
            title=due.title,
            apart=names_of(passes.apart),
            groups=names_of(passes.together),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Tells the driver of a candidate's epochs, from the first worker."""

    mailbox: Any
    candidate: PlannedCandidate
    number: int
    of: int
    training: TrainingSpec

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is over."""
        self._post(
            epoch=epoch.epoch,
            validation_loss=epoch.validation_loss,
            validation_accuracy=epoch.validation_accuracy,
        )

    def end(self, failure: str | None) -> None:
        """The candidate is in the store, or could not be fitted."""
        self._post(done=True, failure=failure)

    def _post(
        self,
        *,
        epoch: int = 0,
        validation_loss: float | None = None,
        validation_accuracy: float | None = None,
        done: bool = False,
        failure: str | None = None,
    ) -> None:
        _post(
            self.mailbox,
            FitProgress(
                candidate=self.candidate.spec.name,
                number=self.number,
                of=self.of,
                epoch=epoch,
                max_epochs=self.training.max_epochs,
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                done=done,
                failure=failure,
                process=os.getpid(),
            ),
        )


def _post(mailbox: Any, item: Progress) -> None:
    if mailbox is not None and worker_rank() == 0:
        kind = "round" if isinstance(item, RoundProgress) else "fit"
        mailbox.post.remote({"kind": kind, **dataclasses.asdict(item)})
