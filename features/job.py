"""The Ray Data job: missing shards → actors that hold encoders → shards in the store.

A shard's description is a row of the dataset; its payloads never pass through Ray. An actor
keeps the encoder of the modality it works on, and a cursor in the table, so a table read in
order costs each actor one pass. The driver holds one description a missing shard.
"""

from __future__ import annotations

import itertools
import os
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pydantic
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from features.actors import (
    MOST_IN_BLOCK,
    SCALES_TO,
    Actors,
    blocks_of,
    machines_to_come,
    plan_actors,
)
from features.attempts import Attempts
from features.broken_encoder import BrokenEncoder
from features.copying import Copier
from features.decoders.base import Limits
from features.embedding import ShardResult, embed_shards
from features.encoder_files import read_files, with_files_here
from features.encoders import Encoder
from features.isolation import Trial, find_killers
from features.plan import Plan, Work
from features.shard_names import embedding_path
from features.sources import RowReader, Source, SourceError
from features.spec import FeatureSpec
from features.storage import Storage
from features.store import Store

TASK_RETRIES = 3
"""How often a shard is tried again after its worker has died."""
DEATHS = TASK_RETRIES + 2 * MOST_IN_BLOCK
"""How often a block is tried again after its actor has died. Each of its shards, and of those of
the block that waits behind it, may kill the actor once before the rows that do it are found."""
LOADS = 2
"""How often an actor begins to load an encoder that ends its process: once may be chance."""
MOST_LOADS = 6
"""How often it does where machines are lost, too: where each load takes its machine down, an
autoscaler would buy one after another."""
EXPECTED = (SourceError, OSError, ImportError, BrokenEncoder, MemoryError)
"""What is raised as the worker raised it; its message is for the one who started the job."""

T = TypeVar("T")
R = TypeVar("R")
_WORK = pydantic.TypeAdapter(Work)
_RESULT = pydantic.TypeAdapter(ShardResult)


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """The local files of an encoder, for machines that lack them."""

    paths: Mapping[str, str]
    """Where they are on the driver's machine, by name."""
    content: Any
    """Reference to what is in them, by name."""


def embed(
    plan: Plan,
    *,
    storage: Storage,
    work: Sequence[Work] | None = None,
    on_shard: Callable[[ShardResult], None] | None = None,
) -> list[ShardResult]:
    """Compute all missing shards of a plan, or other `work` on it; Ray must be connected.

    Raises SourceError, OSError, ImportError, MemoryError or BrokenEncoder as the first failing
    shard raised them; other errors of an actor's become BrokenEncoder, with where they were
    raised. What was written until then stays, and is not computed again.
    """
    work = plan.work if work is None else work
    if not work:
        return []
    store = Store(storage)
    for part in plan.modalities.values():
        store.write_encoder(part.feature.encoder, fingerprint=part.encoder_fingerprint)
    actors = plan_actors(machines(), shards=len(work))
    results = []
    try:
        for result in _run(plan, work=work, storage=storage, actors=actors):
            results.append(result)
            if on_shard:
                on_shard(result)
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, EXPECTED):
            raise cause from error
        raise
    return results


def in_tasks(function: Callable[[T], R], arguments: Sequence[T]) -> Iterator[R]:
    """`map` on the cluster's CPUs: the results in the order of the arguments.

    Twice as many tasks as CPUs are under way or have results that wait. Raises as the function
    does; what it raises of the medium (OSError) is tried again first.
    """
    task = ray.remote(function).options(
        num_cpus=1, max_retries=TASK_RETRIES, retry_exceptions=[OSError]
    )
    most = 2 * max(1, int(sum(machine.get("CPU", 0) for machine in machines())))
    waiting: deque[Any] = deque()
    try:
        for argument in arguments:
            if len(waiting) >= most:
                yield _result(waiting.popleft())
            waiting.append(task.remote(argument))
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for left in waiting:
            ray.cancel(left)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = _cause(error)
        if isinstance(cause, EXPECTED):
            raise cause from error
        raise


