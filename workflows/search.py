"""How far a pipeline's candidates and searches have come, and that in words."""

from __future__ import annotations

import json
from typing import Any

from features.snapshot import Snapshot
from features.store import Store
from training.agenda import Standing
from training.search.proposals import NothingToPropose
from training.search.walk import Search
from workflows.pipeline import Pipeline, StageError
from workflows.reporting.wording import value


def standing(pipeline: Pipeline, *, snapshot: Snapshot) -> Standing:
    """What of a pipeline is fitted to a snapshot, and what is to be fitted next. Writes nothing.

    StageError if a search can propose nothing.
    """
    try:
        return pipeline.agenda.standing(pipeline.open_store(), snapshot=snapshot)
    except (ImportError, NothingToPropose) as error:
        raise StageError(str(error)) from error


def kept_searches(
    pipeline: Pipeline, *, store: Store, snapshot: Snapshot
) -> dict[str, dict[str, Any]]:
    """The searches that are over, by name, as they were written down when they ended."""
    found = {}
    for name, path in pipeline.agenda.search_paths(snapshot=snapshot).items():
        try:
            found[name] = json.loads(store.storage.read(path))
        except FileNotFoundError:
            continue  # it is not over
    return found


def described(search: Search) -> str:
    """Where a search stands, on one line."""
    title = f"{search.spec.of}, {search.spec.trials} trials"
    if search.round is not None:
        return f"{title}: next {search.round.title}"
    best = search.best
    if best.settled is None:
        return f"{title}: all have failed"
    values = ", ".join(f"{field} {value(found)}" for field, found in best.values.items())
    over = f" over {len(best.by_seed)} seeds" if len(best.by_seed) > 1 else ""
    return f"{title}: {best.spec.name} is best in validation{over}, with {values}"
