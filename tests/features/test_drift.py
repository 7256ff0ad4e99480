"""How a snapshot differs from the one before, against counting and numpy over the whole."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from features.drift import compare, cosine_by_chance, count_changes
from features.kept_statistics import gather_statistics
from features.snapshot import ModalityShards
from features.statistics import merge_statistics, statistics_of
from features.stored_embeddings import read_embeddings
from tests.features.test_statistics import Counting
from tests.features.world import LettersSpec

BY_KEYS, BY_SKETCHES = 8_000_000, 0


def drift_of(world, before, after, **options):
    statistics = tuple(gather_statistics(world.store, s) for s in (before, after))
    return compare(before, after, statistics=statistics, store=world.store, **options)


def changes_of(world, before, after, *, most):
    statistics = [gather_statistics(world.store, s).modalities for s in (before, after)]
    return count_changes(
        before, after, modalities=list(after.modalities), store=world.store,
        old=statistics[0], new=statistics[1], most=most,
    )  # fmt: skip


def insert(world):
    new = world.frame[:9].assign(id=[f"n{i}" for i in range(9)], text="neu", note="neu")
    world.frame = pd.concat([world.frame[:300], new, world.frame[300:600], world.frame[650:]])
    world.frame = world.frame.reset_index(drop=True)


def edit(world):
    world.frame.loc[[3, 400, 401], "text"] = ["a", "b", "b"]
    world.frame.loc[500:520, "note"] = "note 7"


def shuffle(world):
    world.frame = world.frame.sample(frac=1, random_state=1).reset_index(drop=True)


def relabel(world):
    world.frame["label"] = 1


@pytest.mark.parametrize("act", [insert, edit, shuffle, relabel])
@pytest.mark.parametrize("most", [BY_KEYS, BY_SKETCHES])
def test_what_changed_is_what_a_count_of_all_payloads_says(world, act, most):
    """900 payloads are few enough for the sketches of the shards to be nearly exact, too."""
    before = [world.frame[m].dropna() for m in world.specs]
    _, _, first = world.run()
    act(world)
    _, _, second = world.run()
    found = changes_of(world, first, second, most=most)
    for modality, old in zip(world.specs, before, strict=True):
        new = world.frame[modality].dropna()
        kept = (Counter(old) & Counter(new)).total()
        change = found[modality]
        assert (change.before, change.after) == (len(old), len(new))
        assert change.estimated == (most == BY_SKETCHES and act is not relabel)
        assert abs(change.kept - kept) <= (0 if most == BY_KEYS else 20)
        assert change.new == change.after - change.kept
        assert change.removed == change.before - change.kept


def test_unchanged_shards_are_not_read(world):
    _, _, first = world.run()
    world.frame.loc[[3, 700], "text"] = ["a", "b"]
    _, _, second = world.run()
    statistics = tuple(gather_statistics(world.store, s) for s in (first, second))
    world.store.storage = Counting(world.store.storage.root)
    compare(first, second, statistics=statistics, store=world.store)
    sides = [{s.path for s in snapshot.samples} for snapshot in (first, second)]
    assert sorted(world.store.storage.opened) == sorted(sides[0] ^ sides[1])
    assert len(sides[0] ^ sides[1]) == 4 < len(sides[0])


def test_directions_and_norms_are_those_of_all_vectors(world):
    _, _, first = world.run()
    world.frame.loc[600:, "text"] = "eeeeeeeeeeeeeei"
    world.frame.loc[[1, 2], "note"] = ["", None]
    _, _, second = world.run()
    drift = drift_of(world, first, second)
    part = drift.modalities["text"]
    vectors = [
        read_embeddings(world.store, s, modality="text").values.astype(float)
        for s in (first, second)
    ]
    norms = [np.linalg.norm(v, axis=1) for v in vectors]
    means = [(v / n[:, None]).mean(axis=0) for v, n in zip(vectors, norms, strict=True)]
    cosine = means[0] @ means[1] / np.prod([np.linalg.norm(m) for m in means])
    assert part.cosine == pytest.approx(cosine, abs=1e-6) and part.cosine < 0.99
    assert 1 - part.cosine > 5 * (1 - part.cosine_by_chance)
    assert (part.norm.before, part.norm.after) == pytest.approx([n.mean() for n in norms])
    assert part.duplicates.before == 0 and part.duplicates.after == pytest.approx(1 / 3, abs=0.1)
    note = drift.modalities["note"]
    assert (note.missing.before, note.missing.after) == (0, 1 / 900)
    assert (note.bad.before, note.bad.after) == (0, 1 / 899)
    assert not note.is_unchanged and drift.samples.after == 900


def test_of_another_encoder_directions_say_nothing(world):
    _, _, first = world.run()
    world.specs["note"] = LettersSpec(scale=3)
    _, _, second = world.run()
    part = drift_of(world, first, second).modalities["note"]
    assert (part.same_encoder, part.cosine, part.norm_shift) == (False, None, None)
    assert (part.change.new, part.change.removed) == (0, 0) and not part.is_unchanged
    assert drift_of(world, first, second).modalities["text"].is_unchanged


def test_modalities_that_come_and_go(world):
    _, _, both = world.run()
    note = world.specs.pop("note")
    _, _, text = world.run()
    assert drift_of(world, both, text).removed == ("note",)
    world.specs["note"] = note
    drift = drift_of(world, text, both)
    assert drift.added == ("note",) and list(drift.modalities) == ["text"]


def test_what_is_not_known_of_the_earlier_snapshot_is_none(world):
    """Its shards have been collected: what the snapshot itself says can still be told."""
    _, _, first = world.run()
    insert(world)
    _, _, second = world.run()
    for shard in first.samples:
        world.store.storage.delete([shard.path])
    new = gather_statistics(world.store, second)
    part = compare(first, second, statistics=(None, new), store=world.store).modalities["text"]
    assert part.change is None and part.cosine is None and part.norm.before is None
    assert part.missing.before == 0.1 and part.duplicates.before is None


def test_unit_vectors_have_no_spread_to_measure_by():
    vectors = np.random.default_rng(2).normal(size=(500, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float16)
    from features.drift import _norm_shift

    found = summed(vectors)
    assert found.norm_std > 0 and _norm_shift(found, found) is None
    assert _norm_shift(summed(np.eye(9)), summed(np.eye(9))) is None
    wide, wider = summed(np.diag([1.0, 3.0])), summed(np.diag([2.0, 4.0]))
    assert _norm_shift(wide, wider) == pytest.approx(1.0)


def summed(vectors):
    part = ModalityShards(
        kind="text", encoder={}, encoder_fingerprint="e", dim=8, shards=(),
        present=len(vectors), missing=0, bad=0,
    )  # fmt: skip
    keys = [i.to_bytes(16, "little") for i in range(len(vectors))]
    return merge_statistics([statistics_of(vectors, keys=keys)], of=part)


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_chance_turns_the_mean_as_far_as_it_is_said_to(spread):
    """The median of 200 pairs of samples of one distribution in 64 dimensions."""
    rng = np.random.default_rng(5)
    center = np.eye(64)[0] * 8
    off, expected = [], []
    for _ in range(200):
        one, other = (summed(center + spread * rng.normal(size=(rows, 64))) for rows in (150, 400))
        lengths = np.linalg.norm(one.direction) * np.linalg.norm(other.direction)
        off.append(1 - one.direction @ other.direction / lengths)
        expected.append(1 - cosine_by_chance(one, other))
    assert np.median(off) == pytest.approx(np.median(expected), rel=0.15)


def test_directions_that_have_no_mean_have_no_cosine_by_chance():
    spread = summed(np.random.default_rng(1).normal(size=(30, 256)))
    assert cosine_by_chance(spread, spread) is None
