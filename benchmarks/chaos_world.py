"""What the runs of `benchmarks.chaos` begin with in S3, and what they leave behind."""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import pyarrow as pa
from PIL import Image

from features.storage import open_storage
from features.store import Store, parquet_bytes
from features.verification import verify

CLASSES = ("flat", "upright", "slanted")


def make_bucket(name: str) -> None:
    """An empty bucket, where the environment leads to."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def write_tables(root: str, *, rows: int, scored: int, seed: int = 0) -> None:
    """Drawings of bars with a sentence each, some of either missing, one broken; and a table to
    score, whose sentences are new.
    """
    storage = open_storage(root)
    rng = np.random.default_rng(seed)
    table = []
    for number in range(rows):
        label = int(rng.integers(len(CLASSES)))
        photo = None if rng.random() < 0.15 else f"photos/{number}.png"
        if photo:
            storage.replace(photo, _drawn(label, rng=rng))
        table.append(
            {
                "sample_id": f"s{number:05}",
                "text": None if rng.random() < 0.15 else _said(label, number, rng=rng),
                "photo": photo,
                "label": CLASSES[label],
                "split": "train" if number % 5 < 3 else ("validation", "test")[number % 5 - 3],
            }
        )
    broken = next(row["photo"] for row in table if row["photo"])
    storage.replace(broken, b"\x89PNG cut short")
    new = [
        {
            "sample_id": f"n{number:05}",
            "text": _said(int(rng.integers(len(CLASSES))), rows + number, rng=rng),
            "photo": f"photos/{number}.png" if number < 100 and table[number]["photo"] else None,
        }
        for number in range(scored)
    ]
    for name, content in (("table", table), ("new", new)):
        storage.replace(f"{name}.parquet", parquet_bytes(pa.Table.from_pylist(content)))


def word_vectors(*, seed: int = 0) -> str:
    """A file of vectors of the words in the sentences, of 8 numbers each."""
    words = ["a", "bar", "number", *CLASSES, *map(str, range(1000))]
    drawn = np.random.default_rng(seed).normal(size=(len(words), 8))
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in row)}" for word, row in zip(words, drawn)]
    return "\n".join([f"{len(words)} 8", *lines, ""])


def _said(label: int, number: int, *, rng: np.random.Generator) -> str:
    said = label if rng.random() < 0.8 else int(rng.integers(len(CLASSES)))
    return f"a {CLASSES[said]} bar, number {number}"


def _drawn(label: int, *, rng: np.random.Generator) -> bytes:
    drawn = rng.integers(0, 200, size=(32, 32)).astype(np.uint8)
    if label == 0:
        drawn[14:17] = 255
    elif label == 1:
        drawn[:, 14:17] = 255
    else:
        np.fill_diagonal(drawn, 255)
    sink = io.BytesIO()
    Image.fromarray(drawn).save(sink, "png")
    return sink.getvalue()


def left_behind(root: str, *, name: str) -> dict[str, str]:
    """Digests of all that must be equal, of what a pipeline has left in its store."""
    found: dict[str, str] = {}
    store = Store(open_storage(f"{root}/{name}/store"))
    snapshot = store.latest("chaos")
    if snapshot is None:
        return found
    found["snapshot"] = snapshot.id
    found["damages"] = str(verify(store, snapshot).damages)
    for modality, part in snapshot.modalities.items():
        for shard in (path for over in part.shards for path in over):
            place = f"embeddings/{part.encoder_fingerprint}/{shard}.parquet"
            found[f"{modality} shard {shard}"] = _digest(store.read_table(place))
    for entry in store.storage.walk("candidates"):
        if entry.path.endswith(".parquet"):
            found[entry.path] = _digest(store.read_table(entry.path))
    found["temporary files"] = str(
        [e.path for e in store.storage.walk() if e.path.endswith(".tmp")]
    )
    found["unfinished fits"] = str(sorted(e.path for e in store.storage.walk("train-runs")))
    found["leases"] = str(sorted(store.storage.list("leases")))
    answers = Store(open_storage(f"{root}/{name}/answers"))
    for entry in answers.storage.walk():
        if entry.path.endswith(".parquet"):
            found[f"answers {entry.path}"] = _digest(answers.read_table(entry.path))
    found["champion"] = _champion(name)
    return found


def _champion(name: str) -> str:
    from workflows import tracking
    from workflows.promotion import registry

    with tracking.connected(os.environ["MLFLOW_TRACKING_URI"]) as client:
        champion = registry.champion_of(client, model=name)
        if champion is None:
            return "none"
        return f"version {champion.version}: {registry.tags_of(champion)['candidate']}"


def _digest(table: pa.Table) -> str:
    """Of the columns, with their types and every bit of their values."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    return hashlib.blake2b(sink.getvalue(), digest_size=12).hexdigest()
