"""What a store holds, whether it is whole, and that no garbage is collected that a job needs."""

import dataclasses
import json
import os
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import features.lease
from features.fingerprint import fingerprint
from features.garbage import DAY, _indexes_of, collect_garbage
from features.kept_statistics import statistics_path
from features.lease import LeaseLost, announce, announce_job, announced
from features.quarantine import QUARANTINE_SCHEMA
from features.samples import SampleShard, sample_fingerprint
from features.shard import column_checksum
from features.shard_names import embedding_path, quarantine_path, shard_fingerprint
from features.snapshot import ModalityShards, Snapshot
from features.storage import LocalStorage, open_storage
from features.store import Store, parquet_bytes
from features.upkeep import StoreDamaged, inventory, kind_of
from features.verification import verify

DIM = 8
OLD = fingerprint("old encoder")
NEW = fingerprint("new encoder")


def key(text):
    return bytes.fromhex(fingerprint(text))


def write_embeddings(store, *, encoder, shard, rows, keys, values=None, **metadata):
    """An embedding shard as any writer may lay it out, with its checksum."""
    if values is None:
        values = np.random.default_rng(len(rows)).normal(size=(len(rows), DIM)).astype(np.float16)
    footer = {
        "sensorium.encoder": encoder,
        "sensorium.dim": str(DIM),
        "sensorium.checksum": column_checksum([values]),
    } | {f"sensorium.{name}": value for name, value in metadata.items()}
    table = pa.table(
        {
            "row": pa.array(rows, pa.int32()),
            "payload_key": pa.array(keys, pa.binary(16)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIM),
        }
    ).replace_schema_metadata(footer)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=7, use_dictionary=False)
    store.storage.write_once(embedding_path(encoder=encoder, shard=shard), sink.getvalue())


def make_snapshot(store, *, name, encoder, texts, commit=True):
    """A snapshot of two sample shards; every fifth sample has no payload, one is quarantined."""
    samples, over = [], []
    for part in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
        keys = [None if i % 5 == 4 else key(text) for i, text in enumerate(part)]
        table = pa.table(
            {
                "sample_id": [f"{text} {i}" for i, text in enumerate(part)],
                "split": ["train"] * len(part),
                "key.text": pa.array(keys, pa.binary(16)),
            }
        )
        hashed = fingerprint([k and k.hex() for k in keys])
        present = [row for row, k in enumerate(keys) if k]
        shard = SampleShard(
            fingerprint=sample_fingerprint(table),
            labels=fingerprint(part),
            rows=len(part),
            ranges=(),
            keys={"text": hashed},
            payloads={"text": len(present)},
        )
        store.write_samples(shard, rows=table)
        made = shard_fingerprint(encoder=encoder, keys=hashed)
        bad, *good = present
        quarantined = {"row": [bad], "payload_key": [keys[bad]], "stage": ["decode"]}
        store.storage.write_once(
            quarantine_path(encoder=encoder, shard=made),
            parquet_bytes(pa.table(quarantined | {"reason": ["bad"]}, schema=QUARANTINE_SCHEMA)),
        )
        write_embeddings(
            store, encoder=encoder, shard=made, rows=good, keys=[keys[row] for row in good]
        )
        samples.append(shard)
        over.append((made,))
    snapshot = Snapshot(
        name=name,
        target=None,
        slices=(),
        samples=tuple(samples),
        modalities={
            "text": ModalityShards(
                kind="text",
                encoder={"type": "hashing", "dtype": "float16"},
                encoder_fingerprint=encoder,
                dim=DIM,
                shards=tuple(over),
                present=sum(s.payloads["text"] for s in samples) - len(samples),
                missing=sum(s.rows - s.payloads["text"] for s in samples),
                bad=len(samples),
            )
        },
    )
    if commit:
        store.commit(snapshot)
    return snapshot


def texts(start, count=30):
    return [f"text {i}" for i in range(start, start + count)]


def embeddings(snapshot):
    part = snapshot.modalities["text"]
    return [
        embedding_path(encoder=part.encoder_fingerprint, shard=shard) for (shard,) in part.shards
    ]


def files(snapshot):
    """All that a snapshot needs, its own file too."""
    quarantine = [path.replace("embeddings/", "quarantine/") for path in embeddings(snapshot)]
    return {
        f"snapshots/{snapshot.id}.json",
        *(shard.path for shard in snapshot.samples),
        *embeddings(snapshot),
        *quarantine,
    }


