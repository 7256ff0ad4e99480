"""The table → sample shards: ids, targets, splits, slices and what stands for each payload.

Shard boundaries follow the hash of the sample's id alone, so that all modalities share them
and neither a changed payload nor a changed label moves them. A scan costs one pass over the
table, one `stat` a payload behind a URI, and 8 bytes a row (24 while they are sorted, at the end)
to prove that the ids are unique.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import PayloadColumns, payload_keys, plain_array
from features.fingerprint import DIGEST_BYTES, fingerprint, nearest_hint
from features.fit import FitSample
from features.sources import RowRange, Source, SourceError
from features.spec import SPLITS, DatasetSpec, FeatureSpec, ShardSize, SplitSpec

KEY = pa.binary(DIGEST_BYTES)


@dataclass(frozen=True, kw_only=True)
class SampleShard:
    """A run of consecutive samples."""

    fingerprint: str
    """Hash of all that the shard's file holds."""
    labels: str
    """Hash of ids, splits and targets alone, which is what training depends on."""
    rows: int
    ranges: tuple[RowRange, ...]
    """Where the samples stand in the source."""
    keys: Mapping[str, str]
    """Per modality with at least one payload here: hash of the payload keys, in order."""
    payloads: Mapping[str, int]
    """Per modality: how many payloads are not missing."""

    @property
    def path(self) -> str:
        return f"samples/{self.fingerprint}.parquet"


@dataclass(kw_only=True)
class _Pending:
    """Rows that wait for the end of their shard."""

    tables: list[pa.Table] = field(default_factory=list)
    ranges: list[RowRange] = field(default_factory=list)
    rows: int = 0


def scan_samples(
    source: Source,
    *,
    dataset: DatasetSpec,
    payload_columns: Mapping[str, PayloadColumns],
    target: str | None,
) -> Iterator[tuple[SampleShard, pa.Table]]:
    """Read the table in order and yield its sample shards, each with its rows.

    The rows' columns are `sample_id`, `split`, `target.<column>`, `slice.<column>` and
    `key.<modality>`. Raises SourceError for a null or repeated id and an unknown split;
    repeated ids are found at the end of the scan.
    """
    names = [dataset.id, *dataset.slices, *(n for c in payload_columns.values() for n in c.names)]
    names += [name for name in (target, dataset.split.column, dataset.split.group) if name]
    columns = list(dict.fromkeys(names))
    text = [dataset.id, *dataset.slices, dataset.split.column, dataset.split.group]
    text += [name for c in payload_columns.values() for name in c.text_names]
    id_hashes: list[np.ndarray] = []
    pending = _Pending()
    rows_before = 0
    for chunk in source.scan(columns=columns, text=[name for name in text if name]):
        ids = _ids(chunk.table[dataset.id], name=dataset.id, first_row=rows_before)
        digests = [hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids.to_pylist()]
        hashes = np.frombuffer(b"".join(digests), dtype="<u8")
        id_hashes.append(hashes)
        rows = _sample_rows(
            chunk.table,
            ids=ids,
            dataset=dataset,
            payload_columns=payload_columns,
            target=target,
            folder=source.folder,
        )
        start = 0
        for stop, ends in _cut(hashes, size=dataset.shard_rows, pending_rows=pending.rows):
            pending.tables.append(rows.slice(start, stop - start))
            pending.ranges.append(
                RowRange(
                    file=chunk.file, start=chunk.first_row + start, stop=chunk.first_row + stop
                )
            )
            pending.rows += stop - start
            start = stop
            if ends:
                yield _finish(pending, modalities=tuple(payload_columns))
                pending = _Pending()
        rows_before += chunk.table.num_rows
    if pending.rows:
        yield _finish(pending, modalities=tuple(payload_columns))
    if rows_before == 0:
        raise SourceError(f"{source.files[0]}: the table has no rows")
    _refuse_repeated(np.concatenate(id_hashes), source=source, column=dataset.id)


