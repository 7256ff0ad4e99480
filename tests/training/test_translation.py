"""Mapping between modalities: losses by hand, exact over workers, and that it learns."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batch import Batch
from training.built_in import parse_candidate
from training.candidate import load_model, plan_candidates
from training.data.table import load_table
from training.fitting.step import make_optimizer, train_step
from training.models.layers import seed_dropout
from training.models.translation import Translation
from training.produce import produce_candidate
from training.spec import InputSpec
from training.task import ClassificationSpec
from training.training_spec import TrainingSpec

ADVERSARIES = ("none", "hinge", "wgan-gp")


def make(**options: object) -> Translation:
    spec = parse_candidate({"type": "translation", "width": 16, "noise": 4, **options})
    torch.manual_seed(0)
    inputs = {"a": InputSpec(dim=3), "b": InputSpec(dim=5)}
    model = spec.build(inputs=inputs, outputs=2)
    assert isinstance(model, Translation)
    return model


def batch(rows: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, 3, generator=generator)
    mixed = hidden @ torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    presence = {m: torch.ones(rows, dtype=torch.bool) for m in "ab"}
    presence["a"][: rows // 4] = False
    presence["b"][rows // 5 : rows // 2] = False
    return Batch(
        embeddings={"a": hidden, "b": mixed},
        presence=presence,
        targets=(hidden[:, 0] > 0).long(),
    )


def filled_with(given: Batch, value: float) -> Batch:
    values = {
        m: torch.where(given.presence[m][:, None], x, value) for m, x in given.embeddings.items()
    }
    return Batch(embeddings=values, presence=given.presence, targets=given.targets)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_what_is_missing_has_no_influence_on_a_loss_or_gradient(adversary: str) -> None:
    found = []
    for value in (0.0, 1e6, math.nan):
        model = make(adversary=adversary).train()
        seed_dropout(model, seed=1, rows=20, first=0)
        loss = model.loss_share(filled_with(batch(), value))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_the_hinge_loss_and_its_gradients_are_those_of_two_separate_losses() -> None:
    """The generator's and the discriminator's, each differentiated by its own weights alone."""
    model = make(adversary="hinge", regression_weight=0.5, adversary_weight=0.3, cycle_weight=0)
    model.train()
    seed_dropout(model, seed=3, rows=20, first=0)
    given = batch()
    model.loss_share(given).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}

    both = given.presence["a"] & given.presence["b"]
    x = {m: given.embeddings[m][both] for m in "ab"}

    def made(source: str, target: str) -> Tensor:
        scaled = model.standardised(*given.inputs)[source]
        return model.translate(scaled, source=source, target=target)[both]

    for kind in ("generators", "discriminators"):
        for a, b in (("a", "b"), ("b", "a")):
            judge = model.discriminators[f"{a}->{b}"]
            fake = made(a, b)
            if kind == "generators":
                loss = 0.5 * F.mse_loss(fake, x[b]) - 0.3 * judge(x[a], fake).mean()
            else:
                real, false = judge(x[a], x[b]), judge(x[a], fake.detach())
                loss = (1 - real).clamp(min=0).mean() + (1 + false).clamp(min=0).mean()
            own = dict(getattr(model, kind)[f"{a}->{b}"].named_parameters())
            expected = torch.autograd.grad(loss / 2, list(own.values()))
            for (name, _), value in zip(own.items(), expected, strict=True):
                full = f"{kind}.layers.of-{a}->{b}.{name}"
                torch.testing.assert_close(gradients[full], value, rtol=1e-4, atol=1e-6)


def test_the_gradient_penalty_is_that_of_a_linear_judge() -> None:
    """Whose slope is its weight, wherever it is taken."""
    model = make(adversary="wgan-gp").train()
    judge = model.discriminators["a->b"]
    weight = torch.randn(5)
    judge.forward = lambda x, y: y @ weight  # type: ignore[method-assign]
    x, y = torch.randn(7, 3), torch.randn(7, 5)
    penalty = model._penalty(judge, x, y, torch.randn(7, 5))
    expected = 10 * (weight.norm() - 1) ** 2
    torch.testing.assert_close(penalty, expected.expand(7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_shares_of_uneven_parts_sum_to_the_whole(
    adversary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(adversary=adversary).train()
    given = batch()
    seed_dropout(model, seed=1, rows=20, first=0)
    whole = model.loss_share(given)
    both = int((given.presence["a"] & given.presence["b"]).sum())
    # As if the other part were on another worker: the count is that of all.
    monkeypatch.setattr(
        "training.workers.sum_over_workers", lambda x, group=None: torch.tensor(float(both))
    )
    total = torch.zeros(())
    for first, stop in ((0, 13), (13, 20), (20, 20)):
        part = slice(first, stop)
        seed_dropout(model, seed=1, rows=20, first=first)
        total = total + model.loss_share(
            Batch(
                embeddings={m: x[part] for m, x in given.embeddings.items()},
                presence={m: p[part] for m, p in given.presence.items()},
                targets=given.targets[part],
            )
        )
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_a_translation_learns_to_find_its_counterpart(adversary: str) -> None:
    model = make(adversary=adversary, width=64, learning_rate=3e-3)
    spec = parse_candidate({"type": "translation", "learning_rate": 3e-3})
    optimizer = make_optimizer(model, spec=spec)
    seen, unseen = batch(600), batch(1000)

    def found() -> float:
        """Share of unseen rows whose own target is the nearest to what is made of the source."""
        model.eval()
        given = model.standardised(*unseen.inputs)
        rows = (unseen.presence["a"] & unseen.presence["b"]).nonzero().squeeze(1)[-200:]
        with torch.no_grad():
            made = model.translate(given["a"][rows], source="a", target="b")
        nearest = torch.cdist(made, given["b"][rows]).argmin(dim=1)
        return float((nearest == torch.arange(200)).float().mean())

    before = found()
    for step in range(300):
        model.train()
        seed_dropout(model, seed=step, rows=600, first=0)
        outcome = train_step(model, optimizer=optimizer, batch=seen, objective="own")
        assert outcome.finite
    assert before < 0.05
    assert found() > 0.2, "40 times what chance would find"


def test_what_is_filled_in_is_the_mean_of_the_translations_and_nothing_where_nothing_is() -> None:
    spec = parse_candidate({"type": "translation", "width": 8})
    torch.manual_seed(0)
    inputs = {
        m: InputSpec(dim=d, mean=torch.ones(d), std=torch.full((d,), 2.0))
        for m, d in (("a", 2), ("b", 3), ("c", 4))
    }
    model = spec.build(inputs=inputs, outputs=2).eval()
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 3), "c": torch.randn(3, 4)}
    presence = {
        "a": torch.tensor([True, True, False]),
        "b": torch.tensor([True, False, False]),
        "c": torch.tensor([False, False, False]),
    }
    filled = model.filled(x, presence, {})
    given = {m: (x[m] - 1) / 2 for m in x}
    torch.testing.assert_close(filled["a"][0], given["a"][0])
    from_a = model.translate(given["a"][:2], source="a", target="c")
    from_b = model.translate(given["b"][:1], source="b", target="c")
    torch.testing.assert_close(filled["c"][0], (from_a[0] + from_b[0]) / 2)
    torch.testing.assert_close(filled["c"][1], from_a[1])
    assert all((values[2] == 0).all() for values in filled.values())
    model.fill = False
    assert (model.filled(x, presence, {})["c"] == 0).all()
    assert model(x, presence, {}).shape == (3, 2)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        parse_candidate({"type": "translation", "adversary": "none", "regression_weight": 0})


def test_a_whole_fit_is_probed_and_judged_by_retrieval(make_store: Any) -> None:
    store, snapshot = make_store()
    spec = parse_candidate({"type": "translation", "width": 32, "learning_rate": 0.01})
    task, training = ClassificationSpec(target="label"), TrainingSpec(batch_size=64, max_epochs=15)
    (planned,) = plan_candidates(
        store, snapshot=snapshot, task=task, candidates=[spec], training=training
    )
    table = load_table(store, snapshot, task=task, modalities=planned.modalities)
    record = produce_candidate(
        planned, store=store, snapshot=snapshot, task=task, training=training, table=table
    )
    assert record.status == "fitted" and record.metrics is not None
    assert record.metrics["test"]["accuracy"] > 0.5
    assert {(item["query"], item["target"]) for item in record.retrieval} == set(
        permutations(planned.modalities, 2)
    )
    for item in record.retrieval:
        assert item["class_recall"]["10"] > item["class_chance"]["1"]
    model = load_model(store, record.fingerprint)
    batch = table.batch(torch.arange(20), modalities=planned.modalities)
    with torch.no_grad():
        assert model(*batch.inputs).shape == (20, 4)