def _cause(error: BaseException) -> BaseException:
    """What was raised in the worker, out of what Ray has wrapped around it."""
    while isinstance(error, RayTaskError) or not isinstance(error, EXPECTED):
        inner = error.cause if isinstance(error, RayTaskError) else error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner
    return error


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Where an actor is to be that holds something for the whole job: no other machine's loss is
    then its own.
    """
    here = ray.get_runtime_context().get_node_id()
    return NodeAffinitySchedulingStrategy(node_id=here, soft=False)


def machines() -> Sequence[Mapping[str, float]]:
    """Resources of the cluster's machines, those included that its autoscaler may yet start.

    Ray does not say what an autoscaler may start, and would wait for what nobody asks for, so a
    cluster that goes down to nothing says so in SCALES_TO (see `machines_to_come`).
    """
    declared = os.environ.get(SCALES_TO)
    if declared:
        return machines_to_come(declared)
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


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
        threads: str,
        attempts: Any,
        files: Mapping[str, EncoderFiles],
    ) -> None:
        # Ray has set it to the CPUs that the actor reserves, which are fewer than those it may use.
        os.environ["OMP_NUM_THREADS"] = threads
        # Threads that spin while they wait for one another take the CPUs from those that decode.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self._store = Store(storage)
        self._copier = Copier(self._store)
        self._source = source
        self._features = dict(features)
        self._files = dict(files)
        self._key_by = payload_key_by
        self._limits = limits
        self._attempts = attempts
        self._modality = ""
        self._encoder: Encoder | None = None
        self._reader: RowReader | None = None

    def __call__(self, batch: dict[str, Sequence[str]]) -> Iterator[dict[str, list[str]]]:
        works = [_WORK.validate_json(text) for text in batch["work"]]
        # An error is handed over like a result: Ray would print it, several times, with the frames
        # of its own, and put sentences of its own into its message.
        for modality, same in itertools.groupby(works, key=lambda work: work.modality):
            try:
                for result in self._embed(modality, works=list(same)):
                    yield _row(result=_RESULT.dump_json(result).decode())
            except RayError:
                raise  # of the cluster, which Ray knows how to go on from
            except Exception as error:
                spec = self._features[modality].encoder
                kind, message = _told(error, what=f"modality {modality!r}, encoder {spec.type!r}")
                yield _row(error=kind, message=message)
                return

    def _embed(self, modality: str, *, works: Sequence[Work]) -> Iterator[ShardResult]:
        feature = self._feature(modality)
        columns = feature.payload_columns
        if self._encoder is None or self._reader is None or self._modality != modality:
            self._encoder = None  # the last one's memory first
            self._encoder = self._load(modality, encoder=works[0].encoder)
            self._reader = RowReader(self._source, columns=columns.names, text=columns.text_names)
            self._modality = modality
        return embed_shards(
            works,
            store=self._store,
            spec=feature.encoder,
            encoder=self._encoder,
            source=self._source,
            reader=self._reader,
            columns=columns,
            payload_key_by=self._key_by,
            limits=self._limits,
            copier=self._copier,
            on_begin=self._killers,
        )

    def _feature(self, modality: str) -> FeatureSpec:
        """A modality's feature, whose encoder's files are on this machine."""
        sent = self._files.pop(modality, None)
        if sent is not None:
            feature = self._features[modality]
            encoder = with_files_here(
                feature.encoder, paths=sent.paths, fetch=lambda: ray.get(sent.content)
            )
            self._features[modality] = feature.model_copy(update={"encoder": encoder})
        return self._features[modality]

    def _load(self, modality: str, *, encoder: str) -> Encoder:
        """Load the encoder, unless this actor's process has died of that before, LOADS times."""
        spec = self._features[modality].encoder
        context = ray.get_runtime_context()
        actor, node = context.get_actor_id(), context.get_node_id()
        died = ray.get(self._attempts.begin_load.remote(encoder, actor, node))
        # A machine that was lost, as spot machines are, has taken a process with it for no fault.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} if died else set()
        if len(died) >= MOST_LOADS:
            raise BrokenEncoder(
                f"modality {modality!r}: {len(died)} processes or machines were lost while they "
                f"loaded the encoder {spec.type!r}, so it is not tried again. Where a machine goes "
                "down with each load, it has too little memory for the model; where machines are "
                "taken away as often, the next run goes on from here"
            )
        if sum(node in alive for node in died) >= LOADS:
            raise BrokenEncoder(
                f"modality {modality!r}: the process was ended {LOADS} times while it loaded the "
                f"encoder {spec.type!r}, so it is not tried again. The system does that where "
                "memory is short: free some, take a machine with more, or a smaller model. If "
                "there is enough, a library that the encoder loads is at fault"
            )
        try:
            return spec.load()
        except (ImportError, MemoryError, BrokenEncoder):
            raise
        except Exception as error:
            raise BrokenEncoder(
                f"modality {modality!r}: the encoder {spec.type!r} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            ray.get(self._attempts.end_load.remote(encoder, actor))

    def _killers(self, work: Work) -> dict[int, str]:
        """Rows that end the process, if this shard was begun before: that attempt has died."""
        if ray.get(self._attempts.begin.remote(f"{work.shard} {len(work.only)}")) == 1:
            return {}
        path = embedding_path(encoder=work.encoder, shard=work.shard)
        if not work.only and self._store.storage.exists(path):
            return {}  # that attempt ended, and what was lost is its result
        feature = self._features[work.modality]
        return find_killers(
            Trial(
                work=work,
                root=self._store.storage.root,
                spec=feature.encoder,
                source=self._source,
                columns=feature.payload_columns,
                key_by=self._key_by,
                limits=self._limits,
            )
        )


def _files_of(plan: Plan, *, work: Sequence[Work]) -> dict[str, EncoderFiles]:
    """By modality with work, the local files of its encoder; none where this is the one machine."""
    if len(machines()) < 2:
        return {}
    found = {}
    for modality in dict.fromkeys(one.modality for one in work):
        encoder = plan.modalities[modality].feature.encoder
        paths = encoder.local_files()
        if paths:
            found[modality] = EncoderFiles(paths=paths, content=ray.put(read_files(encoder)))
    return found


def _run(
    plan: Plan, *, work: Sequence[Work], storage: Storage, actors: Actors
) -> Iterator[ShardResult]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    blocks = [
        {"work": [_WORK.dump_json(one).decode() for one in block]}
        for block in blocks_of(work, actors=actors.count)
    ]
    attempts = (
        ray.remote(Attempts)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=beside_driver(),
        )
        .remote()
    )
    with warnings.catch_warnings():
        # There is no other way to say how often a task is tried again, until Ray 2.64.
        warnings.filterwarnings("ignore", message=r"`ray_remote_args")
        shards = ray.data.from_blocks([pa.table(block) for block in blocks]).map_batches(
            ShardEncoder,
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=2),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
            fn_constructor_kwargs={
                "storage": storage,
                "source": plan.source,
                "features": {m: part.feature for m, part in plan.modalities.items()},
                "payload_key_by": plan.dataset.payload_key,
                "limits": plan.dataset.limits,
                "threads": os.environ.get("OMP_NUM_THREADS") or str(actors.threads),
                "attempts": attempts,
                "files": _files_of(plan, work=work),
            },
            ray_remote_args_fn=_lives,
        )
    for batch in shards.iter_batches(batch_size=None, prefetch_batches=0):
        yield from results_of(batch)


def results_of(batch: Mapping[str, Sequence[str]]) -> Iterator[ShardResult]:
    """What an actor gave, one of EXPECTED raised if that was an error."""
    for result, error, message in zip(*(batch[name] for name in _row()), strict=True):
        if error:
            raise next(kind for kind in EXPECTED if kind.__name__ == error)(message)
        yield _RESULT.validate_json(result)


def _row(*, result: str = "", error: str = "", message: str = "") -> dict[str, list[str]]:
    """A row of what the actors give: a result, or an error."""
    return {"result": [result], "error": [error], "message": [message]}


def _told(error: Exception, *, what: str) -> tuple[str, str]:
    """Which of EXPECTED an actor's error is, and its message; any other is a BrokenEncoder."""
    for kind in EXPECTED:
        if isinstance(error, kind):
            return kind.__name__, str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename}:{place.lineno}, in {place.name}"
    return BrokenEncoder.__name__, f"{what}: {type(error).__name__}: {error} ({where})"


def _lives() -> dict[str, int]:
    """An actor that dies is made again; a shard that kills its actor again and again is not."""
    return {"max_restarts": -1, "max_task_retries": DEATHS}
