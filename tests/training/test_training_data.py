from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch

from features.shard import Embeddings
from training.data.table import (
    epoch_order,
    kept_modalities,
    load_table,
    step_count,
    step_rows,
    table_of,
    worker_slice,
)
from training.data.targets import Untrainable
from training.task import ClassificationSpec


def test_table_read_from_a_store_is_that_of_its_columns(make_store, make_table) -> None:
    store, snapshot = make_store()
    direct = make_table()
    table = load_table(
        store, snapshot, task=ClassificationSpec(target="label"), modalities=["caption", "speech"]
    )
    assert list(table.embeddings) == ["caption", "speech"]
    assert table.sample_ids.equals(direct.sample_ids)
    assert table.classes == direct.classes == ("cat", "dog", "eel", "fox")
    assert torch.equal(table.targets, direct.targets)
    for modality in table.embeddings:
        assert torch.equal(table.embeddings[modality].values, direct.embeddings[modality].values)
        assert torch.equal(table.index[modality], direct.index[modality])
    for split in direct.split:
        assert torch.equal(table.split[split], direct.split[split])


def test_batch_agrees_with_the_columns_row_by_row(table, columns) -> None:
    raw = columns()
    rows = torch.tensor([17, 3, 200, 5, 3])
    batch = table.batch(rows)
    labels = raw["labels"].to_pylist()
    for i, row in enumerate(rows.tolist()):
        for modality, embeddings in raw["embeddings"].items():
            place = np.flatnonzero(embeddings.rows == row)
            assert bool(batch.presence[modality][i]) == (len(place) == 1)
            if len(place):
                expected = embeddings.values[place[0]].astype(np.float32)
                assert np.array_equal(batch.embeddings[modality][i].numpy(), expected)
        expected_target = -1 if labels[row] is None else table.classes.index(labels[row])
        assert batch.targets[i] == expected_target


def test_labelled_rows_and_rows_with_modalities(table, columns) -> None:
    raw = columns()
    labels, split = raw["labels"].to_pylist(), raw["split"].to_pylist()
    for name in ("train", "validation", "test"):
        expected = [i for i in range(len(labels)) if split[i] == name and labels[i] is not None]
        assert table.labelled(name).tolist() == expected
    present = [set(raw["embeddings"][m].rows.tolist()) for m in ("caption", "photo")]
    both = [i for i in range(len(labels)) if split[i] == "test" and all(i in p for p in present)]
    rows = table.with_modalities("test", modalities=["caption", "photo"], least=2)
    assert rows.tolist() == both


def test_statistics_are_of_the_present_training_rows_alone(table, columns) -> None:
    raw = columns()
    split = np.array(raw["split"].to_pylist())
    part = raw["embeddings"]["photo"]
    values = part.values[split[part.rows] == "train"].astype(np.float64)
    found = table.inputs(["photo"])["photo"]
    assert found.dim == values.shape[1]
    np.testing.assert_allclose(found.mean.numpy(), values.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.std.numpy(), values.std(axis=0), rtol=1e-5)


def test_constant_dimension_is_left_unscaled(columns) -> None:
    raw = columns()
    for part in raw["embeddings"].values():
        part.values[:, 0] = 0.25
    found = table_of(**raw).inputs(["caption"])["caption"]
    assert found.std[0] == 1.0
    assert (found.std[1:] < 10).all()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (pa.array([10, 9, None, 100] * 60), (9, 10, 100)),
        (pa.array([True, False, None, True] * 60), (False, True)),
        (pa.array(["b", "a", None, "c"] * 60), ("a", "b", "c")),
    ],
)
def test_classes_are_the_sorted_labels_in_their_own_type(columns, labels, classes) -> None:
    table = table_of(**{**columns(), "labels": labels})
    assert table.classes == classes
    assert [type(c) for c in table.classes] == [type(c) for c in classes]
    decoded = [None if t < 0 else table.classes[t] for t in table.targets.tolist()]
    assert decoded == labels.to_pylist()


