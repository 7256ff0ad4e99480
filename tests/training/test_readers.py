"""Embeddings held in memory, and those that do not fit and are streamed: one and the same."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from features.snapshot import Snapshot
from features.store import Store
from features.stored_embeddings import read_embeddings
from training.batch import Batch
from training.built_in import parse_candidate
from training.data.loaded import LoadedTable
from training.data.reading import MemoryTooSmall
from training.data.stream import StreamedVectors
from training.data.table import (
    EmbeddingTable,
    epoch_order,
    load_table,
    step_count,
    step_rows,
    worker_rows,
    worker_slice,
)
from training.evaluation.answers import evaluate
from training.fitting.loop import fit_candidate
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

ROWS, SHARD_ROWS, WINDOW = 600, 20, 60
TRAINING = TrainingSpec(batch_size=50, max_epochs=3, shuffle_buffer=WINDOW)
Made = tuple[Store, Snapshot]


@pytest.fixture
def made(make_store: Callable[..., Made]) -> Made:
    return make_store(rows=ROWS, shard_rows=SHARD_ROWS, patched=True, sequences=True)


def size_of(snapshot: Snapshot, store: Store) -> int:
    return sum(
        read_embeddings(store, snapshot, modality=m).values.nbytes for m in snapshot.modalities
    )


def load(made: Made, **options: Any) -> EmbeddingTable:
    store, snapshot = made
    options["modalities"] = tuple(snapshot.modalities)
    return load_table(store, snapshot, task=ClassificationSpec(target="label"), **options)


def stream(made: Made, *, share: float = 0.4) -> EmbeddingTable:
    store, snapshot = made
    table = load(made, memory=int(size_of(snapshot, store) * share), window=WINDOW)
    assert all(isinstance(reader, StreamedVectors) for reader in table.embeddings.values())
    return table


def same(one: Batch, other: Batch) -> bool:
    """Of what is present, bit for bit."""
    for m, there in one.presence.items():
        if not torch.equal(there, other.presence[m]):
            return False
        if m in one.masks:
            if not torch.equal(one.masks[m], other.masks[m]):
                return False
            there = one.masks[m]
        if not torch.equal(one.embeddings[m][there], other.embeddings[m][there]):
            return False
    return torch.equal(one.targets, other.targets) and one.masks.keys() == other.masks.keys()


def test_batches_of_a_sequence_hold_its_steps_and_say_where_they_are(made) -> None:
    store, snapshot = made
    raw = read_embeddings(store, snapshot, modality="frames")
    rows = torch.tensor([17, 3, 200, 5, 3, 599, 20, 40])
    for table in (load(made), stream(made)):
        batch = table.batch(rows)
        assert set(batch.masks) == {"frames"}
        longest = 1
        for i, row in enumerate(rows.tolist()):
            place = np.flatnonzero(raw.rows == row)
            assert bool(batch.presence["frames"][i]) == (len(place) == 1)
            steps = batch.embeddings["frames"][i][batch.masks["frames"][i]]
            expected = np.zeros((0, 4), np.float16)
            if len(place):
                (expected,), (mask,) = raw.padded(place)
                expected = expected[mask]
            assert np.array_equal(steps.numpy(), expected.astype(np.float32))
            longest = max(longest, len(expected))
        assert batch.embeddings["frames"].shape == (len(rows), longest, 4)
        assert batch.embeddings["frames"].dtype == torch.float32
        # What stands behind an end is at the end.
        mask = batch.masks["frames"]
        assert torch.equal(mask, mask.long().cumprod(dim=1).bool())


def test_statistics_of_a_sequence_are_over_its_steps(made) -> None:
    store, snapshot = made
    raw = read_embeddings(store, snapshot, modality="frames")
    held = load(made)
    trained = np.isin(raw.rows, held.split["train"].numpy()).repeat(raw.lengths)
    values = raw.values[trained].astype(np.float64)
    found = held.inputs(["frames"])["frames"]
    assert found.sequence
    np.testing.assert_allclose(found.mean.numpy(), values.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.std.numpy(), values.std(axis=0), rtol=1e-5)
    assert not held.inputs(["photo"])["photo"].sequence


@pytest.mark.parametrize(("share", "contiguous"), [(0.4, True), (0.7, True), (0.4, False)])
def test_streamed_batches_are_those_of_memory_whatever_is_asked(
    make_store, share, contiguous
) -> None:
    options = {"rows": ROWS, "shard_rows": SHARD_ROWS, "contiguous": contiguous}
    made = make_store(patched=True, sequences=True, **options)
    held, streamed = load(made), stream(made, share=share)
    rng = np.random.default_rng(0)
    for rows in (torch.arange(ROWS), torch.from_numpy(rng.permutation(ROWS))):
        for some in rows.split(37):
            assert same(held.batch(some), streamed.batch(some))
    some, frames = torch.tensor([5, 5, 599]), ["frames"]
    assert same(held.batch(some, modalities=frames), streamed.batch(some, modalities=frames))
    order = epoch_order(held.split["train"], seed=0, epoch=1, shards=held.shards, window=WINDOW)
    streamed.expect(order)
    for some in order.split(37):
        assert same(held.batch(some), streamed.batch(some))
    streamed.close()


def test_the_memory_of_the_stream_is_its_budget(made) -> None:
    store, snapshot = made
    budget = int(size_of(snapshot, store) * 0.4)
    table = load(made, memory=budget, window=WINDOW)
    assert sum(reader.nbytes for reader in table.embeddings.values()) <= budget
    shards = sum(len(part.shards) for part in snapshot.modalities.values())
    for epoch in range(1, 4):
        before = sum(reader.blocks_read for reader in table.embeddings.values())
        order = epoch_order(
            table.split["train"], seed=0, epoch=epoch, shards=table.shards, window=WINDOW
        )
        table.expect(order)
        for some in order.split(50):
            table.batch(some)
        table.close()
        # Read ahead, in the order of need: hardly any twice.
        assert sum(r.blocks_read for r in table.embeddings.values()) - before <= 1.5 * shards


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_takes_every_row_once_an_epoch_in_equal_steps(made, workers) -> None:
    tables = [stream(made) for _ in range(workers)]
    rows = tables[0].labelled("train")
    steps = step_count(len(rows), batch_size=50)
    held = load(made)
    taken = []
    for epoch in (1, 2):
        orders = [
            epoch_order(rows, seed=3, epoch=epoch, shards=t.shards, window=WINDOW) for t in tables
        ]
        for rank, (table, order) in enumerate(zip(tables, orders, strict=True)):
            table.expect(worker_rows(order, steps=steps, rank=rank, workers=workers))
        for step in range(steps):
            whole = step_rows(orders[0], step=step, steps=steps)
            parts = []
            for rank, (table, order) in enumerate(zip(tables, orders, strict=True)):
                own = step_rows(order, step=step, steps=steps)
                own = own[worker_slice(len(own), rank=rank, workers=workers)]
                assert same(table.batch(own), held.batch(own))
                parts.append(own)
            assert torch.equal(torch.cat(parts), whole)
            taken += whole.tolist()
        assert torch.equal(orders[0], orders[-1])
    assert sorted(taken) == sorted(2 * rows.tolist())
    assert taken[: len(rows)] != taken[len(rows) :]
    for table in tables:
        table.close()


def test_from_the_middle_of_an_epoch_the_same_batches_follow(made) -> None:
    whole, rows = stream(made), load(made).labelled("train")
    steps = step_count(len(rows), batch_size=50)
    order = epoch_order(rows, seed=1, epoch=2, shards=whole.shards, window=WINDOW)
    whole.expect(worker_rows(order, steps=steps, rank=1, workers=2))
    expected = []
    for step in range(steps):
        some = step_rows(order, step=step, steps=steps)
        expected.append(whole.batch(some[worker_slice(len(some), rank=1, workers=2)]))
    # Another process knows no more than the epoch and the step.
    resumed, first = stream(made), 4
    order = epoch_order(rows, seed=1, epoch=2, shards=resumed.shards, window=WINDOW)
    left = worker_rows(order, steps=steps, rank=1, workers=2, first_step=first)
    resumed.expect(left)
    sizes = [batch.rows for batch in expected[first:]]
    for some, batch in zip(left.split(sizes), expected[first:], strict=True):
        assert same(resumed.batch(some), batch)
    shards = sum(len(part.shards) for part in made[1].modalities.values())
    assert sum(reader.blocks_read for reader in resumed.embeddings.values()) < shards
    whole.close()
    resumed.close()


@pytest.mark.parametrize("type", ["late", "attention", "alignment"])
def test_a_candidate_comes_to_the_same_bit_for_bit(made, type) -> None:
    spec = parse_candidate({"type": type, "width": 8})
    fits, answers = [], []
    for table in (load(made, window=WINDOW), stream(made)):
        fit = fit_candidate(spec, table=table, training=TRAINING)
        fits.append(fit)
        answers.append(evaluate(fit.model, table=table, modalities=sorted(table.index)))
        table.close()
    losses = [[(e.train_loss, e.validation_loss) for e in fit.epochs] for fit in fits]
    assert losses[0] == losses[1]
    for name, value in fits[0].model.state_dict().items():
        assert torch.equal(value, fits[1].model.state_dict()[name])
    held, streamed = answers
    labelled = [load(made).labelled(split).tolist() for split in ("validation", "test")]
    assert streamed.rows.tolist() == labelled[0] + labelled[1]
    assert np.array_equal(held.answers, streamed.answers)
    for modality, without in held.without.items():
        assert np.array_equal(without, streamed.without[modality])


def test_rows_are_drawn_among_a_window_of_whole_shards(made) -> None:
    _, snapshot = made
    shards = torch.tensor([*snapshot.first_rows, snapshot.rows])
    rows = torch.arange(ROWS)
    order = epoch_order(rows, seed=0, epoch=1, shards=shards, window=WINDOW)
    assert sorted(order.tolist()) == rows.tolist()
    assert torch.equal(order, epoch_order(rows, seed=0, epoch=1, shards=shards, window=WINDOW))
    place = torch.empty(ROWS, dtype=torch.long)
    place[order] = torch.arange(ROWS)
    spans = [place[first : first + SHARD_ROWS] for first in snapshot.first_rows]
    assert max(int(span.max() - span.min()) for span in spans) <= WINDOW + 2 * SHARD_ROWS
    # Neighbours come apart, and shards come in another order.
    apart = (place[1:] - place[:-1]).abs().float().mean()
    assert float(apart) > WINDOW / 5
    starts = torch.stack([span.float().mean() for span in spans])
    assert float(torch.corrcoef(torch.stack([starts, torch.arange(len(spans))]))[0, 1]) < 0.7
    # As few rows as the window are drawn from all.
    whole = epoch_order(rows, seed=0, epoch=1, shards=shards, window=ROWS)
    assert torch.equal(whole, epoch_order(rows, seed=0, epoch=1))


def test_too_little_memory_for_the_window_is_refused_with_what_would_do(made) -> None:
    store, snapshot = made
    size = size_of(snapshot, store)
    with pytest.raises(
        MemoryTooSmall, match=r"training\.memory.* set training\.shuffle_buffer"
    ) as error:
        load(made, memory=int(size * 0.4), window=400)
    fits = int(str(error.value).rpartition(" to ")[2].split()[0])
    assert 0 < fits < 400
    assert load(made, memory=int(size * 0.4), window=fits).rows == ROWS
    with pytest.raises(MemoryTooSmall, match=r"raise training\.memory\. The order"):
        load(made, memory=int(size * 0.05), window=1)
    held = load(made, memory=size, window=400)
    assert not any(isinstance(reader, StreamedVectors) for reader in held.embeddings.values())


def test_statistics_are_read_for_once_and_anew_for_other_rows(made) -> None:
    table = stream(made)
    first = table.inputs(["photo", "frames"])
    read = {m: reader.blocks_read for m, reader in table.embeddings.items()}
    assert read["photo"] > 0 and read["speech"] == 0
    again = table.select(["photo"]).inputs(["photo"])
    assert again["photo"] is first["photo"]
    assert {m: reader.blocks_read for m, reader in table.embeddings.items()} == read
    halved = {**table.split, "train": table.split["train"][::2]}
    other = dataclasses.replace(table, split=halved).inputs(["photo"])["photo"]
    assert not torch.equal(other.mean, first["photo"].mean)
    table.close()


def test_a_table_that_gives_way_to_a_larger_one_reads_no_more_and_holds_no_memory(made) -> None:
    store, snapshot = made
    memory = size_of(snapshot, store) // 4
    asked: list[tuple[list[str], list[str]]] = []

    def read(*, modalities: list[str], numbered: list[str]) -> EmbeddingTable:
        asked.append((modalities, numbered))
        assert alive() == 0, "two tables may not fit into memory"
        task = ClassificationSpec(target="label")
        options: dict[str, Any] = {"modalities": modalities, "numbered": numbered}
        return load_table(store, snapshot, task=task, memory=memory, window=WINDOW, **options)

    def alive() -> int:
        gc.collect()
        threads = [t for t in threading.enumerate() if t.name == "read-ahead"]
        return len(threads) + sum(one() is not None for one in readers)

    readers: list[weakref.ref[Any]] = []
    loaded = LoadedTable(read)
    table = loaded.holding(["frames"], numbered=["frames"])
    readers.append(weakref.ref(table.embeddings["frames"]))
    assert isinstance(readers[0](), StreamedVectors)
    assert loaded.holding(["frames"], numbered=[]) is table
    # An epoch that a fit left in the middle: what is read ahead waits for room.
    table.expect(table.labelled("train").repeat(3))
    del table
    assert alive() == 2
    assert "photo" in loaded.holding(["photo"], numbered=[]).embeddings
    assert asked == [(["frames"], ["frames"]), (["frames", "photo"], ["frames"])]
    loaded.close()
