"""Missing shards, computed one after another: read, decode, prepare, encode, write. No Ray here.

Three things go on at once: threads read and prepare the next window of rows (of the same shard
or the one after it), the encoder works on the present one, and the finished shard before it is
written. Memory is bounded by two windows of prepared payloads and two shards' embeddings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from features.broken_encoder import refuse_broken_shard
from features.columns import PayloadColumns
from features.copying import Copier
from features.decoders.base import DEFAULT_LIMITS, Limits
from features.encoders import Encoder, EncoderSpec
from features.encoding import Bad, Prepared, Rows, encode_rows
from features.plan import Work
from features.prepare import THREADS, Opening, Pace, Window, prepared_windows
from features.quarantine import quarantine_rows
from features.shard import ShardFacts, embedding_bytes, shard_table
from features.shard_names import embedding_path, patch_fingerprint, quarantine_path
from features.sources import RowReader, Source, rows_in_source
from features.store import Store, parquet_bytes

PROBES = 4
"""Copied rows that are tried for one to prove an encoder with."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of one piece of work, counted in rows."""

    modality: str
    shard: str
    """The shard that was computed, or that the patch is over."""
    embedded: int
    copied: int
    bad: int
    written: bool
    """False if another job had written the shard meanwhile, or there is nothing to write."""
    seconds: dict[str, float]
    """Wall time waiting for payloads (`wait`), in the encoder (`encode`) and writing (`write`);
    and, going on beside these, reading (`read`) and the threads' time to decode and prepare
    (`prepare`)."""
    patch: str = ""
    """The patch that was made, if the work was to try quarantined rows again."""


@dataclass(kw_only=True)
class _Shard:
    """A shard that is being computed."""

    work: Work
    keys: list[bytes | None]
    done: Rows = field(default_factory=Rows)
    copied: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "prepare", "wait", "encode", "write"), 0.0)
    )
    there: bool = False
    """Whether another job has written it."""


@dataclass(kw_only=True)
class _Step:
    """A window of a shard, and whether it is the shard's last."""

    shard: _Shard
    window: Window
    last: bool


def embed_shards(
    works: Iterable[Work],
    *,
    store: Store,
    spec: EncoderSpec,
    encoder: Encoder,
    source: Source,
    reader: RowReader,
    columns: PayloadColumns,
    payload_key_by: str,
    limits: Limits = DEFAULT_LIMITS,
    copier: Copier | None = None,
    on_begin: Callable[[Work], Mapping[int, str]] | None = None,
) -> Iterator[ShardResult]:
    """Compute shards of one modality and write each, with its quarantine first if it has any.

    A `copier` that is given remembers donors from one call to the next. `on_begin` is called
    before a shard is begun, and names rows that must not be touched, since they kill the process,
    each with the reason. Raises SourceError if the payloads are no longer those that were
    planned, OSError for a fault of the medium, BrokenEncoder; a bad payload raises nothing.
    """
    copier = copier or Copier(store)
    opening = Opening(
        columns=columns,
        encoder=encoder,
        folder=source.folder,
        key_by=payload_key_by,
        limits=limits,
    )
    pace = Pace(columns.kind)
    with (
        ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="prepare") as pool,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as reading,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writing,
        closing(pace),
    ):

        def steps() -> Iterator[_Step]:
            for work in works:
                killers = dict(on_begin(work)) if on_begin is not None else {}
                yield from _steps(
                    work,
                    killers=killers,
                    store=store,
                    copier=copier,
                    reader=reader,
                    opening=opening,
                    pool=pool,
                    pace=pace,
                )

        pending: Future[ShardResult] | None = None
        begun = time.perf_counter()
        for step in _one_ahead(steps(), pool=reading):
            shard = step.shard
            shard.seconds["wait"] += time.perf_counter() - begun
            begun = time.perf_counter()
            _encode(
                step,
                spec=spec,
                encoder=encoder,
                reader=reader,
                opening=opening,
                pool=pool,
                pace=pace,
            )
            shard.seconds["encode"] += time.perf_counter() - begun
            if step.last:
                if not shard.there:
                    refuse_broken_shard(
                        shard.done,
                        keys=shard.keys,
                        modality=shard.work.modality,
                        spec=spec,
                        dim=encoder.dim,
                    )
                if pending is not None:
                    yield pending.result()
                pending = writing.submit(_write, shard, store=store, spec=spec, dim=encoder.dim)
            begun = time.perf_counter()
        if pending is not None:
            yield pending.result()


def embed_shard(work: Work, **options: object) -> ShardResult:
    """Compute one shard; as `embed_shards`."""
    (result,) = embed_shards([work], **options)  # type: ignore[arg-type]
    return result


