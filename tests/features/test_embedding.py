"""From table to snapshot without Ray: what is computed, copied, quarantined, and what it says."""

import dataclasses
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from features.commit import make_snapshot
from features.encoders.text import HashingSpec
from features.quarantine import count_quarantine, read_quarantine
from features.sample_shards import write_samples
from features.sources import SourceError
from features.storage import LocalStorage
from features.store import Store, parquet_bytes
from features.stored_embeddings import embedded_rows, read_embeddings
from tests.features.world import ROWS, Letters, LettersSpec


def test_embeddings_stand_at_their_rows(world):
    plan, results, snapshot = world.run()
    assert len(plan.samples) > 8 and sum(r.embedded for r in results) == ROWS + ROWS * 9 // 10
    for modality in world.specs:
        rows, values = world.expected(modality)
        found = read_embeddings(world.store, snapshot, modality=modality)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.values, values)
    assert snapshot.rows == ROWS
    assert (snapshot.modalities["text"].present, snapshot.modalities["text"].missing) == (810, 90)
    samples = world.store.read_samples(snapshot)
    assert samples["sample_id"].to_pylist() == world.frame["id"].tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_readers_read_the_shards(world, dtype):
    """DuckDB and pandas, which know nothing of this project, agree with the table."""
    world.specs["text"] = LettersSpec(dtype=dtype)
    _, _, snapshot = world.run()
    encoder = snapshot.modalities["text"].encoder_fingerprint
    rows, values = world.expected("text")
    for first, shard, (name,) in zip(
        snapshot.first_rows, snapshot.samples, snapshot.modalities["text"].shards, strict=True
    ):
        path = str(world.folder / f"store/embeddings/{encoder}/{name}.parquet")
        here = (rows >= first) & (rows < first + shard.rows)
        by_duckdb = duckdb.sql(f"SELECT row, embedding FROM '{path}'").fetchall()
        assert [row + first for row, _ in by_duckdb] == rows[here].tolist()
        assert [list(vector) for _, vector in by_duckdb] == values[here].tolist()
        by_pandas = pd.read_parquet(path)
        assert (by_pandas["row"] + first).tolist() == rows[here].tolist()
        np.testing.assert_array_equal(np.stack(by_pandas["embedding"]), values[here])
        ids = duckdb.sql(
            f"SELECT sample_id, \"key.text\" IS NULL FROM '{world.folder}/store/{shard.path}'"
        ).fetchall()
        part = world.frame[first : first + shard.rows]
        assert [i for i, _ in ids] == part["id"].tolist()
        assert [missing for _, missing in ids] == part["text"].isna().tolist()


def test_a_second_run_does_nothing(world):
    _, _, snapshot = world.run()
    before = world.files()
    plan, results, again = world.run()
    assert plan.work == () and results == [] and LettersSpec.log == []
    assert again.id == snapshot.id and world.files() == before
    assert not world.store.commit(again)


def test_planning_alone_writes_nothing(world):
    world.plan()
    assert not (world.folder / "store").exists()


def test_a_changed_text_is_embedded_alone_and_its_neighbours_are_copied(world):
    world.run()
    before = world.files()
    world.frame.loc[501, "text"] = "other"
    plan, results, snapshot = world.run()
    assert LettersSpec.log == ["other"]
    assert {work.modality for work in plan.work} == {"text"} and len(plan.work) == 1
    part = plan.modalities["text"]
    assert part.to_embed == 1 and part.copied == results[0].copied > 10
    assert plan.modalities["note"].reused == ROWS and part.reason == "payloads changed"
    _, values = world.expected("text")
    np.testing.assert_array_equal(
        read_embeddings(world.store, snapshot, modality="text").values, values
    )
    assert {path: status for path, status in world.files().items() if path in before} == before


def test_inserted_and_deleted_rows_cost_about_themselves(world):
    world.run()
    new = world.frame[:9].assign(id=[f"n{i}" for i in range(9)], text="neu", note="neu")
    world.frame = pd.concat([world.frame[:300], new, world.frame[300:600], world.frame[650:]])
    world.frame = world.frame.reset_index(drop=True)
    _, _, snapshot = world.run()
    assert LettersSpec.log == ["neu"] * 18
    for modality in world.specs:
        found = read_embeddings(world.store, snapshot, modality=modality)
        rows, values = world.expected(modality)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.values, values)