def fit_features(
    source: Source, *, dataset: DatasetSpec, features: Mapping[str, FeatureSpec]
) -> dict[str, FeatureSpec]:
    """The features, with encoders that need statistics of the training split fitted to it.

    Costs a pass over their columns, if there are such encoders; memory is that of a `FitSample`
    each. SourceError if the training split has no payload to fit to.
    """
    waiting = {m: feature for m, feature in features.items() if feature.encoder.needs_fit}
    if not waiting:
        return dict(features)
    columns = {m: feature.payload_columns for m, feature in waiting.items()}
    found = {m: FitSample() for m in waiting}
    divided = [name for name in (dataset.split.column, dataset.split.group) if name]
    names = [*divided, *(name for c in columns.values() for name in c.names)]
    text = [*divided, *(name for c in columns.values() for name in c.text_names)]
    for chunk in source.scan(columns=list(dict.fromkeys(names)), text=text):
        train = [split == "train" for split in _splits(chunk.table, dataset=dataset).to_pylist()]
        for modality, read in columns.items():
            payloads = read.payloads(chunk.table)
            keys = payload_keys(
                [p if wanted else None for p, wanted in zip(payloads, train, strict=True)],
                columns=read,
                folder=source.folder,
                by=dataset.payload_key,
            )
            found[modality].add(keys, payloads, train)
    fitted = dict(features)
    for modality, feature in waiting.items():
        encoder = found[modality].fit(
            feature.encoder,
            columns=columns[modality],
            folder=source.folder,
            limits=dataset.limits,
        )
        fitted[modality] = feature.model_copy(update={"encoder": encoder})
    return fitted


def split_of(group: str, *, split: SplitSpec) -> str:
    """The split of a group: where the hash of its name falls in 0..1."""
    digest = hashlib.blake2b(group.encode(), digest_size=8, person=b"split").digest()
    place = int.from_bytes(digest, "little") / 2**64
    if place < split.test:
        return "test"
    return "validation" if place < split.test + split.validation else "train"


def _ids(column: pa.ChunkedArray, *, name: str, first_row: int) -> pa.Array:
    ids = _as_text(column, name=name)
    if ids.null_count:
        row = first_row + pc.index(pc.is_null(ids), True).as_py()
        raise SourceError(f"column {name!r}, row {row}: the id is null; every sample needs one")
    return ids


def _sample_rows(
    table: pa.Table,
    *,
    ids: pa.Array,
    dataset: DatasetSpec,
    payload_columns: Mapping[str, PayloadColumns],
    target: str | None,
    folder: str,
) -> pa.Table:
    columns: dict[str, pa.Array] = {"sample_id": ids, "split": _splits(table, dataset=dataset)}
    if target is not None:
        columns[f"target.{target}"] = _labels(table[target], name=target)
    for name in dataset.slices:
        columns[f"slice.{name}"] = _as_text(table[name], name=name)
    for modality, payload in payload_columns.items():
        keys = payload_keys(
            payload.payloads(table), columns=payload, folder=folder, by=dataset.payload_key
        )
        columns[f"key.{modality}"] = pa.array(keys, KEY)
    return pa.table(columns)


def _labels(column: pa.ChunkedArray, *, name: str) -> pa.Array:
    """Labels as text, int64 or booleans; whole floats (integers with gaps, in pandas) as int64."""
    labels = plain_array(column)
    found = labels.type
    if pa.types.is_floating(found):
        labels = pc.if_else(pc.is_nan(labels), pa.scalar(None, found), labels)
        try:
            return labels.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise SourceError(
                f"column {name!r} holds fractions; a class is text, an integer or a boolean"
            ) from error
    if pa.types.is_integer(found):
        return labels.cast(pa.int64())
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return labels.cast(pa.string())
    if pa.types.is_boolean(found) or pa.types.is_null(found):
        return labels
    raise SourceError(f"column {name!r} holds {found}; a class is text, an integer or a boolean")


def _as_text(column: pa.ChunkedArray, *, name: str) -> pa.Array:
    array = plain_array(column)
    try:
        return array.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise SourceError(f"column {name!r} holds {array.type}, not text or numbers") from error


def _splits(table: pa.Table, *, dataset: DatasetSpec) -> pa.Array:
    if dataset.split.group is not None:
        groups = _as_text(table[dataset.split.group], name=dataset.split.group)
        return pa.array(
            [None if g is None else split_of(g, split=dataset.split) for g in groups.to_pylist()],
            pa.string(),
        )
    assert dataset.split.column is not None
    splits = _as_text(table[dataset.split.column], name=dataset.split.column)
    for found in pc.unique(splits).to_pylist():
        if found is not None and found not in SPLITS:
            raise SourceError(
                f"column {dataset.split.column!r} holds {found!r}; {nearest_hint(found, SPLITS)}"
                f"a split is one of {', '.join(SPLITS)}, or null for a sample that is not used"
            )
    return splits