def _one_ahead(items: Iterator[T], *, pool: ThreadPoolExecutor) -> Iterator[T]:
    """The items, each made by another thread while the one before it is used."""
    end = object()
    following: Future[object] = pool.submit(next, items, end)
    while (item := following.result()) is not end:
        following = pool.submit(next, items, end)
        yield item  # type: ignore[misc]


def _steps(
    work: Work,
    *,
    killers: Mapping[int, str],
    store: Store,
    copier: Copier,
    reader: RowReader,
    opening: Opening,
    pool: ThreadPoolExecutor,
    pace: Pace,
) -> Iterator[_Step]:
    """A shard in windows; at least one, which may be empty."""
    path = embedding_path(encoder=work.encoder, shard=work.shard)
    if not work.only and store.storage.exists(path):
        yield _Step(shard=_Shard(work=work, keys=[], there=True), window=Window(), last=True)
        return
    begun = time.perf_counter()
    keys = store.read_table(work.samples, columns=[f"key.{work.modality}"])[0].to_pylist()
    shard = _Shard(work=work, keys=keys)
    if not work.only:
        shard.done.values.update(copier.copied(work, keys=keys))
        shard.copied = len(shard.done.values)
    shard.done.bad += [
        Bad(row=row, stage="crash", reason=reason) for row, reason in killers.items()
    ]
    wanted = [
        row
        for row in (work.only or range(len(keys)))
        if keys[row] is not None and row not in shard.done.values and row not in killers
    ]
    shard.seconds["read"] += time.perf_counter() - begun

    def read(rows: Sequence[int]) -> list[object]:
        begun = time.perf_counter()
        table = reader.read(rows_in_source(work.ranges, rows))
        values = opening.columns.payloads(table)
        shard.seconds["read"] += time.perf_counter() - begun
        return values

    left = len(wanted)
    for window in prepared_windows(
        wanted, read=read, keys=keys, opening=opening, pool=pool, pace=pace
    ):
        left -= window.rows
        yield _Step(shard=shard, window=window, last=not left)
    if not wanted:
        yield _Step(shard=shard, window=Window(), last=True)


def _encode(
    step: _Step,
    *,
    spec: EncoderSpec,
    encoder: Encoder,
    reader: RowReader,
    opening: Opening,
    pool: ThreadPoolExecutor,
    pace: Pace,
) -> None:
    shard, window = step.shard, step.window
    pace.give(len(window.bad))
    shard.done.bad += window.bad
    shard.counts.update(window.counts)
    shard.seconds["prepare"] += window.seconds

    def known_good() -> Iterator[Prepared]:
        own = RowReader(reader.source, columns=reader.columns, text=reader.text)
        for row in sorted(shard.done.values)[:PROBES]:
            yield from next(
                prepared_windows(
                    [row],
                    read=lambda rows: opening.columns.payloads(
                        own.read(rows_in_source(shard.work.ranges, rows))
                    ),
                    keys=shard.keys,
                    opening=opening,
                    pool=pool,
                )
            ).prepared

    encode_rows(
        window.prepared,
        spec=spec,
        encoder=encoder,
        into=shard.done,
        known_good=known_good,
        on_batch=pace.give,
    )


def _write(shard: _Shard, *, store: Store, spec: EncoderSpec, dim: int) -> ShardResult:
    work, done = shard.work, shard.done
    result = ShardResult(
        modality=work.modality,
        shard=work.shard,
        embedded=len(done.values) - shard.copied,
        copied=shard.copied,
        bad=len(done.bad),
        written=False,
        seconds=shard.seconds,
    )
    if shard.there or (work.only and not done.values):
        return result
    begun = time.perf_counter()
    name = work.shard
    if work.only:
        name = patch_fingerprint(
            encoder=work.encoder,
            shard=work.shard,
            keys={row: key for row in done.values if (key := shard.keys[row]) is not None},
        )
    facts = ShardFacts(
        encoder=work.encoder,
        modality=work.modality,
        copied=shard.copied,
        bad=len(done.bad),
        counts=dict(shard.counts),
        seconds=shard.seconds,
    )
    table = shard_table(done, keys=shard.keys, spec=spec, dim=dim, facts=facts)
    if done.bad and not work.only:
        path = quarantine_path(encoder=work.encoder, shard=name)
        store.storage.write_once(path, parquet_bytes(quarantine_rows(done.bad, keys=shard.keys)))
    path = embedding_path(encoder=work.encoder, shard=name)
    written = store.storage.write_once(path, embedding_bytes(table))
    shard.seconds["write"] = time.perf_counter() - begun
    return ShardResult(**{**vars(result), "written": written, "patch": name if work.only else ""})
