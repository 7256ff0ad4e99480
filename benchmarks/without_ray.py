"""A pipeline's stages 1 and 2 in one process, for benchmarks and tests of what comes after them."""

from __future__ import annotations

from features.commit import make_snapshot
from features.embedding import embed_shard
from features.quarantine import count_quarantine
from features.sample_shards import write_samples
from features.snapshot import Snapshot
from features.sources import RowReader
from features.store import Store
from training.candidate import PlannedCandidate, plan_candidates
from workflows.pipeline import Pipeline
from workflows.plan import plan_embedding


def embedded(pipeline: Pipeline) -> Snapshot:
    """The snapshot of a pipeline's table, committed."""
    plan, store = plan_embedding(pipeline), pipeline.open_store()
    write_samples(plan, store=store)
    for work in plan.work:
        feature = plan.modalities[work.modality].feature
        embed_shard(
            work,
            store=store,
            spec=feature.encoder,
            encoder=feature.encoder.load(),
            source=plan.source,
            reader=RowReader(plan.source, columns=feature.payload_columns.names),
            columns=feature.payload_columns,
            payload_key_by=plan.dataset.payload_key,
            limits=plan.dataset.limits,
        )
    snapshot = make_snapshot(plan, store=store, quarantine=count_quarantine(plan, store=store))
    store.commit(snapshot)
    return snapshot


def fitted(pipeline: Pipeline, store: Store, snapshot: Snapshot) -> list[PlannedCandidate]:
    """A pipeline's candidates with their records, each fitted as by a worker if it was not."""
    from training.data.table import load_table
    from training.produce import produce_candidate

    task, training = pipeline.spec.task, pipeline.spec.training

    def planned() -> list[PlannedCandidate]:
        return plan_candidates(
            store,
            snapshot=snapshot,
            task=task,
            candidates=pipeline.spec.candidates,
            training=training,
        )

    table = load_table(store, snapshot, task=task, modalities=tuple(snapshot.modalities))
    for candidate in planned():
        if candidate.record is None:
            produce_candidate(
                candidate, store=store, snapshot=snapshot, task=task, training=training, table=table
            )
    return planned()