def there(store):
    return {entry.path for entry in store.storage.walk()}


def age(store, seconds, paths=None):
    """Make files of a local store older."""
    for path in there(store) if paths is None else paths:
        full = f"{store.storage.root}/{path}"
        os.utime(full, (time.time() - seconds, os.stat(full).st_mtime - seconds))


@pytest.fixture
def store(tmp_path):
    return Store(LocalStorage(tmp_path / "store"))


# ------------------------------------------------------------------ inventory


def test_an_inventory_says_what_is_there_and_who_needs_it(storage_root):
    store = Store(open_storage(storage_root))
    assert inventory(store).kinds == {} and inventory(store).snapshots == ()
    first = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    second = make_snapshot(store, name="a", encoder=NEW, texts=texts(0))
    third = make_snapshot(store, name="b", encoder=NEW, texts=texts(15), commit=False)
    store.keep_attempt(third)
    write_embeddings(store, encoder=OLD, shard="f" * 32, rows=[0], keys=[key("x")])
    store.storage.replace(f"candidates/{'c' * 32}/record.json", b"{}")
    found = inventory(store)
    counts = {kind: amount.files for kind, amount in found.kinds.items()}
    # The samples of all three share some shards: those of the first two are the same.
    samples = len({s.path for one in (first, second, third) for s in one.samples})
    assert counts == {
        "samples": samples,
        "embeddings": len({p for s in (first, second, third) for p in embeddings(s)}) + 1,
        "quarantine": len({p for s in (first, second, third) for p in embeddings(s)}),
        "snapshots": 3,
        "places": 1,
        "latest": 1,
        "attempts": 1,
        "candidates": 1,
    }
    sizes = {entry.path: entry.size for entry in store.storage.walk()}
    assert sum(amount.bytes for amount in found.kinds.values()) == sum(sizes.values())
    uses = {use.snapshot.id: use for use in found.snapshots}
    assert uses[first.id].pointers == () and uses[second.id].pointers == ("latest/a.json",)
    assert uses[third.id].pointers == ("attempts/b",)
    for snapshot in (first, second, third):
        own = files(snapshot) - {f"snapshots/{snapshot.id}.json"}
        assert uses[snapshot.id].amount.bytes == sum(sizes[path] for path in own)
    assert found.encoders[OLD].snapshots == (first.id,)
    assert set(found.encoders[NEW].snapshots) == {second.id, third.id}
    assert found.encoders[OLD].unreferenced.files == 1
    assert found.encoders[NEW].unreferenced.files == 0
    store.storage.delete(embeddings(second)[:1])
    lacking = {use.snapshot.id: use.lacking for use in inventory(store).snapshots}
    assert lacking[second.id] == tuple(embeddings(second)[:1]) and lacking[first.id] == ()


def test_a_file_s_kind_is_known_by_its_path():
    assert kind_of("samples/x.parquet") == "samples"
    assert kind_of("embeddings/e/.x.parquet.0f.tmp") == "temporary"
    assert kind_of("snapshots") == "other" == kind_of("README.md") == kind_of("mine/x.parquet")


# ------------------------------------------------------------------ verification


@pytest.fixture
def snapshot(store):
    return make_snapshot(store, name="a", encoder=OLD, texts=texts(0, 100))


def damages(store, snapshot):
    return {damage.path: damage.reason for damage in verify(store, snapshot).damages}


def test_a_whole_snapshot_is_whole(storage_root):
    store = Store(open_storage(storage_root))
    snapshot = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    found = verify(store, snapshot)
    assert found.damages == [] and found.unsummed == 0
    assert (found.files, found.embeddings, found.rows) == (6, 2, 30)


