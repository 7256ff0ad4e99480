"""Statistics of shards and snapshots, against numpy over all vectors; what gathering them reads."""

import dataclasses
import json
from collections import Counter

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from features.kept_statistics import (
    gather_statistics,
    keep_statistics,
    read_statistics,
    statistics_path,
)
from features.shard_names import embedding_path
from features.snapshot import ModalityShards
from features.statistics import (
    merge_statistics,
    statistics_from,
    statistics_json,
    statistics_of,
)
from features.storage import LocalStorage
from features.store import Store
from features.stored_embeddings import read_embeddings
from tests.features.world import LettersSpec

RNG = np.random.default_rng(11)


class Counting(LocalStorage):
    """A folder that remembers which files were opened or read."""

    def __init__(self, root):
        super().__init__(root)
        self.opened = []

    def open(self, path):
        self.opened.append(path)
        return super().open(path)

    def read(self, path):
        self.opened.append(path)
        return super().read(path)

    @property
    def embeddings(self):
        return [path for path in self.opened if path.startswith("embeddings/")]


def keys(count):
    return [RNG.bytes(16) for _ in range(count)]


def part(*, present=0, missing=0, bad=0):
    return ModalityShards(
        kind="text", encoder={}, encoder_fingerprint="e", dim=8, shards=(),
        present=present, missing=missing, bad=bad,
    )  # fmt: skip


def through_footer(found, **metadata):
    return statistics_from({"sensorium.statistics": statistics_json(found), **metadata})


def assert_like_numpy(found, vectors):
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    assert found.rows == len(vectors)
    assert found.norm_mean == pytest.approx(norms.mean(), rel=1e-12)
    assert found.norm_std == pytest.approx(norms.std(), rel=1e-9)
    assert found.norm_least == pytest.approx(norms.min(), rel=1e-12)
    assert found.norm_greatest == pytest.approx(norms.max(), rel=1e-12)
    np.testing.assert_allclose(
        found.direction, (exact / norms[:, None]).mean(axis=0), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 900], list(range(10, 1000, 10))])
def test_merged_statistics_are_those_of_all_rows(dtype, cuts):
    """Also where the mean is large beside the spread, which sums of squares cannot bear."""
    directions = RNG.normal(size=(1000, 24))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    lengths = 300 + RNG.normal(scale=2.0, size=1000)
    vectors = (directions * lengths[:, None]).astype(dtype)
    shards = [
        through_footer(statistics_of(rows, keys=keys(len(rows))))
        for rows in np.split(vectors, cuts)
    ]
    forwards = merge_statistics(shards, of=part(present=1000))
    backwards = merge_statistics(shards[::-1], of=part(present=1000))
    assert_like_numpy(forwards, vectors)
    assert forwards.norm_std == pytest.approx(backwards.norm_std, rel=1e-13)
    np.testing.assert_allclose(forwards.direction, backwards.direction, rtol=0, atol=1e-12)


def test_the_mean_direction_does_not_follow_the_longest_vector():
    vectors = np.eye(4, dtype=np.float32)[[0] * 99 + [1]]
    vectors[99] *= 1e6
    found = merge_statistics([statistics_of(vectors, keys=keys(100))], of=part(present=100))
    np.testing.assert_allclose(found.direction, [0.99, 0.01, 0, 0], rtol=1e-6)
    assert found.resultant == pytest.approx(np.hypot(0.99, 0.01))


def test_zero_vectors_and_empty_shards_have_no_direction():
    vectors = np.zeros((3, 4), np.float16)
    empty = statistics_of(vectors[:0], keys=[])
    found = merge_statistics(
        [through_footer(empty), through_footer(statistics_of(vectors, keys=keys(3)))],
        of=part(present=3),
    )
    assert (found.rows, found.norm_least, found.resultant) == (3, 0.0, 0.0)
    assert found.constant
    nothing = merge_statistics([empty], of=part())
    assert (nothing.norm_mean, nothing.norm_least, nothing.direction) == (None, None, None)
    assert nothing.missing_share == nothing.bad_share == 0


def test_counts_and_shares():
    one = through_footer(
        statistics_of(np.ones((4, 2), np.float32), keys=keys(4)),
        **{"sensorium.counts": '{"truncated": 2}', "sensorium.embedded": "3", "sensorium.bad": "1"},
    )
    found = merge_statistics([one, one], of=part(present=8, missing=10, bad=2))
    assert found.counts == {"truncated": 4} and found.computed == 6
    assert found.missing_share == 0.5 and found.bad_share == 0.2


