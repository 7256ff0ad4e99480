from __future__ import annotations

import math

import pytest
import torch

from training.losses.contrastive import info_nce
from training.models.alignment import Alignment
from training.spec import InputSpec


def make(**options: object) -> Alignment:
    torch.manual_seed(0)
    inputs = {"a": InputSpec(dim=3), "b": InputSpec(dim=4)}
    settings = {"outputs": 3, "width": 8, "dropout": 0.0, "dim": 5, "temperature": 0.1}
    return Alignment(inputs, **{**settings, **options})


def data() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    embeddings = {"a": torch.randn(6, 3), "b": torch.randn(6, 4)}
    presence = {
        "a": torch.tensor([1, 1, 1, 0, 0, 1]).bool(),
        "b": torch.tensor([1, 1, 0, 1, 0, 1]).bool(),
    }
    return embeddings, presence


def each_of(
    model: Alignment, given: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
) -> dict[str, torch.Tensor]:
    """The vectors of each modality."""
    aligned_BMS, _ = model.embed_all(*(given or data()), {})
    return {m: aligned_BMS[:, i] for i, m in enumerate(model.heads)}


def test_embeddings_are_unit_vectors_where_present_and_zero_elsewhere() -> None:
    _, presence = data()
    for modality, vectors in each_of(make()).items():
        norms = vectors.norm(dim=1)
        torch.testing.assert_close(norms, presence[modality].float())


def test_joint_is_the_mean_of_what_is_present() -> None:
    embeddings, presence = data()
    model = make()
    each, joint = each_of(model), model.fuse(embeddings, presence, {})
    torch.testing.assert_close(joint[0], (each["a"][0] + each["b"][0]) / 2)
    torch.testing.assert_close(joint[2], each["a"][2])
    torch.testing.assert_close(joint[3], each["b"][3])
    assert (joint[4] == 0).all()


def test_logits_are_the_probes_and_the_prior_where_nothing_is_present() -> None:
    embeddings, presence = data()
    model = make()
    weight, bias, prior = torch.randn(3, 5), torch.randn(3), torch.tensor([0.5, 0.3, 0.2]).log()
    model.set_probe(weight_CS=weight, bias_C=bias, prior_C=prior)
    logits = model(embeddings, presence, {})
    joint = model.fuse(embeddings, presence, {})
    torch.testing.assert_close(logits[:4], joint[:4] @ weight.T + bias)
    assert torch.equal(logits[4], prior)


def test_temperature_starts_as_given_learns_and_is_held_in_bounds() -> None:
    embeddings, presence = data()
    model = make(temperature=0.1)
    assert float(model.scale.detach()) == pytest.approx(10.0)
    aligned, present = model.embed_all(embeddings, presence, {})
    info_nce(aligned, presence_BM=present, scale=model.scale).backward()
    assert model.log_scale.grad.abs() > 0
    for value, expected in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            model.log_scale.fill_(value)
        model.after_step()
        assert float(model.scale.detach()) == pytest.approx(expected, rel=1e-5)
    assert math.exp(model.log_scale.item()) <= 100.001


def test_training_draws_pairs_together() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 3)
    embeddings = {"a": hidden, "b": hidden @ torch.randn(3, 4)}
    presence = {m: torch.ones(40, dtype=torch.bool) for m in embeddings}
    model = make(dim=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def found() -> float:
        each = each_of(model, (embeddings, presence))
        return float(((each["a"] @ each["b"].T).argmax(dim=1) == torch.arange(40)).float().mean())

    before = found()
    for _ in range(150):
        aligned, present = model.embed_all(embeddings, presence, {})
        loss = info_nce(aligned, presence_BM=present, scale=model.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.2
    assert found() > 0.6