@pytest.mark.parametrize("folder", ["samples", "embeddings", "quarantine"])
def test_every_kind_of_shard_is_missed_and_its_bytes_are_compared(store, snapshot, folder):
    path = min(path for path in files(snapshot) if path.startswith(folder))
    full = f"{store.storage.root}/{path}"
    with open(full, "rb") as file:
        body = file.read()
    whole, found = store.read_table(path), 0
    for place in range(0, len(body), 11):
        changed = bytearray(body)
        changed[place] ^= 0xFF
        with open(full, "wb") as file:
            file.write(changed)
        if path in damages(store, snapshot):
            found += 1
        else:  # a statistic, or the name of the writer
            assert store.read_table(path).equals(whole), place
    assert found > 0.5 * len(body) / 11
    with open(full, "wb") as file:
        file.write(body[: len(body) // 2])
    assert "cannot be read" in damages(store, snapshot)[path]
    open(full, "wb").close()
    assert "cannot be read" in damages(store, snapshot)[path]
    os.unlink(full)
    if folder == "quarantine":  # nobody says that a shard must have one, but its rows are missed
        (reason,) = damages(store, snapshot).values()
        assert "1 rows have a payload, but neither an embedding nor an entry" in reason
    else:
        assert damages(store, snapshot)[path] == "it is not there"


def test_a_vector_that_has_changed_is_found_by_the_checksum(store, snapshot):
    path = embeddings(snapshot)[0]
    table = store.read_table(path)
    flat = table["embedding"].combine_chunks().flatten().to_numpy().copy()
    flat[13] += np.float16(0.5)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM)
    changed = table.set_column(2, "embedding", column)
    pq.write_table(changed, f"{store.storage.root}/{path}")
    assert "not those that were written" in damages(store, snapshot)[path]
    without = {k: v for k, v in table.schema.metadata.items() if k != b"sensorium.checksum"}
    pq.write_table(changed.replace_schema_metadata(without), f"{store.storage.root}/{path}")
    found = verify(store, snapshot)
    assert found.damages == [] and found.unsummed == 1, "what has no checksum cannot be compared"


def test_a_shard_must_be_what_its_name_and_snapshot_say(store, snapshot):
    first = embeddings(snapshot)[0]
    root = store.storage.root
    table = store.read_table(first)

    def rewritten(change):
        metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        change(columns, metadata)
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), f"{root}/{first}")
        return damages(store, snapshot)[first]

    def rows(columns, metadata):
        columns["row"] = pc_reverse(columns["row"])

    def outside(columns, metadata):
        columns["row"] = pa.array(np.arange(len(columns["row"])) + 900, pa.int32())

    def keys(columns, metadata):
        columns["payload_key"] = pc_reverse(columns["payload_key"])

    def infinite(columns, metadata):
        flat = columns["embedding"].flatten().to_numpy().copy()
        flat[5 * DIM] = np.inf
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), DIM)

    def encoder(columns, metadata):
        metadata["sensorium.encoder"] = NEW

    def width(columns, metadata):
        metadata["sensorium.dim"] = "9"

    def single(columns, metadata):
        flat = columns["embedding"].flatten().cast(pa.float32())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, DIM)

    def pc_reverse(array):
        return array.take(pa.array(range(len(array))[::-1]))

    assert "row numbers do not ascend" in rewritten(rows)
    assert "there are 50 samples" in rewritten(outside)
    assert "payload key of row 1 is not that of the sample" in rewritten(keys)
    assert "the embedding of row 7 is not finite" in rewritten(infinite)
    assert f"encoder is {NEW}" in rewritten(encoder)
    assert "width is 9" in rewritten(width)
    assert "float" in rewritten(single) and "half" in rewritten(single)


def test_another_s_samples_under_a_name_are_found(store, snapshot):
    first, second = (f"{store.storage.root}/{shard.path}" for shard in snapshot.samples)
    os.replace(second, first)
    found = damages(store, snapshot)
    assert "what it holds is not what it is named by" in found[snapshot.samples[0].path]
    assert found[snapshot.samples[1].path] == "it is not there"


def test_a_row_that_is_lost_and_one_that_is_there_twice_are_found(store, snapshot):
    part = snapshot.modalities["text"]
    (shard,) = part.shards[0]
    path = embedding_path(encoder=OLD, shard=shard)
    table = store.read_table(path)
    values = np.stack(table["embedding"].to_pylist()).astype(np.float16)
    rows, keys = table["row"].to_pylist(), table["payload_key"].to_pylist()
    store.storage.delete([path])
    fewer = {"rows": rows[1:], "keys": keys[1:], "values": values[1:]}
    write_embeddings(store, encoder=OLD, shard=shard, **fewer)
    assert f"entry in the quarantine: {rows[0]}" in damages(store, snapshot)[path]
    # A patch gives the row an embedding after all; a second one would give it two.
    patch = {"rows": rows[:1], "keys": keys[:1], "values": values[:1]}
    for name in ("1" * 32, "2" * 32):
        write_embeddings(store, encoder=OLD, shard=name, **patch)

    def with_patches(*names):
        shards = ((shard, *names), *part.shards[1:])
        patched = dataclasses.replace(part, shards=shards)
        return dataclasses.replace(snapshot, modalities={"text": patched})

    assert damages(store, with_patches("1" * 32)) == {}
    (reason,) = damages(store, with_patches("1" * 32, "2" * 32)).values()
    assert reason == "row 1 has an embedding in another shard over the same samples"