@pytest.mark.parametrize(
    ("lost", "unknown"),
    [
        (("norm_m2",), {"norm_std"}),
        (("keys",), {"keys"}),
        (("norm_m2", "keys", "constant"), {"norm_std", "keys"}),
        (None, {"norm_std", "keys", "norm_mean", "norm_least", "norm_greatest", "direction"}),
    ],
)
def test_what_an_older_shard_does_not_say_is_unknown(lost, unknown):
    vectors = RNG.normal(size=(6, 3)).astype(np.float32)
    new = statistics_of(vectors, keys=keys(6))
    said = json.loads(statistics_json(new))
    old = {name: value for name, value in said.items() if name not in (lost or said)}
    footer = {"sensorium.rows": "6"} | ({"sensorium.statistics": json.dumps(old)} if old else {})
    found = merge_statistics([new, statistics_from(footer)], of=part(present=12))
    assert {name for name, value in vars(found).items() if value is None} == unknown
    assert found.rows == 12


def test_statistics_of_a_snapshot_are_those_of_its_vectors(world):
    world.frame.loc[[3, 300, 600], "note"] = "the same aeio"
    world.frame.loc[[5, 700], "text"] = ""
    _, _, snapshot = world.run()
    found = gather_statistics(world.store, snapshot)
    for modality in world.specs:
        embeddings = read_embeddings(world.store, snapshot, modality=modality)
        merged = found.modalities[modality]
        assert_like_numpy(merged, embeddings.values)
        assert merged.bad == snapshot.modalities[modality].bad
        counts = Counter(world.frame[modality].iloc[embeddings.rows])
        repeated = sum(count for count in counts.values() if count > 1)
        share = merged.keys.duplicates
        assert abs(share.value - repeated / len(embeddings.rows)) <= 4 * share.error + 1e-12
    assert found.modalities["text"].missing_share == pytest.approx(89 / 900, abs=0.002)


def test_a_changed_snapshot_costs_a_footer_a_new_shard_and_an_unchanged_one_none(world):
    _, _, first = world.run()
    kept = keep_statistics(world.store, first, previous=None)
    world.frame.loc[[10, 500], "text"] = ["other", "another"]
    _, results, second = world.run()
    assert len(results) == 2
    counting = Counting(world.store.storage.root)
    store = Store(counting)
    found = keep_statistics(store, second, previous=first)
    new = {
        embedding_path(encoder=second.modalities["text"].encoder_fingerprint, shard=r.shard)
        for r in results
    }
    assert sorted(counting.embeddings) == sorted(new)
    assert len(found.shards) == len(kept.shards) > 20
    counting.opened.clear()
    again = keep_statistics(store, second, previous=first)
    assert counting.embeddings == []
    whole = gather_statistics(world.store, second)
    for statistics in (found, again):
        for modality, merged in statistics.modalities.items():
            assert_equal(merged, whole.modalities[modality])


def assert_equal(one, other):
    assert one.keys.duplicates == other.keys.duplicates
    for name, value in vars(one).items():
        if name != "keys":
            np.testing.assert_array_equal(value, getattr(other, name))


def test_statistics_change_neither_the_snapshot_nor_a_shard(world):
    _, _, snapshot = world.run()
    before = world.files()
    keep_statistics(world.store, snapshot, previous=None)
    made = f"store/{statistics_path(snapshot.id)}"
    assert {path: state for path, state in world.files().items() if path != made} == before
    assert world.plan().work == () and world.run()[2].id == snapshot.id
    path = str(world.folder / made)
    ((rows,),) = duckdb.sql(f"SELECT sum(rows) FROM '{path}'").fetchall()
    assert rows == sum(part.present for part in snapshot.modalities.values())


@pytest.mark.parametrize("harm", ["cut", "layout", "of another"])
def test_a_file_that_is_of_no_use_is_made_again(world, harm):
    _, _, snapshot = world.run()
    keep_statistics(world.store, snapshot, previous=None)
    path = world.folder / "store" / statistics_path(snapshot.id)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "layout":
        table = pq.read_table(path).replace_schema_metadata({"sensorium.layout": "0"})
        pq.write_table(table, path)
    else:
        pq.write_table(pq.read_table(path).slice(1), path)
    assert read_statistics(world.store, snapshot) is None
    found = keep_statistics(world.store, snapshot, previous=None)
    assert read_statistics(world.store, snapshot).shards.keys() == found.shards.keys()


def test_sequences_count_by_their_mean_and_patches_are_shards(world):
    world.frame.loc[50, "text"] = "unusable"
    _, _, before = world.run()
    LettersSpec.log.clear()
    path = world.folder / "store"
    _, _, after = world.retry()
    assert after.id == before.id  # it is as bad as it was
    shards = before.modalities["text"].shards
    patched = dataclasses.replace(
        before.modalities["text"], shards=((*shards[0], *shards[1]), *shards[2:])
    )
    snapshot = dataclasses.replace(before, modalities={"text": patched})
    found = gather_statistics(Store(LocalStorage(path)), snapshot).modalities["text"]
    assert found.rows == before.modalities["text"].present
    vectors = np.array([[1.0, 0], [0, 1]], np.float32)
    assert statistics_of(vectors[:1].repeat(3, axis=0), keys=keys(3), pooled=True).constant == ""