def test_a_changed_label_embeds_nothing_and_makes_a_new_snapshot(world):
    _, _, before = world.run()
    world.frame.loc[7, "label"] = 2
    plan, _, after = world.run()
    assert plan.work == () and after.id != before.id
    assert world.store.latest("world").id == after.id


def test_a_changed_encoder_recomputes_one_modality(world):
    world.run()
    world.specs["note"] = LettersSpec(scale=3)
    plan, _, _ = world.run()
    assert {work.modality for work in plan.work} == {"note"}
    assert plan.modalities["note"].to_embed == ROWS and plan.modalities["note"].copied == 0
    assert plan.modalities["note"].reason == "encoder changed: scale 2 → 3"
    world.specs["note"] = HashingSpec(dim=8)
    plan, _, _ = world.run()
    assert plan.modalities["note"].reason == "encoder changed: tests.Letters → hashing"


def test_batch_size_is_not_identity(world):
    world.run()
    world.specs["text"] = LettersSpec(batch_size=3)
    assert world.plan().work == ()


def test_bad_payloads_are_quarantined_with_their_reasons(world):
    for row, text in {
        5: "unusable", 200: "", 301: "poison", 402: "not finite", 503: "huge"
    }.items():  # fmt: skip
        world.frame.loc[row, "text"] = text
    _, results, snapshot = world.run()
    found = read_quarantine(world.store, snapshot).to_pylist()
    assert [(row["sample_id"], row["modality"], row["stage"]) for row in found] == [
        ("s5", "text", "prepare"),
        ("s200", "text", "decode"),
        ("s301", "text", "encode"),
        ("s402", "text", "encode"),
        ("s503", "text", "encode"),
    ]
    reasons = [row["reason"] for row in found]
    assert reasons[0] == "too odd to use" and "empty" in reasons[1]
    assert reasons[2] == "RuntimeError: cannot swallow this"
    assert "not finite" in reasons[3] and "dtype: float32" in reasons[4]
    assert sum(result.bad for result in results) == 5
    part = snapshot.modalities["text"]
    assert (part.bad, part.missing) == (5, 89) and part.present == ROWS - 89 - 5
    embedded = set(read_embeddings(world.store, snapshot, modality="text").rows.tolist())
    assert not embedded & {5, 200, 301, 402, 503} and len(embedded) == part.present


def test_memory_that_does_not_suffice_halves_the_batch(world):
    world.frame.loc[33, "text"] = "memory"
    _, _, snapshot = world.run()
    assert snapshot.modalities["text"].bad == 0
    assert LettersSpec.log.count("memory") == 1


def test_an_encoder_that_always_fails_fails_the_job(world, monkeypatch):
    def broken(self, batch):
        raise TypeError("no such argument")

    monkeypatch.setattr(Letters, "encode", broken)
    with pytest.raises(TypeError, match="no such argument"):
        world.run()
    assert not list((world.folder / "store").glob("embeddings/*/*"))


@pytest.mark.parametrize(
    "change",
    [lambda texts: texts.shift(1), lambda texts: "not " + texts],
    ids=["other rows", "other texts"],
)
def test_a_table_that_changes_after_the_planning_fails_the_job(world, change):
    plan = world.plan()
    write_samples(plan, store=world.store)
    world.frame["text"] = change(world.frame["text"])
    world.frame.to_parquet(world.folder / "table.parquet", index=False)
    with pytest.raises(SourceError, match="not the one that the job was planned for"):
        world.embed(plan, plan.work[0])


def test_a_shard_does_not_depend_on_who_computes_it(world, tmp_path):
    """Two stores in two places, the second filled backwards: the same names, the same bytes."""
    _, _, snapshot = world.run()
    other = Store(LocalStorage(tmp_path / "elsewhere"))
    world.store, plain = other, world.store
    plan = world.plan()
    write_samples(plan, store=other)
    for work in reversed(plan.work):
        world.embed(plan, work)
        path = f"embeddings/{work.encoder}/{work.shard}.parquet"
        for column in ("row", "payload_key", "embedding"):
            tables = [store.read_table(path, columns=[column]) for store in (plain, other)]
            assert tables[0].combine_chunks().equals(tables[1].combine_chunks())
    assert make_snapshot(plan, store=other, quarantine=count_quarantine(plan, store=other)).id == (
        snapshot.id
    )