def test_sequences_repeat_their_row_numbers(store, snapshot):
    path = embeddings(snapshot)[0]
    (shard,) = snapshot.modalities["text"].shards[0]
    table = store.read_table(path)
    rows = np.repeat(table["row"].to_numpy(), 3)
    keys = np.repeat(np.array(table["payload_key"].to_pylist(), dtype=object), 3).tolist()
    for flag, good in (("1", True), ("0", False)):
        store.storage.delete([path])
        write_embeddings(store, encoder=OLD, shard=shard, rows=rows, keys=keys, sequence=flag)
        assert (damages(store, snapshot) == {}) == good


def test_a_checksum_is_of_the_numbers_alone():
    values = np.random.default_rng(0).normal(size=(100, DIM)).astype(np.float16)
    whole = column_checksum([values])
    assert column_checksum([values[:30], values[30:30], values[30:]]) == whole
    assert column_checksum([values.astype(">f2")]) == whole
    assert column_checksum([np.asfortranarray(values)]) == whole
    assert column_checksum([values[::-1]]) != whole
    assert column_checksum([values.astype(np.float32)]) != whole


def test_verification_holds_no_whole_shard_in_memory(store):
    rows, dim = 60_000, 128
    values = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    keys = [i.to_bytes(16, "little") for i in range(rows)]
    table = pa.table(
        {"sample_id": [str(i) for i in range(rows)], "key.text": pa.array(keys, pa.binary(16))}
    )
    samples = SampleShard(
        fingerprint=sample_fingerprint(table), labels="", rows=rows, ranges=(),
        keys={"text": "h"}, payloads={"text": rows},
    )  # fmt: skip
    store.write_samples(samples, rows=table)
    name = shard_fingerprint(encoder=OLD, keys="h")
    footer = {
        "sensorium.encoder": OLD,
        "sensorium.dim": str(dim),
        "sensorium.checksum": column_checksum([values]),
    }
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    columns = {"row": pa.array(range(rows), pa.int32()), "payload_key": table["key.text"]}
    made = pa.table(columns | {"embedding": flat}).replace_schema_metadata(footer)
    store.storage.write_once(embedding_path(encoder=OLD, shard=name), parquet_bytes(made))
    part = ModalityShards(
        kind="text", encoder={"dtype": "float32"}, encoder_fingerprint=OLD, dim=dim,
        shards=((name,),), present=rows, missing=0, bad=0,
    )  # fmt: skip
    snapshot = Snapshot(
        name="a", target=None, slices=(), samples=(samples,), modalities={"text": part}
    )
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    del flat, made, columns
    pa.set_memory_pool(pool)
    try:
        assert verify(store, snapshot).damages == []
    finally:
        pa.set_memory_pool(before)
    assert values.nbytes > 30e6 and 0 < pool.max_memory() < values.nbytes / 2


# ------------------------------------------------------------------ garbage


def test_only_what_no_kept_snapshot_names_is_deleted(storage_root):
    store = Store(open_storage(storage_root))
    old = [make_snapshot(store, name="a", encoder=OLD, texts=texts(100 * i)) for i in range(3)]
    attempt = make_snapshot(store, name="a", encoder=OLD, texts=texts(700), commit=False)
    store.keep_attempt(attempt)
    other = make_snapshot(store, name="b", encoder=NEW, texts=texts(0))
    time.sleep(1.2)  # an S3 server tells seconds
    latest = make_snapshot(store, name="a", encoder=NEW, texts=texts(100))
    store.storage.replace(f"candidates/{'c' * 32}/record.json", b"{}")
    store.storage.replace("train-runs/x/checkpoint", b"state")
    store.storage.replace(f"encoders/{OLD}.json", b"{}")
    for snapshot in (*old, latest):
        store.storage.replace(statistics_path(snapshot.id), b"")
    time.sleep(1.2)
    before = there(store)
    dry = collect_garbage(store, keep=1, grace=0, dry_run=True)
    assert there(store) == before
    kept = {*files(latest), *files(attempt), *files(other)}
    found = collect_garbage(store, keep=1, grace=0)
    gone = before - there(store)
    beside = {path for s in old for path in (f"places/{s.id}.json", statistics_path(s.id))}
    assert gone == beside | ({path for snapshot in old for path in files(snapshot)} - kept)
    assert set(found.kept) == {latest.id, attempt.id, other.id} == set(dry.kept)
    assert found.kinds == dry.kinds and found.files == len(gone)
    for snapshot in (latest, attempt, other):
        assert verify(store, snapshot).damages == []
    assert collect_garbage(store, keep=1, grace=0).files == 0


