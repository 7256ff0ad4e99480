"""Two real gloo workers on parts of a batch come to what one worker does on the whole."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("gloo_worker.py")
FITS = ["early", "attention", "alignment", "sigmoid", "cca", "translation"]


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gloo_worker", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, run_workers: Callable[[Path], None]
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    run_workers(folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one(cases: ModuleType) -> dict[str, Any]:
    torch.set_num_threads(1)
    return cases.run(lambda first, rows: slice(0, rows), rank=0)


def assert_close(a: Any, b: Any, *, tolerance: float) -> None:
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name", ["even halves", "uneven halves", "all rows on one", "a pair on one alone"]
)
def test_contrastive_loss_and_gradients_are_those_of_one_worker(one, two, name) -> None:
    expected = one["contrastive"][name]
    assert expected["loss"] > 0.1
    assert np.abs(expected["weight"]).sum() > 0.1
    for worker in two:
        for key in ("loss", "weight", "log_scale"):
            assert_close(worker["contrastive"][name][key], expected[key], tolerance=1e-10)


def test_cross_entropy_and_gradients_are_those_of_one_worker(one, two) -> None:
    for worker in two:
        for key in ("loss", "weight"):
            expected = one["classification"][key]
            assert_close(worker["classification"][key], expected, tolerance=1e-10)


@pytest.mark.parametrize("name", ["weighted", "focal", "multilabel", "regression"])
def test_the_loss_of_each_task_is_that_of_one_worker(one, two, name) -> None:
    """However unevenly rows and the weights of their classes are divided."""
    expected = one["tasks"][name]
    assert expected["loss"] > 0.1
    for worker in two:
        for key in ("loss", "weight"):
            assert_close(worker["tasks"][name][key], expected[key], tolerance=1e-10)


def test_a_step_with_all_that_it_draws_is_that_of_one_worker(one, two) -> None:
    for name, expected in one["steps"].items():
        for worker in two:
            found = worker["steps"][name]
            assert_close(found["loss"], expected["loss"], tolerance=1e-9)
            assert_close(found["norm"], expected["norm"], tolerance=1e-9)
            assert found["gradients"].keys() == expected["gradients"].keys()
            for parameter, gradient in expected["gradients"].items():
                assert_close(found["gradients"][parameter], gradient, tolerance=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_a_whole_fit_is_that_of_one_worker(one, two, name) -> None:
    expected = one["fits"][name]
    for worker in two:
        found = worker["fits"][name]
        assert found["best_epoch"] == expected["best_epoch"]
        assert len(found["epochs"]) == len(expected["epochs"])
        for ours, theirs in zip(found["epochs"], expected["epochs"], strict=True):
            assert_close(ours["train_loss"], theirs["train_loss"], tolerance=1e-4)
            assert_close(ours["validation_loss"], theirs["validation_loss"], tolerance=1e-4)
            assert ours["validation_accuracy"] == theirs["validation_accuracy"]
        assert found["rows"] == expected["rows"]
        assert_close(found["probabilities"], expected["probabilities"], tolerance=2e-3)


@pytest.mark.parametrize("name", FITS)
def test_what_a_model_leans_on_and_stands_is_that_of_one_worker(one, two, name) -> None:
    expected = one["fits"][name]
    assert np.ptp(expected["perturbed"]) > 0.01
    for worker in two:
        found = worker["fits"][name]
        assert_close(found["temperature"], expected["temperature"], tolerance=2e-2)
        for what in ("subsets", "perturbed", "shapley"):
            assert_close(found[what], expected[what], tolerance=1e-2)


@pytest.mark.parametrize("name", FITS)
def test_workers_agree_to_the_last_bit(two, name) -> None:
    first, second = (worker["fits"][name] for worker in two)
    assert first == second


@pytest.mark.parametrize("name", FITS)
def test_a_fit_resumed_by_two_workers_ends_in_the_same_bits(two, name) -> None:
    assert all(worker["fits"][name]["resumed alike"] for worker in two)


@pytest.mark.parametrize("name", FITS)
def test_a_worker_without_a_row_takes_part_in_the_step(one, two, name) -> None:
    assert two[0]["without rows"][name] == two[1]["without rows"][name]
    assert_close(two[0]["without rows"][name], one["without rows"][name], tolerance=1e-4)


def test_each_worker_ranks_a_part_of_the_rows_among_all(one, two) -> None:
    expected, ranks = one["ranked"], np.array(one["ranked"]["ranks"])
    assert {len(expected["rows"])} == {len(ranks)} == {90}
    assert 0 < expected["metrics"]["test"]["recall_at_10"] < 1
    assert two[0]["ranked"] == two[1]["ranked"]
    assert two[0]["ranked"]["rows"] == expected["rows"]
    # A batch of other rows rounds otherwise, which may set a rank or two one place apart.
    found = np.array(two[0]["ranked"]["ranks"])
    assert ((found == -1) == (ranks == -1)).all() and (ranks == -1).any()
    assert np.abs(found - ranks).max() <= 1 and (found != ranks).mean() < 0.02


def test_candidates_in_one_pass_are_those_of_one_worker(one, two) -> None:
    expected = one["stack"]
    assert expected["failed"] == [False, False, True]
    assert expected["step"] == 3
    for worker in two:
        found = worker["stack"]
        assert found["failed"] == expected["failed"]
        assert found["resumed alike"]
        for key in ("losses", "validation"):
            for ours, theirs in zip(found[key], expected[key], strict=True):
                assert_close(ours, theirs, tolerance=1e-4)
    assert two[0]["stack"] == two[1]["stack"]


def test_workers_agree_on_when_a_checkpoint_is_made(two) -> None:
    assert two[0]["called"] == two[1]["called"]
    assert two[0]["called"] == [1, 2, 3, 0]


def test_all_workers_give_up_together_and_say_the_same(one, two) -> None:
    assert two[0]["failure"] == two[1]["failure"]
    for key in ("epoch", "step", "learning_rate", "sample_ids"):
        assert two[0]["failure"][key] == one["failure"][key]


def test_rows_are_joined_in_the_workers_order_though_one_has_none(two) -> None:
    rows = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert [worker["gathered"] for worker in two] == [
        {"rows": rows, "first": 0, "at first": rows},
        {"rows": rows, "first": 3, "at first": []},
    ]


def test_a_parameter_that_one_worker_never_reached_has_a_gradient_on_both(two) -> None:
    assert two[0]["unreached"] == two[1]["unreached"]
    assert two[0]["unreached"]["b.weight"] == [[1.0]]
    assert two[0]["unreached"]["a.bias"] == [1.0]


def test_a_worker_that_fails_alone_learns_that_the_others_have_not(two) -> None:
    assert two[0]["agreed"] == [True, False]
    assert two[1]["agreed"][0] is True
