"""Whether the shards of a snapshot are what they say they are, and nothing is lost.

Each file is read once, whole, a row group at a time: memory is bounded by the largest shards'
rows and one row group of vectors, a few shards at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.samples import SampleShard, sample_fingerprint
from features.shard import column_checksum, vectors
from features.shard_names import embedding_path, quarantine_path, shard_fingerprint
from features.snapshot import ModalityShards, Snapshot
from features.store import Store

BATCH_ROWS = 4096
AT_ONCE = 4
"""Sample shards, with all that is over them, that are verified at once."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with a file."""

    path: str
    reason: str


@dataclass(kw_only=True)
class Verification:
    """What was read, and what is wrong with it."""

    files: int = 0
    embeddings: int = 0
    """Embedding shards among the files."""
    unsummed: int = 0
    """Embedding shards without a checksum: their numbers are finite, but may have changed."""
    rows: int = 0
    damages: list[Damage] = field(default_factory=list)

    def __iadd__(self, other: Verification) -> Verification:
        self.files += other.files
        self.embeddings += other.embeddings
        self.unsummed += other.unsummed
        self.rows += other.rows
        self.damages += other.damages
        return self


class _Wrong(ValueError):
    """What is wrong with the file at hand."""


def verify(
    store: Store,
    snapshot: Snapshot,
    *,
    on_shard: Callable[[Verification], None] | None = None,
) -> Verification:
    """Read all files of a snapshot and compare them with their names, footers and each other.

    A sample shard must hash to its name. An embedding shard must be of the encoder, width and
    type that the snapshot says, its row numbers ascending, its payload keys those of the samples,
    its values finite and as their checksum says. Each payload of the samples must have an
    embedding or stand in the quarantine, and not in two shards. `on_shard` is called for each
    sample shard with what was found of it. Raises OSError if the medium fails.
    """
    listed = {
        part.encoder_fingerprint: store.quarantined_shards_of(part.encoder_fingerprint)
        for part in snapshot.modalities.values()
    }
    total = Verification()

    def check(number: int) -> Verification:
        return _verify_samples(store, snapshot, number=number, listed=listed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(check, range(len(snapshot.samples))):
            total += found
            if on_shard:
                on_shard(found)
    return total


def _verify_samples(
    store: Store,
    snapshot: Snapshot,
    *,
    number: int,
    listed: dict[str, set[str]],
) -> Verification:
    """One sample shard and all that is over it."""
    shard = snapshot.samples[number]
    found = Verification(files=1, rows=shard.rows)
    keys: dict[str, pa.Array] = {}

    def read() -> None:
        with _opened(store, shard.path) as parquet:
            keys.update(_keys(parquet.read(), shard=shard, modalities=tuple(snapshot.modalities)))

    if fault := _fault(read):
        found.damages.append(Damage(path=shard.path, reason=fault))
    for modality, part in snapshot.modalities.items():
        over = part.shards[number]
        if over:
            found += _verify_modality(
                store,
                part=part,
                over=over,
                samples=shard,
                hashed=shard.keys.get(modality, ""),
                keys=keys.get(modality),
                quarantined=listed[part.encoder_fingerprint],
            )
    return found


def _keys(table: pa.Table, *, shard: SampleShard, modalities: Sequence[str]) -> dict[str, pa.Array]:
    """Per modality the payload keys of a sample shard, null where there is no payload."""
    if table.num_rows != shard.rows:
        raise _Wrong(f"it has {table.num_rows} rows, and the snapshot says {shard.rows}")
    made = sample_fingerprint(table)
    if made != shard.fingerprint:
        raise _Wrong(f"what it holds is not what it is named by, but {made}")
    return {m: table[f"key.{m}"].combine_chunks() for m in modalities}


def _verify_modality(
    store: Store,
    *,
    part: ModalityShards,
    over: Sequence[str],
    samples: SampleShard,
    hashed: str,
    keys: pa.Array | None,
    quarantined: Collection[str],
) -> Verification:
    """A modality's embedding shard over a sample shard, its patches, and their quarantine."""
    found = Verification()
    encoder = part.encoder_fingerprint
    held = np.zeros(samples.rows, dtype=bool)
    whole = keys is not None

    def attempt(path: str, act: Callable[[], None]) -> None:
        nonlocal whole
        found.files += 1
        if fault := _fault(act):
            whole = False
            found.damages.append(Damage(path=path, reason=fault))

    for shard in over:
        path = embedding_path(encoder=encoder, shard=shard)
        found.embeddings += 1

        def embeddings(path: str = path) -> None:
            with _opened(store, path) as parquet:
                rows, summed = _read_embeddings(parquet, part=part, keys=keys, rows=samples.rows)
            found.unsummed += not summed
            if held[rows].any():
                row = int(rows[held[rows]][0])
                raise _Wrong(f"row {row} has an embedding in another shard over the same samples")
            held[rows] = True

        attempt(path, embeddings)
    if hashed and over[0] != shard_fingerprint(encoder=encoder, keys=hashed):
        path = embedding_path(encoder=encoder, shard=over[0])
        found.damages.append(Damage(path=path, reason="its name is not that of these payloads"))
    for shard in over:
        if shard in quarantined:
            path = quarantine_path(encoder=encoder, shard=shard)

            def quarantine(path: str = path) -> None:
                with _opened(store, path) as parquet:
                    table = parquet.read()
                rows = table["row"].to_numpy()
                _compare_keys(rows, table["payload_key"], keys=keys, of=samples.rows)
                held[rows] = True

            attempt(path, quarantine)
    if whole and keys is not None:
        lost = np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False) & ~held)
        if len(lost):
            path = embedding_path(encoder=encoder, shard=over[0])
            reason = (
                f"{len(lost)} rows have a payload, but neither an embedding nor an entry in the "
                f"quarantine: {', '.join(map(str, lost[:5].tolist()))}"
            )
            found.damages.append(Damage(path=path, reason=reason))
    return found


