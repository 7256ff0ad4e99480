"""The searches of a pipeline: how far they have come, in the YAML's order, and in words."""

from __future__ import annotations

from features.snapshot import Snapshot
from training.proposals import NothingToPropose
from training.search import Search, follow
from workflows.pipeline import Pipeline, StageError


def searches(pipeline: Pipeline, *, snapshot: Snapshot, keep: bool = False) -> list[Search]:
    """The pipeline's searches over a snapshot; StageError if one can propose nothing.

    The end of one that is over is written down if it is to be kept.
    """
    spec, store = pipeline.spec, pipeline.open_store()
    by_name = {candidate.name: candidate for candidate in spec.candidates}
    try:
        return [
            follow(
                search,
                base=by_name[search.of],
                store=store,
                snapshot=snapshot,
                task=spec.task,
                training=spec.training,
                keep=keep,
            )
            for search in spec.search
        ]
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