def test_patches_join_their_shard_in_row_order(world):
    world.frame.loc[50, "text"] = "unusable"
    _, _, snapshot = world.run()
    part = snapshot.modalities["text"]
    place = next(i for i, first in enumerate(snapshot.first_rows) if first > 50) - 1
    row = 50 - snapshot.first_rows[place]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float16)), 4)
    table = pa.table(
        {
            "row": pa.array([row], pa.int32()),
            "payload_key": pa.array([b"0" * 16], pa.binary(16)),
            "embedding": vector,
        }
    )
    path = f"embeddings/{part.encoder_fingerprint}/{'f' * 32}.parquet"
    world.store.storage.write_once(path, parquet_bytes(table))
    shards = list(part.shards)
    shards[place] = (*shards[place], "f" * 32)
    patched = dataclasses.replace(part, shards=tuple(shards))
    snapshot = dataclasses.replace(snapshot, modalities={"text": patched})
    found = read_embeddings(world.store, snapshot, modality="text")
    rows, _ = world.expected("text")
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.values[rows == 50], np.ones((1, 4)))


def test_a_shard_without_a_good_row_is_read_as_empty(world):
    """Also as a donor, once its rows are mended."""
    plan = world.plan()
    first = plan.samples[0].rows
    world.frame.loc[: first - 1, "text"] = ""
    _, _, snapshot = world.run()
    found = read_embeddings(world.store, snapshot, modality="text")
    assert found.values.shape == (snapshot.modalities["text"].present, 4)
    np.testing.assert_array_equal(embedded_rows(world.store, snapshot, modality="text"), found.rows)
    world.frame.loc[3, "text"] = "good now"
    _, _, snapshot = world.run()
    assert LettersSpec.log == ["good now"]
    assert 3 in read_embeddings(world.store, snapshot, modality="text").rows


def test_rows_that_fail_are_told_from_an_encoder_that_fails(world, monkeypatch):
    """Two poisoned rows in one batch are bad; one row of a machine that fails is not."""
    world.specs["text"] = LettersSpec(batch_size=2)
    world.frame.loc[[5, 6], "text"] = "poison"
    _, _, snapshot = world.run()
    assert snapshot.modalities["text"].bad == 2

    world.frame.loc[501, "text"] = "other"
    plan = world.plan()
    write_samples(plan, store=world.store)

    def broken(self, batch):
        raise RuntimeError("out of order")

    monkeypatch.setattr(Letters, "encode", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        world.embed(plan, plan.work[0])
    assert not world.store.storage.exists(
        f"embeddings/{plan.work[0].encoder}/{plan.work[0].shard}.parquet"
    )


def test_a_fault_of_the_device_is_not_blamed_on_the_row(world, monkeypatch):
    def lost(self, batch):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Letters, "encode", lost)
    world.frame = world.frame[1:2]
    with pytest.raises(RuntimeError, match="CUDA"):
        world.run()


def test_where_rows_stand_follows_the_table(world):
    """The same rows in two files: the same snapshot, read with the places of today."""
    _, _, before = world.run()
    (world.folder / "parts").mkdir()
    world.frame[:400].to_parquet(world.folder / "parts/a.parquet", index=False)
    world.frame[400:].to_parquet(world.folder / "parts/b.parquet", index=False)
    world.path = "parts"
    _, _, after = world.run()
    assert after.id == before.id
    latest = world.store.latest("world")
    assert latest.samples == after.samples and len(latest.files) == 2


def test_a_candidate_depends_on_its_own_modality_alone(world):
    _, _, before = world.run()
    world.frame.loc[7, "note"] = "another note"
    _, _, after = world.run()
    assert before.part(modalities=["text"]) == after.part(modalities=["text"])
    assert before.part(modalities=["note"]) != after.part(modalities=["note"])
    world.frame.loc[7, "label"] = 2
    _, _, relabelled = world.run()
    assert after.part(modalities=["text"]) != relabelled.part(modalities=["text"])


def test_what_went_over_budget_is_copied_once_it_is_mended(world):
    world.frame.loc[[100, 500], "text"] = ""
    plan = world.plan()
    write_samples(plan, store=world.store)
    for work in plan.work:
        world.embed(plan, work)
    counts = count_quarantine(plan, store=world.store)
    world.store.keep_attempt(make_snapshot(plan, store=world.store, quarantine=counts))
    assert world.store.latest("world") is None
    world.frame.loc[[100, 500], "text"] = ["mended", "also mended"]
    world.run()
    assert sorted(LettersSpec.log) == ["also mended", "mended"]


def test_the_store_s_modules_load_no_model_library():
    code = (
        "import sys, features.planning, features.store, features.embedding; "
        "print([m for m in ('torch', 'transformers', 'ray', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