def test_the_last_snapshots_of_a_name_and_all_young_ones_are_kept(store):
    made = [make_snapshot(store, name="a", encoder=OLD, texts=texts(100 * i)) for i in range(4)]
    for days, snapshot in zip((40, 30, 20, 10), made):
        age(store, days * DAY, files(snapshot))
    assert collect_garbage(store, keep=4).files == 0
    assert collect_garbage(store, keep=1, grace=41 * DAY).files == 0
    dry = collect_garbage(store, keep=2, dry_run=True)
    assert set(dry.kept) == {made[2].id, made[3].id}
    assert set(collect_garbage(store, keep=1, grace=25 * DAY).kept) == {made[2].id, made[3].id}
    assert not files(made[0]) & there(store) and files(made[2]) <= there(store)


def test_an_index_goes_with_the_last_snapshot_that_it_is_over(store):
    old = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    latest = make_snapshot(store, name="a", encoder=OLD, texts=texts(100))
    stays, gone = {"one.parquet", "one.faiss"}, {"two.parquet", "three.faiss"}
    for snapshot, parts in ((old, ["one", "two"]), (latest, ["one"])):
        manifest = json.dumps({"parts": dict.fromkeys(parts, 1)}).encode()
        store.storage.replace(f"indexes/x/of-{snapshot.id}.json", manifest)
    for name in (*stays, *gone, "recall-1.json"):
        store.storage.replace(f"indexes/x/{name}", b"x")
    store.storage.replace(f"indexes/y/of-{old.id}.json", b'{"parts": {"one": 1}}')
    store.storage.replace("indexes/y/recall-1.json", b"{}")
    age(store, 8 * DAY)
    store.storage.replace("indexes/z/made.parquet", b"by a search that is at work")
    before = there(store)
    assert collect_garbage(store, keep=2).files == 1, "of no snapshot at all"
    assert collect_garbage(store, keep=1).kinds["indexes"].files == len(gone) + 2
    index = {path for path in before - there(store) if path.startswith("indexes")}
    assert index == {
        *(f"indexes/x/{name}" for name in (*gone, f"of-{old.id}.json")),
        f"indexes/y/of-{old.id}.json",
        "indexes/y/recall-1.json",
    }


def test_the_kept_snapshots_are_gone_through_once_whatever_the_indexes_hold(store):
    class Counted(frozenset[str]):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    for folder in ("x", "y"):
        store.storage.replace(f"indexes/{folder}/of-a.json", b'{"parts": {"p0": 1}}')
        for number in range(20):
            store.storage.replace(f"indexes/{folder}/p{number}.parquet", b"x")
    kept = Counted({"a", "b"})
    needed = {f"indexes/{f}/{name}" for f in "xy" for name in ("of-a.json", "p0.parquet")}
    assert _indexes_of(store, kept=kept) == needed and kept.times == 1


def test_a_shard_is_garbage_only_after_its_grace(store):
    latest = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    draft = make_snapshot(store, name="a", encoder=NEW, texts=texts(500), commit=False)
    age(store, 6 * DAY, files(draft) & there(store))
    found = collect_garbage(store)
    assert found.files == 0 and found.spared.files == len(files(draft) & there(store)) > 0
    age(store, 2 * DAY, files(draft) & there(store))
    assert collect_garbage(store).files == found.spared.files
    assert not files(draft) & there(store) and verify(store, latest).damages == []