def test_data_that_allow_no_training_say_what_they_lack(columns) -> None:
    raw = columns()
    with pytest.raises(Untrainable, match="text, an integer or a boolean"):
        table_of(**{**raw, "labels": pa.array([0.5] * 240)})
    with pytest.raises(Untrainable, match=r"holds 1 classes \['x'\]; at least 2"):
        table_of(**{**raw, "labels": pa.array(["x"] * 240)})
    no_test = pa.array(["validation" if s == "test" else s for s in raw["split"].to_pylist()])
    with pytest.raises(Untrainable, match="the test split has no row with a label in column 'l'"):
        table_of(**{**raw, "split": no_test, "task": ClassificationSpec(target="l")})
    one_class = ["x" if s == "train" else "y" for s in raw["split"].to_pylist()]
    with pytest.raises(Untrainable, match="training rows are of one class"):
        table_of(**{**raw, "labels": pa.array(one_class)})


def test_modality_that_no_training_row_has_is_named(columns) -> None:
    raw = columns()
    raw["embeddings"]["photo"] = Embeddings(
        rows=np.empty(0, np.int64), values=np.empty((0, 7), np.float16)
    )
    table = table_of(**raw)
    assert not table.batch(torch.arange(4)).presence["photo"].any()
    with pytest.raises(Untrainable, match="'photo': none of the 150 training rows"):
        table.inputs(["photo"])


def test_embedding_that_is_not_finite_is_named(columns) -> None:
    raw = columns()
    raw["embeddings"]["photo"].values[0, 0] = np.nan
    with pytest.raises(Untrainable, match="'photo': an embedding of the training rows"):
        table_of(**raw).inputs(["photo"])


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 8), (8, 8), (9, 8), (101, 8), (7, 100)])
def test_every_row_is_taken_once_by_one_worker_in_equal_steps(workers, rows, batch_size) -> None:
    numbers = torch.arange(1000, 1000 + rows)
    order = epoch_order(numbers, seed=1, epoch=2)
    steps = step_count(rows, batch_size=batch_size)
    taken: list[int] = []
    for step in range(steps):
        batch = step_rows(order, step=step, steps=steps)
        assert 1 <= len(batch) <= batch_size
        parts = [
            batch[worker_slice(len(batch), rank=rank, workers=workers)] for rank in range(workers)
        ]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert torch.equal(torch.cat(parts), batch)
        taken += batch.tolist()
    assert taken == order.tolist()
    assert sorted(taken) == numbers.tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    rows = torch.arange(100)
    first = epoch_order(rows, seed=1, epoch=1)
    assert torch.equal(first, epoch_order(rows, seed=1, epoch=1))
    assert not torch.equal(first, epoch_order(rows, seed=1, epoch=2))
    assert not torch.equal(first, epoch_order(rows, seed=2, epoch=1))


def test_modality_dropout_takes_away_the_share_it_says() -> None:
    options = {"modalities": ("a", "b"), "rows": 20_000, "probability": 0.3, "seed": 0}
    kept = kept_modalities(**options, epoch=1, step=4)
    for modality in ("a", "b"):
        assert float(kept[modality].float().mean()) == pytest.approx(0.7, abs=0.02)
    both = (kept["a"] & kept["b"]).float().mean()
    assert float(both) == pytest.approx(0.49, abs=0.02)  # independently of each other
    again = kept_modalities(**options, epoch=1, step=4)
    assert torch.equal(kept["a"], again["a"])
    assert not torch.equal(kept["a"], kept_modalities(**options, epoch=1, step=5)["a"])


def test_what_is_known_of_a_row_without_its_embeddings_is_some_numbers(columns) -> None:
    raw = columns(rows=1000)
    times = 200
    many = {**raw, "embeddings": {}}
    for name in ("sample_ids", "split", "labels"):
        many[name] = pa.chunked_array([raw[name].cast(pa.string())] * times)
    table_of(**raw)
    tracemalloc.start()
    table = table_of(**many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.rows == 1000 * times
    # Its split and its class, a number of 8 bytes each, and what they are made of.
    assert peak < 48 * table.rows
    once = table_of(**raw)
    for name, rows in table.split.items():
        assert torch.equal(rows[: len(once.split[name])], once.split[name])
        assert len(rows) == times * len(once.split[name])