@contextmanager
def _opened(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose pages are compared with their checksums as they are read."""
    with (
        store.storage.open(path) as file,
        pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False) as parquet,
    ):
        yield parquet


def _fault(read: Callable[[], None]) -> str | None:
    """What is wrong with a file that is read; None if nothing is. OSError of the medium."""
    try:
        read()
    except FileNotFoundError:
        return "it is not there"
    except _Wrong as error:
        return str(error)
    except (OSError, ValueError, KeyError) as error:
        # What Arrow says of a file that is damaged bears no number; what a system says, does.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return f"it cannot be read: {str(error).strip().splitlines()[0]}"
    return None


def _read_embeddings(
    parquet: pq.ParquetFile, *, part: ModalityShards, keys: pa.Array | None, rows: int
) -> tuple[np.ndarray, bool]:
    """The row numbers of an embedding shard, each once, and whether it has a checksum."""
    schema = parquet.schema_arrow
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    vector = schema.field("embedding").type
    for name, said, wanted in (
        ("encoder", metadata.get("sensorium.encoder"), part.encoder_fingerprint),
        ("width", metadata.get("sensorium.dim"), str(part.dim)),
        ("vectors' type", str(vector.value_type), _arrow_name(str(part.encoder["dtype"]))),
        ("vectors' width", str(vector.list_size), str(part.dim)),
    ):
        if said != wanted:
            raise _Wrong(f"its {name} is {said}, and the snapshot says {wanted}")
    sequence = metadata.get("sensorium.sequence") == "1"
    checksum = metadata.get("sensorium.checksum")
    own: list[np.ndarray] = []
    last = -1

    def parts() -> Iterator[np.ndarray]:
        nonlocal last
        for batch in parquet.iter_batches(
            batch_size=BATCH_ROWS, columns=["row", "payload_key", "embedding"]
        ):
            table = pa.Table.from_batches([batch])
            numbers = table["row"].to_numpy().astype(np.int64)
            if not len(numbers):
                continue
            if (np.diff(numbers, prepend=last) < (0 if sequence else 1)).any():
                raise _Wrong("its row numbers do not ascend")
            last = int(numbers[-1])
            _compare_keys(numbers, table["payload_key"], keys=keys, of=rows)
            values = vectors(table["embedding"])
            if not np.isfinite(values).all():
                row = int(numbers[~np.isfinite(values).all(axis=1)][0])
                raise _Wrong(f"the embedding of row {row} is not finite")
            own.append(np.unique(numbers))
            yield values

    made = column_checksum(parts())
    if checksum is not None and checksum != made:
        raise _Wrong(f"its embeddings are not those that were written: {made}, not {checksum}")
    return np.unique(np.concatenate([np.empty(0, np.int64), *own])), checksum is not None


def _compare_keys(
    numbers: np.ndarray, found: pa.ChunkedArray, *, keys: pa.Array | None, of: int
) -> None:
    """Raise if a row is none of the samples', or its payload key is another than theirs."""
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < of):
        raise _Wrong(f"it has row {int(numbers.max())}, and there are {of} samples")
    if keys is None:
        return
    wanted = keys.take(pa.array(numbers))
    if not found.combine_chunks().equals(wanted):
        row = next(
            int(n) for n, a, b in zip(numbers, found.to_pylist(), wanted.to_pylist()) if a != b
        )
        raise _Wrong(f"the payload key of row {row} is not that of the sample")


def _arrow_name(dtype: str) -> str:
    return str(pa.from_numpy_dtype(np.dtype(dtype)))