def test_what_a_killed_writer_left_goes_after_a_day(store):
    make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    fresh, stale = f"embeddings/{OLD}/.a.1.tmp", f"latest/.a.json.{'2' * 32}.tmp"
    for path in (fresh, stale):
        with open(f"{store.storage.root}/{path}", "wb") as file:
            file.write(b"half")
    age(store, 2 * DAY, [stale])
    found = collect_garbage(store)
    assert {kind: amount.files for kind, amount in found.kinds.items()} == {"temporary": 1}
    assert fresh in there(store) and stale not in there(store)


def test_candidates_go_only_if_asked_and_if_nobody_needs_them(store):
    latest = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    for name in ("needed", "idle"):
        store.storage.replace(f"candidates/{name}/record.json", b"{}")
    store.storage.replace("train-runs/x/checkpoint", b"state")
    age(store, 30 * DAY)
    asked = []

    def needed(kept):
        asked.extend(kept)
        return {"needed"}

    assert collect_garbage(store).files == 0
    with announce(store.storage, role="job", encoders=[NEW], what="train"):
        assert collect_garbage(store, candidates=needed).files == 0
    assert collect_garbage(store, candidates=needed).files == 2
    assert [snapshot.id for snapshot in asked] == [latest.id]
    assert "candidates/needed/record.json" in there(store)
    assert "candidates/idle/record.json" not in there(store)


@pytest.mark.parametrize("what", ["snapshot", "pointer", "pointed"])
def test_nothing_is_deleted_if_it_is_not_known_what_is_needed(store, what):
    old = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    latest = make_snapshot(store, name="a", encoder=NEW, texts=texts(0))
    age(store, 30 * DAY)
    root = store.storage.root
    if what == "snapshot":
        with open(f"{root}/snapshots/{old.id}.json", "w") as file:
            file.write('{"id": ')
    elif what == "pointer":
        with open(f"{root}/latest/a.json", "w") as file:
            file.write("")
    else:
        os.unlink(f"{root}/snapshots/{latest.id}.json")
    before = there(store)
    with pytest.raises(StoreDamaged, match=r"snapshots/|latest/a\.json"):
        collect_garbage(store, keep=1)
    assert there(store) == before


def test_wrong_limits_are_refused(store):
    with pytest.raises(ValueError, match="keep is 0"):
        collect_garbage(store, keep=0)
    with pytest.raises(ValueError, match="-1"):
        collect_garbage(store, grace=-1)


# ------------------------------------------------------------------ beside a job


def superseded(store):
    """A snapshot that nobody names any more, long ago, and the one that replaced it."""
    old = make_snapshot(store, name="a", encoder=OLD, texts=texts(0))
    latest = make_snapshot(store, name="a", encoder=NEW, texts=texts(400))
    return old, latest


def test_what_a_running_job_may_take_up_is_spared(storage_root):
    store = Store(open_storage(storage_root))
    old, _ = superseded(store)
    third = fingerprint("a third encoder")
    rest = make_snapshot(store, name="z", encoder=third, texts=texts(0), commit=False)
    time.sleep(1.2)
    with announce_job(store.storage, encoders=[OLD], what="embed a") as lease:
        found = collect_garbage(store, keep=1, grace=0)
        assert [job.who.partition(" on ")[0] for job in found.jobs] == ["embed a"]
        # The job finds the shards, embeds nothing, and commits what it found.
        assert files(old) <= there(store)
        assert not set(embeddings(rest)) & there(store), "another encoder's are no job's"
        lease.check()
        store.commit(old)
    assert store.latest("a").id == old.id and verify(store, old).damages == []
    assert collect_garbage(store, keep=1, grace=0).jobs == ()
    assert verify(store, old).damages == []


def test_without_a_lease_the_same_would_be_lost(store):
    old, _ = superseded(store)
    age(store, 1)
    collect_garbage(store, keep=1, grace=0)
    store.commit(old)
    assert verify(store, old).damages, "or the test of leases tests nothing"


def test_a_job_that_may_need_anything_spares_all(store):
    superseded(store)
    age(store, 30 * DAY)
    before = there(store)
    with announce_job(store.storage, encoders=None, what="a copy"):
        assert collect_garbage(store, keep=1).files == 0
    with announce_job(store.storage, encoders=[OLD], what="embed"):
        (path,) = [p for p in there(store) if p.startswith("leases/")]
        with open(f"{store.storage.root}/{path}", "w") as file:
            file.write("not json: who knows what it needs?")
        assert collect_garbage(store, keep=1).files == 0
    assert there(store) == before


