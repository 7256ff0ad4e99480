"""How far a pipeline's candidates and searches have come, and that in words."""

from __future__ import annotations

from features.snapshot import Snapshot
from training.agenda import Standing
from training.search.proposals import NothingToPropose
from training.search.walk import Search
from workflows.pipeline import Pipeline, StageError


def standing(pipeline: Pipeline, *, snapshot: Snapshot) -> Standing:
    """What of a pipeline is fitted to a snapshot, and what is to be fitted next. Writes nothing.

    StageError if a search can propose nothing.
    """
    try:
        return pipeline.agenda.standing(pipeline.open_store(), snapshot=snapshot)
    except (ImportError, NothingToPropose) as error:
        raise StageError(str(error)) from error


def described(search: Search) -> str:
    """Where a search stands, on one line."""
    title = f"{search.spec.of}, {search.spec.trials} trials"
    if search.round is not None:
        return f"{title}: next {search.round.title}"
    best = search.best
    if best.reached[-1] is None:
        return f"{title}: all have failed"
    values = ", ".join(f"{field} {_shown(value)}" for field, value in best.values.items())
    return f"{title}: {best.spec.name} is best in validation, with {values}"


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
