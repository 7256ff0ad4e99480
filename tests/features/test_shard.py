"""The file of an embedding shard, as other readers see it, and sequences in it."""

import io
import json

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.embedding import embed_shards
from features.encoders import EncoderSpec
from features.encoding import Prepared, Rows, encode_rows, form_batches
from features.shard import (
    Embeddings,
    ShardFacts,
    column_checksum,
    embedding_bytes,
    merge_patches,
    read_vectors,
    shard_table,
)
from features.store import Store
from features.stored_embeddings import read_embedding_shard, read_embeddings
from tests.features.world import LettersSpec

RNG = np.random.default_rng(3)
FACTS = ShardFacts(encoder="e" * 32, modality="text", counts={"truncated": 2})


class Words(EncoderSpec):
    """One vector a word: its length and its place."""

    kind = "text"
    type: str = "tests.Words"

    @property
    def sequence(self):
        return True

    def load(self):
        return WordsEncoder()


class WordsEncoder:
    dim = 2
    budget = 12

    def prepare(self, payload):
        return payload.split()

    def size(self, prepared):
        return len(prepared)

    def encode(self, batch):
        return [np.array([[len(w), i] for i, w in enumerate(b)], np.float32) for b in batch]


def written(tmp_path, values, *, spec, keys=None):
    rows = len(values) + 3
    done = Rows(values={i + (i > 1): value for i, value in enumerate(values)})
    keys = keys or [bytes([i % 256]) * 16 for i in range(rows)]
    table = shard_table(done, keys=keys, spec=spec, dim=values[0].shape[-1], facts=FACTS)
    path = tmp_path / "shard.parquet"
    path.write_bytes(embedding_bytes(table))
    return path, done


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, 4096, 9000])
def test_vectors_are_read_in_place_as_any_reader_decodes_them(tmp_path, dtype, count):
    values = RNG.normal(size=(count, 24)).astype(dtype)
    path, _ = written(tmp_path, list(values), spec=LettersSpec(dtype=dtype))
    into = np.empty((count, 24), dtype)
    with open(path, "rb") as file, pq.ParquetFile(path) as parquet:
        read_vectors(file, parquet, into=into)
        metadata = {k.decode(): v.decode() for k, v in parquet.metadata.metadata.items()}
    np.testing.assert_array_equal(into, values)
    np.testing.assert_array_equal(np.stack(pd.read_parquet(path)["embedding"]), values)
    found = duckdb.sql(f"select row, embedding from '{path}' order by row").fetchnumpy()
    np.testing.assert_array_equal(np.stack(found["embedding"]), values)
    assert metadata["sensorium.checksum"] == column_checksum([values])
    assert json.loads(metadata["sensorium.counts"]) == {"truncated": 2}


def test_a_float16_shard_is_hardly_larger_than_its_numbers(tmp_path):
    values = RNG.normal(size=(4096, 384)).astype(np.float16)
    path, _ = written(tmp_path, list(values), spec=LettersSpec())
    assert path.stat().st_size < 1.03 * values.nbytes


def test_a_file_that_is_cut_is_refused_and_not_read_as_zeros(tmp_path):
    values = RNG.normal(size=(100, 24)).astype(np.float16)
    path, _ = written(tmp_path, list(values), spec=LettersSpec())
    whole = path.read_bytes()
    with pq.ParquetFile(path) as parquet, pytest.raises(OSError, match="ends"):
        read_vectors(io.BytesIO(whole[:1000]), parquet, into=np.empty((100, 24), np.float16))