def _cut(hashes: np.ndarray, *, size: ShardSize, pending_rows: int) -> Iterator[tuple[int, bool]]:
    """Ends (exclusive) of the shards' parts in a chunk, and whether the shard ends there."""
    rows = pending_rows
    candidates = hashes % np.uint64(size.target) == 0
    for i, candidate in enumerate(candidates.tolist(), start=1):
        rows += 1
        if (candidate and rows >= size.min) or rows >= size.max:
            yield i, True
            rows = 0
    if rows and len(hashes):
        yield len(hashes), False


def _finish(pending: _Pending, *, modalities: Sequence[str]) -> tuple[SampleShard, pa.Table]:
    try:
        table = pa.concat_tables(pending.tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise SourceError(f"a column changes its type within the table: {error}") from error
    digests = {name: _column_digest(table[name]) for name in table.column_names}
    payload_counts = {m: table.num_rows - table[f"key.{m}"].null_count for m in modalities}
    shard = SampleShard(
        fingerprint=fingerprint(
            {"columns": digests, "types": [str(t) for t in table.schema.types]}
        ),
        labels=fingerprint(
            {
                name: [digest, str(table.schema.field(name).type)]
                for name, digest in digests.items()
                if not name.startswith(("key.", "slice."))
            }
        ),
        rows=table.num_rows,
        ranges=tuple(_joined(pending.ranges)),
        keys={m: digests[f"key.{m}"] for m in modalities if payload_counts[m]},
        payloads=payload_counts,
    )
    return shard, table


def _joined(ranges: Sequence[RowRange]) -> Iterator[RowRange]:
    """The ranges, with those that continue one another made one."""
    current: RowRange | None = None
    for following in ranges:
        if current and (current.file, current.stop) == (following.file, following.start):
            current = RowRange(file=current.file, start=current.start, stop=following.stop)
            continue
        if current:
            yield current
        current = following
    if current:
        yield current


def _column_digest(column: pa.ChunkedArray) -> str:
    """Hash of a column's values and nulls, whatever its chunks and buffers are."""
    array = plain_array(column)
    nulls = np.packbits(array.is_null().to_numpy(zero_copy_only=False))
    values = array if pa.types.is_fixed_size_binary(array.type) else array.cast(pa.string())
    values = pc.fill_null(values.cast(pa.binary()), b"")
    lengths = pc.binary_length(values).to_numpy()
    data = b"".join(values.to_pylist())
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    length = len(array).to_bytes(8, "little")
    for part in (length, nulls.tobytes(), lengths.astype("<i4").tobytes(), data):
        digest.update(part)
    return digest.hexdigest()


def sample_fingerprint(rows: pa.Table) -> str:
    """The fingerprint of the sample shard that holds these rows, and nothing else."""
    digests = {name: _column_digest(rows[name]) for name in rows.column_names}
    return fingerprint({"columns": digests, "types": [str(t) for t in rows.schema.types]})


def _refuse_repeated(hashes: np.ndarray, *, source: Source, column: str) -> None:
    """Raise SourceError, with ids and rows, if an id stands in two rows."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if not len(same):
        return
    suspects = sorted({int(row) for place in same for row in order[place : place + 2]})
    wanted = set(suspects)
    rows_by_id: dict[str, list[int]] = {}
    row = 0
    for chunk in source.scan(columns=[column], text=[column]):
        for value in _as_text(chunk.table[column], name=column).to_pylist():
            if row in wanted:
                rows_by_id.setdefault(value, []).append(row)
            row += 1
    repeated = {value: rows for value, rows in rows_by_id.items() if len(rows) > 1}
    if not repeated:
        return
    shown = [f"{value!r} in rows {', '.join(map(str, rows))}" for value, rows in repeated.items()]
    more = f", and {len(shown) - 5} more" if len(shown) > 5 else ""
    raise SourceError(
        f"column {column!r}: ids must be unique, but {'; '.join(shown[:5])}{more} "
        "(rows are counted from 0)"
    )
