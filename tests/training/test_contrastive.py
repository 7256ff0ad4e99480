"""The contrastive losses of one worker against what is published; then of several against one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.training.contrastive_cases import ROWS, batch, labels, naive_info_nce, naive_sigmoid
from tests.training.contrastive_worker import CASES, PARTS, STEPS_OF_THREE, shares
from tests.training.gloo_worker import STEPS, step_gradients
from training.losses import log_sum_exp
from training.losses.contrastive import info_nce, modality_pairs
from training.losses.positives import positives
from training.losses.sigmoid import sigmoid_loss

SCALE, BIAS = 7.0, -3.0


@pytest.fixture(params=[None, 4], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(log_sum_exp, "BLOCK_ROWS", request.param)
        monkeypatch.setattr(log_sum_exp, "BLOCK_COLUMNS", request.param + 1)


def numbers(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("pairs", [None, [(1, 0), (1, 2)]], ids=["all", "anchor"])
@pytest.mark.parametrize("several", [False, True], ids=["one positive", "several"])
@pytest.mark.parametrize("by_class", [False, True], ids=["", "by class"])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_value_and_gradients_are_those_of_the_whole_matrix(kind, by_class, several, pairs) -> None:
    x, presence, payloads = batch()
    classes = labels() if by_class else None
    assert {-1, 0, 1, 2, 3} == set(labels().tolist())
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    own, other = numbers(SCALE, BIAS), numbers(SCALE, BIAS)
    given = {
        "pairs": pairs,
        "payloads_BM": payloads if several else None,
        "classes_B": classes,
    }
    naive = {"pairs": pairs, "payloads": given["payloads_BM"], "classes": classes}
    if kind == "infonce":
        loss = info_nce(ours, presence_BM=presence, scale=own[0], **given)
        expected = naive_info_nce(theirs, presence, other[0], **naive)
    else:
        loss = sigmoid_loss(ours, presence_BM=presence, scale=own[0], bias=own[1], **given)
        expected = naive_sigmoid(theirs, presence, *other, **naive)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-13)
    for a, b in zip(own, other, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=0)


def test_two_modalities_are_the_losses_that_open_clip_publishes() -> None:
    x, _, _ = batch(modalities=2, missing=0.0)
    presence = torch.ones(ROWS, 2, dtype=torch.bool)
    image, text = x.unbind(1)
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    # ClipLoss.forward
    labels = torch.arange(ROWS)
    per_image, per_text = scale * image @ text.T, scale * text @ image.T
    clip = (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2
    torch.testing.assert_close(info_nce(x, presence_BM=presence, scale=scale), clip)
    # SigLipLoss._loss
    signs = 2 * torch.eye(ROWS) - torch.ones(ROWS)
    siglip = -F.logsigmoid(signs * (scale * image @ text.T + bias)).sum() / ROWS
    ours = sigmoid_loss(x, presence_BM=presence, scale=scale, bias=bias)
    torch.testing.assert_close(ours, siglip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharp_logits_neither_overflow_nor_vanish(dtype) -> None:
    # Opposite vectors at the highest scale: exp(±100) leaves float32 at both ends.
    u = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]]), dim=-1).to(dtype)
    x = torch.stack([u, -u], dim=1).requires_grad_()
    presence = torch.ones(3, 2, dtype=torch.bool)
    scale, bias = torch.tensor(100.0), torch.tensor(-10.0)
    expected = naive_info_nce(x.double(), presence, 100.0)
    loss = info_nce(x, presence_BM=presence, scale=scale)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() > 100
    loss.backward()
    assert x.grad.isfinite().all()
    expected = naive_sigmoid(x.double(), presence, 100.0, -10.0)
    found = sigmoid_loss(x, presence_BM=presence, scale=scale, bias=bias)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_duplicates_are_right_and_not_punished() -> None:
    # Two rows with one photo: their vectors agree, and a perfect space has no more loss than
    # telling its groups apart leaves.
    photo = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2]]
    x = torch.stack([photo, photo], dim=1)
    presence = torch.ones(4, 2, dtype=torch.bool)
    payloads = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 3]])
    given = {"presence_BM": presence, "scale": torch.tensor(50.0)}
    counted = {"payloads_BM": payloads}
    sigmoid = {**given, "bias": torch.tensor(-25.0)}
    assert float(sigmoid_loss(x, **sigmoid, **counted)) < 1e-9
    assert float(sigmoid_loss(x, **sigmoid)) > 10
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(info_nce(x, **given, **counted), x)
    assert gradient.abs().max() < 1e-6


def test_positives_are_counted_once_each() -> None:
    first, second = torch.tensor([0, 0, 1, 2]), torch.tensor([5, 5, 5, 6])
    found = positives(asking=(first, second), asked=(first, second))
    assert found.counts().tolist() == [3, 3, 3, 1]
    values = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    assert found.sums(values).squeeze(1).tolist() == [111, 111, 111, 1000]
    asked = positives(asking=(first, second), asked=(first[:1], second[:1]))
    assert asked.sums(values[:1]).squeeze(1).tolist() == [1, 1, 1, 0]
    assert asked.swapped().sums(values).squeeze(1).tolist() == [111]


def test_three_kinds_of_number_are_counted_once_each_and_absent_ones_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randint(-1, 4, (40,), generator=generator) for _ in range(3)]
    asking = [x[:15] for x in numbers]
    alike = torch.zeros(15, 40, dtype=torch.bool)
    for q, k in zip(asking, numbers, strict=True):
        alike |= (q[:, None] == k) & (q[:, None] != -1)
    found = positives(asking=asking, asked=numbers)
    assert torch.equal(found.counts(), alike.sum(dim=1))
    assert torch.equal(found.swapped().counts(), alike.sum(dim=0))


def test_by_class_it_is_the_loss_of_supcon() -> None:
    # Khosla et al. 2020, equation 2, term by term: anchors of one modality, and the positives and
    # the sum of all in the other; both ways.
    x, _, _ = batch(modalities=2, missing=0.0)
    classes = labels().clamp(min=0)
    total = 0.0
    for asking, asked in (x.unbind(1), reversed(x.unbind(1))):
        for i in range(ROWS):
            whole = sum(float((SCALE * asking[i] @ asked[j]).exp()) for j in range(ROWS))
            right = [p for p in range(ROWS) if classes[p] == classes[i]]
            terms = [math.log(float((SCALE * asking[i] @ asked[p]).exp()) / whole) for p in right]
            total -= sum(terms) / len(right)
    presence = torch.ones(ROWS, 2, dtype=torch.bool)
    found = info_nce(x, presence_BM=presence, scale=torch.tensor(SCALE), classes_B=classes)
    assert float(found) == pytest.approx(total / (2 * ROWS), rel=1e-12)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_what_stands_in_absent_rows_has_no_influence(kind) -> None:
    x, presence, _ = batch()
    spoiled = torch.where(presence[:, :, None], x, torch.nan).requires_grad_()
    scale, bias = numbers(SCALE, BIAS)
    given = {"presence_BM": presence, "scale": scale}
    call = info_nce if kind == "infonce" else sigmoid_loss
    given |= {} if kind == "infonce" else {"bias": bias}
    loss = call(spoiled, **given)
    torch.testing.assert_close(loss, call(x, **given))
    loss.backward()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[~presence] == 0).all()


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_without_two_rows_of_a_pair_the_loss_is_zero(kind) -> None:
    x, _, _ = batch()
    presence = torch.zeros(ROWS, 3, dtype=torch.bool)
    presence[0] = True
    x.requires_grad_()
    scale, bias = numbers(SCALE, BIAS)
    extra = {} if kind == "infonce" else {"bias": bias}
    call = info_nce if kind == "infonce" else sigmoid_loss
    loss = call(x, presence_BM=presence, scale=scale, **extra)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all()


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_the_matrix_of_all_pairs_is_never_held(kind, monkeypatch) -> None:
    rows, widest = 300, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            parts = result if isinstance(result, tuple | list) else [result]
            widest.extend(x.numel() for x in parts if isinstance(x, torch.Tensor))
            return result

    monkeypatch.setattr(log_sum_exp, "BLOCK_ROWS", 40)
    monkeypatch.setattr(log_sum_exp, "BLOCK_COLUMNS", 50)
    x, presence, payloads = batch(rows=rows, modalities=2, missing=0.0)
    x.requires_grad_()
    given = {"presence_BM": presence, "payloads_BM": payloads, "scale": numbers(SCALE)[0]}
    with Watch():
        if kind == "infonce":
            loss = info_nce(x, **given)
        else:
            loss = sigmoid_loss(x, **given, bias=numbers(BIAS)[0])
        loss.backward()
    assert max(widest) <= max(x.numel(), 2 * 40 * 50) < rows**2 / 10


def test_an_anchor_meets_each_other_modality_once() -> None:
    assert modality_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert modality_pairs(4, anchor=2) == [(2, 0), (2, 1), (2, 3)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three real gloo workers came to; the first two also as a group of two."""
    folder = tmp_path_factory.mktemp("ring")
    module = "tests.training.contrastive_worker"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), "3", str(folder)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("case", CASES)
def test_several_workers_come_to_what_one_does(workers, case, parts, count) -> None:
    torch.set_num_threads(1)
    alone = shares(case, part=slice(0, ROWS))
    assert alone["loss"] > 0.1
    for rank in range(count):
        found = workers[rank][str(count)][parts][case]
        for key, expected in alone.items():
            np.testing.assert_allclose(found[key], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STEPS_OF_THREE)
def test_a_step_of_three_workers_is_that_of_one(workers, name) -> None:
    expected = step_gradients(STEPS[name], part=slice(0, 13))
    assert expected["loss"] != 0
    for worker in workers:
        found = worker["steps"][name]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        assert found["gradients"].keys() == expected["gradients"].keys()
        for parameter, gradient in expected["gradients"].items():
            np.testing.assert_allclose(
                found["gradients"][parameter], gradient, rtol=1e-8, atol=1e-10, err_msg=parameter
            )
