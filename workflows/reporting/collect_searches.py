"""What the report says of searches: the trials, what was tried, and what each came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from training.evaluation.metrics import metrics_of
from training.search.spec import RangeSpec
from training.search.walk import Search, Trial
from workflows.reporting.search_findings import Dimension, SearchFindings, TrialFindings

if TYPE_CHECKING:
    from workflows.pipeline import Pipeline


def find_searches(searches: Sequence[Search], *, pipeline: Pipeline) -> Iterator[SearchFindings]:
    """Each search with its trials, the best first."""
    training, task = pipeline.spec.training, pipeline.spec.task
    for search in searches:
        spec = search.spec
        base = pipeline.agenda.base(spec)
        monitor, lower = training.ranking(base.objective, task=task)
        metrics = metrics_of(task)
        yield SearchFindings(
            name=spec.name,
            of=spec.of,
            dimensions=tuple(
                Dimension(field=name, low=found.low, high=found.high, log=found.log)
                if isinstance(found, RangeSpec)
                else Dimension(field=name, choices=found)
                for name, found in spec.space.items()
            ),
            monitor=metrics[monitor].title if monitor in metrics else monitor,
            lower_is_better=lower,
            epochs=tuple(
                spec.training(training, rung=rung).max_epochs for rung in range(spec.rungs)
            ),
            trials=tuple(_best_first(search.trials, lower_is_better=lower)),
            over=search.round is None,
            finalists=spec.finalists,
            seeds=spec.fits(base),
            found=search.best.spec.name if search.round is None else None,
        )


def _best_first(trials: Sequence[Trial], *, lower_is_better: bool) -> list[TrialFindings]:
    sign = 1.0 if lower_is_better else -1.0
    first: dict[str, int] = {}
    for trial in trials:
        if trial.fingerprints:
            first.setdefault(trial.fingerprints[0], trial.number)

    def like(trial: Trial) -> int | None:
        """The trial that stood for this one, if it was not the first of its values."""
        found = first.get(trial.fingerprints[0]) if trial.fingerprints else None
        return None if found == trial.number else found

    def rank(trial: TrialFindings) -> tuple[bool, int, bool, bool, float, int]:
        last = trial.settled
        return (
            trial.like is not None,
            -len(trial.reached),
            not trial.by_seed,
            last is None,
            0.0 if last is None else sign * last,
            trial.number,
        )

    found = [
        TrialFindings(
            name=trial.spec.name,
            number=trial.number,
            values=dict(trial.values),
            reached=tuple(trial.reached),
            by_seed=tuple(trial.by_seed),
            settled=trial.settled,
            like=like(trial),
        )
        for trial in trials
    ]
    return sorted(found, key=rank)
