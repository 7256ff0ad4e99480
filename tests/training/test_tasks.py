"""Labels read for their task, and outputs as answers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from training.data.table import table_of
from training.data.targets import Untrainable, is_labelled
from training.task import parse_task
from training.tasks import Regression, Targets, Task, known_targets, read_targets, restored_task


def read(options: dict, labels: dict[str, list]) -> Targets:
    """The first half of the rows is the training split, the rest is either of the others."""
    columns = {name: pa.chunked_array([pa.array(values)]) for name, values in labels.items()}
    rows = len(next(iter(labels.values())))
    split = {
        "train": torch.arange(rows // 2),
        "validation": torch.arange(rows // 2, rows),
        "test": torch.arange(rows // 2, rows),
    }
    return read_targets(parse_task(options), columns, split=split, rows=rows)


def restored(task: Task) -> Task:
    """The task as a record keeps it."""
    return restored_task(
        parse_task(task.spec.model_dump(mode="json")), names=task.names, scale=task.scale
    )


def test_numbers_are_standardised_by_the_training_rows_and_answered_in_their_unit() -> None:
    found = read(
        {"type": "regression", "target": ["u", "v"]},
        {"u": [10.0, 20.0, None, 1000.0], "v": [1.0, 3.0, 2.0, 7.0]},
    )
    train = found.values[:2].double().numpy()
    np.testing.assert_allclose(train, [[-1, -1], [1, 1]])
    assert is_labelled(found.values).tolist() == [True, True, False, True]
    np.testing.assert_allclose(found.task.truths(found.values[3:]), [[1000.0, 7.0]], rtol=1e-6)
    outputs = torch.tensor([[0.0, 0.5]])
    for task in (found.task, restored(found.task)):
        assert isinstance(task, Regression)
        np.testing.assert_allclose(task.answers(outputs), [[15.0, 2.5]])


def test_a_large_number_with_little_spread_keeps_its_digits() -> None:
    years = [2000.0 + i / 365 for i in range(40)]
    found = read({"type": "regression", "target": "y"}, {"y": years})
    back = found.task.truths(found.values).numpy()[:, 0]
    np.testing.assert_allclose(back, years, rtol=0, atol=1e-6)


def test_lists_and_flags_are_the_same_labels() -> None:
    lists = read(
        {"type": "multilabel", "target": "y"}, {"y": [["b", "a"], [], None, ["b"], ["a"], []]}
    )
    flags = read(
        {"type": "multilabel", "target": ["a", "b"]},
        {
            "a": [True, False, None, False, True, False],
            "b": [True, False, True, True, False, False],
        },
    )
    assert lists.task.names == flags.task.names == ("a", "b")
    torch.testing.assert_close(lists.values[[0, 1, 3, 4, 5]], flags.values[[0, 1, 3, 4, 5]])
    for found in (lists, flags):
        assert is_labelled(found.values).tolist() == [True, True, False, True, True, True]
    half = restored(lists.task).answers(torch.zeros(1, 2))
    torch.testing.assert_close(half, torch.full((1, 2), 0.5))


def test_labels_are_read_alike_for_the_gate() -> None:
    column = pa.chunked_array([[["b", "zebra"], None, []]])
    spec = parse_task({"type": "multilabel", "target": "y"})
    known = known_targets(spec, {"y": column}, names=("a", "b"), rows=3)
    assert known.known.tolist() == [True, False, True]
    assert known.values[[0, 2]].tolist() == [[False, True], [False, False]]
    spec = parse_task({"target": "y"})
    known = known_targets(spec, {"y": pa.chunked_array([[8, None, 7]])}, names=(7, 8), rows=3)
    assert known.known.tolist() == [True, False, True]
    assert known.values[[0, 2]].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        (
            {"type": "regression", "target": "y"},
            {"y": [2.0, 2.0, 1.0, 3.0]},
            "the same number, 2, in column 'y'",
        ),
        (
            {"type": "regression", "target": "y"},
            {"y": [1.0, float("inf"), 1.0, 3.0]},
            r"holds an infinite number \(row 1 of the snapshot\)",
        ),
        ({"type": "regression", "target": "y"}, {"y": ["a", "b"]}, "target is a number"),
        (
            {"type": "regression", "target": ["y", "z"]},
            {"y": [1.0, 2.0, None, 1.0], "z": [1.0, 2.0, 3.0, None]},
            "the validation split has no row with a label in columns 'y', 'z'",
        ),
        ({"type": "multilabel", "target": "y"}, {"y": [[], []]}, "holds|every list is empty"),
        (
            {"type": "multilabel", "target": "y"},
            {"y": [["a"], ["a"], [], ["b"]]},
            "no label of column 'y' tells the labelled training rows apart",
        ),
        (
            {"target": "y", "class_weights": {"cat": 2}},
            {"y": ["a", "b", "a", "b"]},
            "task.class_weights names 'cat', which is none of the labels: a, b",
        ),
        (
            {"type": "multilabel", "target": "y", "positive_weights": {"c": 2}},
            {"y": [["a"], ["b"], [], ["b"]]},
            "task.positive_weights names 'c'",
        ),
    ],
)
def test_labels_that_allow_no_training_say_what_they_lack(options, labels, message) -> None:
    with pytest.raises(Untrainable, match=message):
        read(options, labels)


def test_a_retrieval_needs_a_row_in_every_split() -> None:
    split = {"train": torch.arange(3), "validation": torch.arange(3, 5), "test": torch.arange(0)}
    for options in ({"type": "retrieval"}, {"type": "retrieval", "target": "y"}):
        with pytest.raises(Untrainable, match="the test split has no row; all of train, valid"):
            read_targets(parse_task(options), {"y": pa.array([*"ababa"])}, split=split, rows=5)


def test_weights_of_true_and_false_are_named_as_in_yaml() -> None:
    found = read({"target": "y", "class_weights": {"true": 3}}, {"y": [True, False, True, False]})
    assert found.task.weights.tolist() == [1.0, 3.0]  # type: ignore[attr-defined]


def test_a_class_that_training_never_met_has_a_finite_balanced_weight() -> None:
    found = read(
        {"target": "y", "class_weights": "balanced"},
        {"y": ["a", "b", "b", "b", "c", "a", "b", "b"]},
    )
    weights = found.task.weights  # type: ignore[attr-defined]
    torch.testing.assert_close(weights, torch.tensor([2.0, 2 / 3, 1.0]))


def test_unlabelled_rows_are_in_no_split_of_labelled_ones(columns) -> None:
    raw = columns()
    numbers = np.arange(240.0)
    numbers[[5, 6, 7]] = np.nan
    table = table_of(
        **{**raw, "labels": pa.array(numbers)},
        task=parse_task({"type": "regression", "target": "n"}),
    )
    rows = torch.cat([table.labelled(split) for split in ("train", "validation", "test")])
    assert set(range(240)) - set(rows.tolist()) == {5, 6, 7}
    assert table.task.outputs == 1
    assert table.batch(rows[:4]).targets.shape == (4, 1)