def test_sequences_are_stored_without_padding_and_come_back_padded(tmp_path):
    parts = [RNG.normal(size=(n, 5)).astype(np.float16) for n in (3, 1, 4, 2)]
    path, _ = written(tmp_path, parts, spec=Words())
    table = pq.read_table(path)
    assert table["row"].to_pylist() == [0, 0, 0, 1, 3, 3, 3, 3, 4, 4]
    assert table["payload_key"].to_pylist()[:4] == [b"\0" * 16] * 3 + [b"\1" * 16]

    (tmp_path / "embeddings" / "e").mkdir(parents=True)
    path.rename(tmp_path / "embeddings" / "e" / "s.parquet")
    from features.storage import LocalStorage

    found = read_embedding_shard(Store(LocalStorage(tmp_path)), "s", encoder="e")
    assert found.rows.tolist() == [0, 1, 3, 4] and found.lengths.tolist() == [3, 1, 4, 2]
    values, mask = found.padded([2, 0])
    assert values.shape == (2, 4, 5) and mask.sum(axis=1).tolist() == [4, 3]
    np.testing.assert_array_equal(values[0], parts[2])
    np.testing.assert_array_equal(values[1, :3], parts[0])
    assert not values[1, 3:].any()
    means = np.stack([part.astype(np.float32).mean(axis=0) for part in parts])
    np.testing.assert_allclose(found.pooled().values, means, atol=1e-3)


def test_patches_of_sequences_join_in_row_order():
    first = Embeddings(
        rows=np.array([0, 5]), values=np.arange(8.0).reshape(4, 2), lengths=np.array([3, 1])
    )
    patch = Embeddings(rows=np.array([2]), values=np.full((2, 2), 9.0), lengths=np.array([2]))
    joined = merge_patches([first, patch])
    assert joined.rows.tolist() == [0, 2, 5] and joined.lengths.tolist() == [3, 2, 1]
    np.testing.assert_array_equal(joined.values[3:5], patch.values)


def test_a_whole_job_of_sequences(world):
    world.frame.loc[7, "text"] = "one two three four five six seven eight nine ten eleven twelve 13"
    world.specs = {"text": Words()}
    _, results, snapshot = world.run()
    found = read_embeddings(world.store, snapshot, modality="text")
    texts = world.frame["text"].dropna()
    assert found.lengths.tolist() == [len(text.split()) for text in texts]
    first = np.concatenate([[0], np.cumsum(found.lengths)[:-1]])
    expected = [len(text.split()[0]) for text in texts]
    np.testing.assert_array_equal(found.values[first, 0], expected)
    world.frame.loc[9, "text"] = "another text"
    _, results, _ = world.run()
    assert sum(result.embedded for result in results) == 1
    assert sum(result.copied for result in results) > 10


def test_batches_keep_the_budget_of_padded_size():
    rows = [Prepared(row=i, payload=None, size=size) for i, size in enumerate([5, 1, 9, 3, 3, 30])]
    batches = list(form_batches(rows, rows=3, budget=10))
    assert [[item.size for item in batch] for batch in batches] == [[30], [9], [5, 3], [3, 1]]
    assert [len(b) for b in form_batches(rows, rows=4, budget=None)] == [4, 2]


@pytest.mark.parametrize("given", [[np.ones((0, 2))], [np.ones((1, 3))], [np.ones(2)], []])
def test_a_sequence_of_the_wrong_shape_is_the_encoder_s_fault(given):
    class Wrong(WordsEncoder):
        def encode(self, batch):
            return given

    row = Prepared(row=0, payload="a", size=1)
    with pytest.raises(TypeError, match=r"\(T, 2\)"):
        encode_rows([row], spec=Words(), encoder=Wrong(), into=Rows())


def test_the_next_shard_is_read_while_the_present_one_is_encoded(world):
    """And an error of a later shard comes after the results of those before it."""
    plan = world.plan()
    from features.sample_shards import write_samples
    from features.sources import RowReader, SourceError
    from features.spec import FeatureSpec

    write_samples(plan, store=world.store)
    works = [work for work in plan.work if work.modality == "text"]
    begun = []

    def on_begin(work):
        begun.append(work.shard)
        if len(begun) == 4:
            raise SourceError("the table is gone")
        return {}

    spec = world.specs["text"]
    columns = FeatureSpec(column="text", encoder=spec).payload_columns
    stream = embed_shards(
        works,
        store=world.store,
        spec=spec,
        encoder=spec.load(),
        source=plan.source,
        reader=RowReader(plan.source, columns=columns.names),
        columns=columns,
        payload_key_by="stat",
        on_begin=on_begin,
    )
    results = []
    with pytest.raises(SourceError, match="gone"):
        for result in stream:
            results.append(result.shard)
    assert results == begun[:2] or results == begun[:3]
    written = world.store.shards_of(spec.fingerprint())
    assert set(begun[:3]) <= written
