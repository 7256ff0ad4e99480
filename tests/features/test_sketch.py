"""Payload keys counted in bounded memory, against counting them all."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from features.sketch import (
    ALL,
    JOINED_KEYS,
    SHARD_KEYS,
    below,
    join_sketches,
    shared,
    sketch_from,
    sketch_json,
    sketch_keys,
)


def key(payload):
    return hashlib.blake2b(str(payload).encode(), digest_size=16).digest()


def keys_of(payloads):
    unlike = {payload: key(payload) for payload in set(payloads)}
    return [unlike[payload] for payload in payloads]


def sketches(payloads, *, shards):
    """The payloads, dealt to some shards in runs."""
    keys = keys_of(payloads)
    return [sketch_keys(keys[i::shards]) for i in range(shards)]


def truly_duplicate(payloads):
    counts = Counter(payloads)
    return sum(counts[p] > 1 for p in payloads) / len(payloads)


def truly_shared(before, after):
    return (Counter(before) & Counter(after)).total() / len(before)


def mixture(rows, *, frequent, twice, seed):
    """Payloads of which one takes a share of the rows, and others stand there twice."""
    rng = np.random.default_rng(seed)
    many = int(rows * frequent)
    pairs = int(rows * twice / 2)
    payloads = ["frequent"] * many + [f"pair {i}" for i in range(pairs)] * 2
    payloads += [f"single {i}" for i in range(rows - len(payloads))]
    return [payloads[i] for i in rng.permutation(rows)]


def test_one_shard_is_counted_exactly():
    payloads = mixture(3000, frequent=0.1, twice=0.03, seed=1)
    found = sketch_keys(keys_of(payloads))
    assert not found.is_exact and len(found.hashes) == SHARD_KEYS
    assert found.duplicates.value == truly_duplicate(payloads) and found.duplicates.error == 0


def test_few_keys_are_counted_exactly_over_any_shards():
    payloads = mixture(700, frequent=0.2, twice=0.3, seed=2)
    found = join_sketches(sketches(payloads, shards=6))
    assert found.is_exact and found.distinct == len(set(payloads))
    assert found.duplicates.value == truly_duplicate(payloads)


@pytest.mark.parametrize(
    ("frequent", "twice"),
    [(0.0, 0.0), (0.0, 0.01), (0.0, 0.3), (0.0, 1.0), (0.2, 0.0), (0.01, 0.1), (0.9, 0.05)],
)
def test_many_keys_are_estimated_within_the_error_that_is_said(frequent, twice):
    payloads = mixture(60_000, frequent=frequent, twice=twice, seed=3)
    found = join_sketches(sketches(payloads, shards=20))
    assert len(found.hashes) <= JOINED_KEYS and not found.is_exact
    estimate = found.duplicates
    assert estimate.error < 0.01
    # A key that is in one shard once is not named by it: 20 shards miss at most 20 rows of one.
    allowed = 4 * estimate.error + 20 / len(payloads)
    assert abs(estimate.value - truly_duplicate(payloads)) <= allowed
    assert found.distinct == pytest.approx(len(set(payloads)), rel=4 / JOINED_KEYS**0.5)


def test_no_duplicates_are_no_estimate_of_a_few():
    found = join_sketches(sketches(range(60_000), shards=20)).duplicates
    assert (found.value, found.error) == (0, 0)


def test_the_error_is_a_standard_error():
    """Of 60 datasets, the estimate is within two errors for nearly all, and not for all of them."""
    off = []
    for seed in range(60):
        payloads = [f"{seed} {p}" for p in mixture(12_000, frequent=0, twice=0.2, seed=seed)]
        found = join_sketches(sketches(payloads, shards=4), size=500).duplicates
        off.append(abs(found.value - truly_duplicate(payloads)) / found.error)
    assert np.mean(np.array(off) < 2) >= 0.88
    assert np.max(off) > 1


def test_shards_join_in_any_order_and_grouping_to_the_sketch_of_all():
    payloads = mixture(20_000, frequent=0.05, twice=0.2, seed=4)
    parts = sketches(payloads, shards=7)
    whole = join_sketches(parts)
    regrouped = join_sketches([join_sketches(parts[4:]), parts[2], *parts[:2], parts[3]])
    counts = Counter(keys_of(payloads))
    below_limit = {
        number: count
        for k, count in counts.items()
        if (number := int.from_bytes(k[:6], "little")) < whole.limit
    }
    assert dict(zip(whole.hashes.tolist(), whole.counts.tolist(), strict=True)) == below_limit
    for name in ("rows", "limit"):
        assert getattr(whole, name) == getattr(regrouped, name)
    for name in ("hashes", "counts", "frequent", "frequent_counts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(regrouped, name))


def test_what_is_cut_away_far_above_the_limit_is_not_missed():
    payloads = mixture(40_000, frequent=0.05, twice=0.2, seed=5)
    parts = sketches(payloads, shards=20)
    whole = join_sketches(parts, size=500)
    cut = [below(part, limit=2 * whole.limit) for part in parts]
    assert sum(len(part.hashes) for part in cut) < sum(len(part.hashes) for part in parts)
    again = join_sketches(cut, size=500)
    np.testing.assert_array_equal(again.counts, whole.counts)
    assert again.duplicates == whole.duplicates


@pytest.mark.parametrize("rows", [0, 1, 5, 200, 5000])
def test_a_sketch_comes_back_from_json(rows):
    sketch = sketch_keys(keys_of([i // 2 if i < 100 else i for i in range(rows)]))
    again = sketch_from(json.loads(json.dumps(sketch_json(sketch))))
    for name, value in vars(sketch).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert sketch.limit == ALL if rows <= SHARD_KEYS else sketch.limit < ALL


@pytest.mark.parametrize("new", [0.0, 0.01, 0.5, 1.0])
def test_what_two_snapshots_share_is_estimated(new):
    before = mixture(30_000, frequent=0.0, twice=0.2, seed=6)
    count = int(len(before) * new)
    after = [f"new {i}" for i in range(count)] + before[count:]
    sides = [join_sketches(sketches(side, shards=10)) for side in (before, after)]
    found = shared(*sides)
    assert abs(found.value - truly_shared(before, after)) <= 4 * found.error + 1e-12
    assert found.error < 0.02
