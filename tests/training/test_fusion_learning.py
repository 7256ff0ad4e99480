"""Each fusion learns a generated set on which it is known to win over a weaker one."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.training import synthetic
from tests.training.fusion_cases import CLASSES, DIMS, gradients, make, vectors
from training.batch import Batch
from training.built_in import parse_candidate
from training.spec import InputSpec

SETS = {
    "xor": partial(synthetic.parity, modalities=2),
    "parity of three": partial(synthetic.parity, modalities=3),
    "whom to believe": synthetic.whom_to_believe,
    "halves": synthetic.halves,
    "lagged": synthetic.lagged,
}
BATCH = 64


@cache
def drawn(name: str) -> tuple[Batch, Batch]:
    """Rows to learn from, and others to be judged on."""
    return SETS[name](rows=1024, seed=1), SETS[name](rows=500, seed=2)


def accuracy(name: str, *, steps: int = 120, **options: Any) -> float:
    """Accuracy on new rows after a short fit, which ends early if all is learned."""
    train, test = drawn(name)
    spec = parse_candidate({"width": 16, "dropout": 0.0, **options})
    taken = [options["modality"]] if options["type"] == "single" else list(train.embeddings)
    torch.manual_seed(0)
    model: Any = spec.build(
        inputs={m: InputSpec(dim=train.embeddings[m].shape[-1]) for m in taken},
        outputs=int(train.targets.max()) + 1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20)
    generator = torch.Generator().manual_seed(0)
    recent = 1.0
    for _ in range(steps):
        rows = torch.randint(train.rows, (BATCH,), generator=generator)
        parts = ({m: x[rows] for m, x in part.items()} for part in train.inputs)
        loss = F.cross_entropy(model(*parts), train.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        recent = 0.8 * recent + 0.2 * float(loss.detach())
        if recent < 0.05:
            break
    model.eval()
    with torch.no_grad():
        return float((model(*test.inputs).argmax(dim=1) == test.targets).float().mean())


SMALL = {"heads": 2, "layers": 1}
BOTTLENECK = {"type": "bottleneck", "heads": 2, "layers": 2, "fusion_layer": 0}


@pytest.mark.parametrize("combine", ["mean", "learned", "stacked"])
def test_late_fusion_adds_up_what_each_modality_tells(combine) -> None:
    assert accuracy("halves", type="late", combine=combine) > 0.95
    # A sum of answers is no product of them.
    assert accuracy("xor", type="late", combine=combine) < 0.7


@pytest.mark.parametrize("modality", ["odd", "half"])
def test_one_modality_alone_tells_its_part(modality) -> None:
    assert 0.4 < accuracy("halves", type="single", modality=modality) < 0.65


@pytest.mark.parametrize(
    "options",
    [
        {"type": "early"},
        {"type": "gated"},
        {"type": "low_rank", "rank": 2},
        {"type": "attention", **SMALL},
        {"type": "co_attention", **SMALL},
        {"type": "cross_modal", **SMALL},
        BOTTLENECK,
    ],
    ids=lambda options: options["type"],
)
def test_what_late_fusion_cannot_tell_the_others_learn(options) -> None:
    assert accuracy("xor", **options) > 0.95


def test_gates_follow_a_modality_that_tells_whom_to_believe() -> None:
    assert accuracy("whom to believe", type="gated", steps=200) > 0.95
    assert accuracy("whom to believe", type="late", steps=200) < 0.8


def test_a_product_of_three_is_learned_by_low_rank_fusion() -> None:
    assert accuracy("parity of three", type="low_rank", rank=2, steps=200) > 0.95
    assert accuracy("parity of three", type="late", steps=200) < 0.7


@pytest.mark.parametrize("type_", ["co_attention", "cross_modal"])
def test_the_order_of_steps_across_sequences_is_learned_by_cross_attention(type_) -> None:
    assert accuracy("lagged", type=type_, width=32, steps=400, **SMALL) > 0.9


@pytest.mark.parametrize("type_", ["early", "late", "gated", "low_rank"])
def test_what_is_pooled_over_time_has_no_order(type_) -> None:
    assert 0.4 < accuracy("lagged", type=type_) < 0.6


def test_a_stacks_classifiers_learn_alone_and_its_meta_head_from_their_answers() -> None:
    embeddings, presence = vectors(40)
    model = make("late-stacked").train()
    one = make("late-stacked")  # answers by its meta-head alone
    coins = torch.ones(40, 16)  # not below a half: nobody answers alone
    model.coins.factor = coins
    outputs = model(embeddings, presence, {})
    assert torch.equal(outputs, one(embeddings, presence, {}))
    for name, gradient in gradients(model, outputs.square().sum()).items():
        assert (gradient != 0).any() == name.startswith("meta"), name
    # The least number: the first present classifier answers, and the meta-head learns nothing.
    model.coins.factor = torch.zeros(40, 16)
    outputs = model(embeddings, presence, {})
    for i in range(40):
        first = next((m for m in DIMS if presence[m][i]), None)
        if first is not None:
            hidden = model.projections[first](embeddings[first], presence[first])[i]
            torch.testing.assert_close(outputs[i], model.heads[first](hidden))
    some = torch.stack(list(presence.values())).any(dim=0)
    for name, gradient in gradients(model, outputs[some].square().sum()).items():
        assert not (name.startswith("meta") and (gradient != 0).any()), name


def test_half_of_a_stacks_rows_are_answered_alone_each_modality_as_often() -> None:
    model = make("late-stacked").train()
    torch.manual_seed(0)
    present = torch.tensor([[True, False, True]]).expand(20_000, -1)
    share = model._answering_alone(present).float().mean(dim=0)
    torch.testing.assert_close(share, torch.tensor([0.25, 0.0, 0.25]), atol=0.02, rtol=0)


def test_a_stack_begins_as_the_mean_of_what_is_present() -> None:
    spec = parse_candidate({"type": "late", "combine": "stacked", "width": 8})
    torch.manual_seed(0)
    model: Any = spec.build(inputs={m: InputSpec(dim=d) for m, d in DIMS.items()}, outputs=CLASSES)
    embeddings, presence = vectors()
    found = model.eval()(embeddings, presence, {})
    answers = {
        m: model.heads[m](model.projections[m](x, presence[m])) for m, x in embeddings.items()
    }
    for i in range(len(found)):
        there = [answers[m][i] for m in DIMS if presence[m][i]]
        expected = torch.stack(there).mean(dim=0) if there else torch.zeros(CLASSES)
        torch.testing.assert_close(found[i], expected)
