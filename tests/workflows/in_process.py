"""The work of Ray's actors, done in this process: the commands' own code but for Ray itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import features.job
import training.job
import workflows.serving.score
from features.storage import open_storage
from features.store import Store
from training.agenda import Agenda, Standing
from training.data.table import load_table
from training.passes import divide
from training.produce import produce_candidate
from training.progress import FitProgress, Reporter, RoundProgress, post_round, received
from workflows.cluster import Connection


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Embed, fit and score here; no Ray is started, and none that runs is asked."""
    patch.setattr(Connection, "open", lambda self: None)
    patch.setattr(features.job, "_run", embed_here)
    patch.setattr(features.job.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2}}])
    patch.setattr(features.job.ShardEncoder, "_killers", lambda self, work: {})
    patch.setattr(features.job.ShardEncoder, "_load", load_here)
    patch.setattr(training.job, "fit", fit_here)
    patch.setattr(workflows.serving.score, "in_actors", score_here)


def embed_here(plan: Any, *, work: Any, storage: Any, actors: Any) -> Iterator[Any]:
    """The job's actor; no shard is begun twice."""
    actor = features.job.ShardEncoder(
        storage=storage,
        source=plan.source,
        features={m: part.feature for m, part in plan.modalities.items()},
        payload_key_by=plan.dataset.payload_key,
        limits=plan.dataset.limits,
        threads="1",
        attempts=None,
        files={},
    )
    texts = [features.job._WORK.dump_json(one).decode() for one in work]
    for batch in actor({"work": texts}):
        yield from features.job.results_of(batch)


def load_here(actor: Any, modality: str, *, encoder: str) -> Any:
    """An encoder, loaded without an account of it."""
    del encoder
    return actor._features[modality].encoder.load()


def fit_here(
    *,
    store_root: str,
    snapshot_id: str,
    agenda: Agenda,
    on_round: Callable[[RoundProgress], None] | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
    **_: Any,
) -> Standing:
    """What the training's one worker does, candidate by candidate; told epoch by epoch."""

    def tell(item: Mapping[str, Any]) -> None:
        told = received(item)
        if isinstance(told, RoundProgress):
            if on_round is not None:
                on_round(told)
        elif on_progress is not None:
            on_progress(told)

    mailbox = SimpleNamespace(post=SimpleNamespace(remote=tell))
    store = Store(open_storage(store_root))
    snapshot = store.read_snapshot(snapshot_id)
    table = load_table(store, snapshot, task=agenda.task, modalities=tuple(snapshot.modalities))
    while (due := agenda.standing(store, snapshot=snapshot, keep=True).next()) is not None:
        missing = due.missing()
        post_round(mailbox, due=due, passes=divide(missing, training=due.training))
        for number, candidate in enumerate(missing, 1):
            reporter = Reporter(
                mailbox=mailbox,
                candidate=candidate,
                number=number,
                of=len(missing),
                training=due.training,
            )
            record = produce_candidate(
                candidate,
                store=store,
                snapshot=snapshot,
                task=agenda.task,
                training=due.training,
                table=table,
                on_epoch=reporter.epoch,
            )
            reporter.end(record.failure["reason"] if record.failure else None)
    return agenda.standing(store, snapshot=snapshot, keep=True)


def score_here(
    worker: Callable[[Any], Callable[[str], str]], argument: Any, items: Sequence[str]
) -> Iterator[str]:
    """`workflows.cluster.in_actors` with one actor."""
    yield from map(worker(argument), items)