def test_a_job_waits_for_a_collector_and_then_sees_what_it_left(store, monkeypatch):
    monkeypatch.setattr(features.lease, "WAIT_SECONDS", 0.02)
    old, _ = superseded(store)
    age(store, 30 * DAY)
    deleting, go_on, told, seen = threading.Event(), threading.Event(), [], []

    def slowly(entry):
        deleting.set()
        go_on.wait(20)

    collector = threading.Thread(
        target=lambda: collect_garbage(store, keep=1, on_deleted=slowly), name="collector"
    )
    collector.start()
    assert deleting.wait(20)

    def job():
        with announce_job(store.storage, encoders=[OLD], what="embed", on_wait=told.append):
            seen.append(store.shards_of(OLD))

    worker = threading.Thread(target=job)
    worker.start()
    while not told:
        time.sleep(0.01)
    time.sleep(0.1)
    assert not seen, "it lists nothing while somebody deletes"
    go_on.set()
    worker.join(20)
    collector.join(20)
    assert seen == [set()] and told[0].startswith("store gc on ")
    assert not set(embeddings(old)) & there(store)
    assert not [path for path in there(store) if path.startswith("leases/")]


def test_a_killed_process_is_waited_for_no_longer_than_its_lease(store, monkeypatch):
    monkeypatch.setattr(features.lease, "WAIT_SECONDS", 0.02)
    superseded(store)
    age(store, 30 * DAY)
    for role in ("job", "collector"):
        features.lease.Lease(store.storage, role=role, encoders=None, what="killed").renew()
    assert len(announced(store.storage, now=time.time())) == 2
    assert collect_garbage(store, keep=1).files == 0
    leases = [path for path in there(store) if path.startswith("leases/")]
    age(store, features.lease.LEASE_SECONDS + 10, leases)
    with announce_job(store.storage, encoders=[NEW], what="embed"):
        pass  # or this would wait for ever
    found = collect_garbage(store, keep=1)
    assert found.kinds["embeddings"].files == 2 and "leases" not in found.kinds
    age(store, 2 * DAY, leases)
    assert collect_garbage(store, keep=1).kinds["leases"].files == 2


def test_a_lease_is_renewed_while_its_block_runs(store, monkeypatch):
    monkeypatch.setattr(features.lease, "RENEW_SECONDS", 0.05)
    with announce(store.storage, role="job", encoders=[OLD], what="embed") as lease:
        age(store, 5000, [lease.path])
        time.sleep(0.5)
        # A walk may also meet what is being written, under its temporary name.
        (entry,) = (e for e in store.storage.walk("leases") if e.path == lease.path)
        assert time.time() - entry.modified < 5
        value = json.loads(store.storage.read(lease.path))
        assert value["encoders"] == [OLD] and str(os.getpid()) in value["who"]
    assert list(store.storage.walk("leases")) == []


def test_who_cannot_renew_stops_before_others_take_it_for_dead(store, monkeypatch):
    old, _ = superseded(store)
    age(store, 30 * DAY)
    with announce_job(store.storage, encoders=[OLD], what="embed") as lease:
        lease.check()
        clock = time.monotonic() + features.lease.LEASE_SECONDS / 2 + 1
        monkeypatch.setattr("features.lease.time.monotonic", lambda: clock)
        with pytest.raises(LeaseLost, match=r"leases/job-.* could not be renewed for \d+ s"):
            lease.check()
        monkeypatch.undo()
    clock = [time.monotonic()]
    monkeypatch.setattr("features.lease.time.monotonic", lambda: clock[0])
    read = Store.read_snapshot

    def stand_still(self, id):
        clock[0] += features.lease.LEASE_SECONDS
        return read(self, id)

    monkeypatch.setattr(Store, "read_snapshot", stand_still)
    with pytest.raises(LeaseLost):
        collect_garbage(store, keep=1)
    assert files(old) <= there(store), "a collector that stood still deletes nothing"


def test_a_lease_tells_no_time_but_the_storage_s(store, monkeypatch):
    """A machine whose clock is a week ahead deletes nothing that is young."""
    old, _ = superseded(store)
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 8 * DAY)
    assert collect_garbage(store, keep=1).files == 0
    assert files(old) <= there(store)
