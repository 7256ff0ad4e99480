"""The Ray Data job: missing shards → actors that hold encoders → shards in the store.

A shard's description is a row of the dataset; its payloads never pass through Ray. An actor
keeps the encoder of the modality it works on, and a cursor in the table, so a table read in
order costs each actor one pass. The driver holds one description a missing shard.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.exceptions import RayTaskError

from features.columns import PayloadColumns
from features.decoders.base import Limits
from features.embedding import ShardResult, embed_shard
from features.encoders import Encoder
from features.plan import Plan, Work
from features.sources import RowRange, RowReader, Source, SourceError
from features.spec import FeatureSpec
from features.storage import Storage
from features.store import Store

TASK_RETRIES = 2
"""How often a shard is tried again after its worker has died."""


@dataclass(frozen=True, kw_only=True)
class Actors:
    """How many actors encode at once, and what each is given."""

    count: int
    cpus: float
    gpus: float
    threads: int


def embed(
    plan: Plan, *, storage: Storage, on_shard: Callable[[ShardResult], None] | None = None
) -> list[ShardResult]:
    """Compute all missing shards of a plan; Ray must be connected.

    Raises SourceError, OSError or ImportError as the first failing shard raised them, and other
    errors as Ray wraps them; what was written until then stays, and is not computed again.
    """
    if not plan.work:
        return []
    store = Store(storage)
    for part in plan.modalities.values():
        store.write_encoder(part.feature.encoder, fingerprint=part.encoder_fingerprint)
    actors = plan_actors(ray.cluster_resources(), shards=len(plan.work))
    results = []
    try:
        for result in _run(plan, storage=storage, actors=actors):
            results.append(result)
            if on_shard:
                on_shard(result)
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, SourceError | OSError | ImportError):
            raise cause from error
        raise
    return results


def _cause(error: BaseException) -> BaseException:
    """What was raised in the worker, out of what Ray has wrapped around it."""
    while True:
        inner = error.cause if isinstance(error, RayTaskError) else error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner


def plan_actors(resources: Mapping[str, float], *, shards: int) -> Actors:
    """One actor a GPU; without GPUs one for every four CPUs, which uses them by its threads.

    One CPU is left for the rest of the job, where there is more than one.
    """
    cpus = max(1, int(resources.get("CPU", 1)))
    gpus = int(resources.get("GPU", 0))
    if gpus:
        share = max(1, (cpus - 1) // gpus)
        return Actors(count=min(gpus, shards), cpus=min(share, 4), gpus=1, threads=share)
    count = min(max(1, cpus // 4), shards)
    reserved = max(1, min(4, (cpus - 1) // count))
    return Actors(count=count, cpus=reserved, gpus=0, threads=max(reserved, min(cpus, 4)))


class ShardEncoder:
    """The actor: turns descriptions of shards into shards, one at a time."""

    def __init__(
        self,
        *,
        storage: Storage,
        source: Source,
        features: Mapping[str, FeatureSpec],
        payload_key_by: str,
        limits: Limits,
        threads: int,
    ) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        self._store = Store(storage)
        self._source = source
        self._features = features
        self._key_by = payload_key_by
        self._limits = limits
        self._modality = ""
        self._encoder: Encoder | None = None
        self._reader: RowReader | None = None

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[str]]:
        return {"result": [_to_json(self._embed(_work_from(work))) for work in batch["work"]]}

    def _embed(self, work: Work) -> ShardResult:
        feature = self._features[work.modality]
        if self._encoder is None or self._reader is None or self._modality != work.modality:
            self._encoder = None  # the last one's memory first
            self._encoder = feature.encoder.load()
            self._reader = _reader(self._source, feature.payload_columns)
            self._modality = work.modality
        return embed_shard(
            work,
            store=self._store,
            spec=feature.encoder,
            encoder=self._encoder,
            source=self._source,
            reader=self._reader,
            columns=feature.payload_columns,
            payload_key_by=self._key_by,
            limits=self._limits,
        )


def _reader(source: Source, columns: PayloadColumns) -> RowReader:
    return RowReader(source, columns=columns.names, text=columns.text_names)


def _run(plan: Plan, *, storage: Storage, actors: Actors) -> Iterator[ShardResult]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    rows: list[dict[str, Any]] = [{"work": _to_json(work)} for work in plan.work]
    with warnings.catch_warnings():
        # There is no other way to say how often a task is tried again, until Ray 2.64.
        warnings.filterwarnings("ignore", message=r"`ray_remote_args")
        shards = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardEncoder,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=2),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
            fn_constructor_kwargs={
                "storage": storage,
                "source": plan.source,
                "features": {m: part.feature for m, part in plan.modalities.items()},
                "payload_key_by": plan.dataset.payload_key,
                "limits": plan.dataset.limits,
                "threads": actors.threads,
            },
            ray_remote_args_fn=_lives,
        )
    for batch in shards.iter_batches(batch_size=None, prefetch_batches=0):
        for result in batch["result"]:
            yield ShardResult(**json.loads(result))


def _lives() -> dict[str, int]:
    """An actor that dies is made again; a shard that kills its actor again and again is not."""
    return {"max_restarts": -1, "max_task_retries": TASK_RETRIES}


def _to_json(value: Work | ShardResult) -> str:
    return json.dumps(dataclasses.asdict(value))


def _work_from(text: str) -> Work:
    value = json.loads(text)
    ranges = tuple(RowRange(**item) for item in value.pop("ranges"))
    return Work(**value | {"ranges": ranges, "donors": tuple(value["donors"])})
