from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from training.alignment import Alignment
from training.fusion import AttentionFusion, EarlyFusion, LateFusion, SingleModality
from training.layers import AttentionBlock, Projection, RowDropout, seed_dropout
from training.spec import InputSpec

DIMS = {"caption": 5, "photo": 7, "speech": 6}
CLASSES = 4


def inputs(*names: str) -> dict[str, InputSpec]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: InputSpec(
            dim=DIMS[name],
            mean=torch.randn(DIMS[name], generator=generator),
            std=torch.rand(DIMS[name], generator=generator) + 0.5,
        )
        for name in names or DIMS
    }


def make(kind: str, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    options = {"outputs": CLASSES, "width": 8, "dropout": dropout}
    match kind:
        case "single":
            return SingleModality(inputs("photo"), **options)
        case "early":
            return EarlyFusion(inputs(), **options)
        case "late":
            model = LateFusion(inputs(), **options)
            nn.init.normal_(model.weight_M)
            return model
        case "attention":
            return AttentionFusion(inputs(), **options, layers=2, heads=2)
    model = Alignment(inputs(), **options, dim=6, temperature=0.1)
    model.set_probe(
        weight_CS=torch.randn(CLASSES, 6), bias_C=torch.randn(CLASSES), prior_C=torch.randn(CLASSES)
    )
    return model


def data(rows: int = 12) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    embeddings = {m: torch.randn(rows, d, generator=generator) for m, d in DIMS.items()}
    presence = {m: torch.rand(rows, generator=generator) < 0.6 for m in DIMS}
    for m in DIMS:
        presence[m][0], presence[m][1] = False, True  # none at all, and all
    return embeddings, presence


def with_masked(
    embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor], value: float
) -> dict[str, Tensor]:
    return {
        m: torch.where(presence[m][:, None], x, torch.full_like(x, value))
        for m, x in embeddings.items()
    }


KINDS = ("single", "early", "late", "attention", "alignment")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30, 0.0])
def test_what_stands_in_a_missing_row_changes_no_output_and_no_gradient(kind, garbage) -> None:
    embeddings, presence = data()
    outcomes = []
    for value in (3.7, garbage):
        model = make(kind)
        logits = model(with_masked(embeddings, presence, value), presence, {})
        if kind != "alignment":  # its probe is not trained by gradients
            logits.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(g).all() for g in gradients)
        outcomes.append([logits, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_present_row_does_change_the_output(kind) -> None:
    embeddings, presence = data()
    model = make(kind)
    moved = {m: x + presence[m][:, None] for m, x in embeddings.items()}
    some = presence["photo"] if kind == "single" else torch.stack(list(presence.values())).any(0)
    changed = (model(embeddings, presence, {}) != model(moved, presence, {})).any(dim=1)
    assert torch.equal(changed, some)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent_of_each_other(kind) -> None:
    embeddings, presence = data()
    model = make(kind)
    together = model(embeddings, presence, {})
    for i in range(len(together)):
        row = slice(i, i + 1)
        alone = model(
            {m: x[row] for m, x in embeddings.items()},
            {m: p[row] for m, p in presence.items()},
            {},
        )
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_modality_at_all_is_answered_alike_for_every_row(kind) -> None:
    embeddings, _ = data()
    model = make(kind)
    alone = {"single": lambda: model.head.bias, "early": lambda: None, "attention": lambda: None}
    answer = alone.get(kind, lambda: model.prior_C)()
    if kind in ("single", "late"):
        nn.init.normal_(answer)
    logits = model(embeddings, {m: torch.zeros(12, dtype=torch.bool) for m in DIMS}, {})
    assert torch.isfinite(logits).all()
    assert (logits == logits[0]).all()
    if answer is not None:
        assert torch.equal(logits[0], answer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_answered(kind) -> None:
    embeddings, presence = data()
    logits = make(kind)(
        {m: x[:0] for m, x in embeddings.items()}, {m: p[:0] for m, p in presence.items()}, {}
    )
    assert logits.shape == (0, CLASSES)


@pytest.mark.parametrize("kind", ["single", "early", "late", "attention"])
def test_every_parameter_learns(kind) -> None:
    embeddings, presence = data()
    model = make(kind)
    loss = nn.functional.cross_entropy(model(embeddings, presence, {}), torch.arange(12) % CLASSES)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_projection_standardises_with_the_statistics_given() -> None:
    source = inputs("photo")["photo"]
    layer = Projection(source, width=3, dropout=0.0)
    x = torch.randn(4, 7) * 3
    x[2] = 1e4  # cut off at ten deviations
    scaled = ((x - source.mean) / source.std).clamp(-10, 10)
    torch.testing.assert_close(layer(x, torch.ones(4, dtype=torch.bool)), layer.layers(scaled))
    assert {"mean_D", "std_D"} <= set(layer.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_steps_behind_a_sequences_end_have_no_influence(kind) -> None:
    embeddings, presence = data()
    generator = torch.Generator().manual_seed(3)
    longer = {m: torch.randn(12, 4, d, generator=generator) for m, d in DIMS.items()}
    masks = {m: torch.arange(4)[None, :] < torch.randint(1, 5, (12, 1)) for m in DIMS}
    model = make(kind)
    expected = model(longer, presence, masks)
    for value in (1e6, math.nan, math.inf):
        filled = {m: torch.where(masks[m][:, :, None], x, value) for m, x in longer.items()}
        assert torch.equal(model(filled, presence, masks), expected)
    # A sequence of one step is the vector itself.
    ones = {m: torch.ones(12, 1, dtype=torch.bool) for m in DIMS}
    steps = {m: x[:, None] for m, x in embeddings.items()}
    torch.testing.assert_close(
        model(steps, presence, ones), model(embeddings, presence, {}), rtol=1e-5, atol=1e-6
    )


def test_early_fusion_equals_a_row_by_row_reference() -> None:
    embeddings, presence = data()
    model = make("early")
    logits = model(embeddings, presence, {})
    one = torch.ones(1, dtype=torch.bool)
    for i in range(12):
        parts = [
            model.projections[m](embeddings[m][i : i + 1], one)[0]
            if presence[m][i]
            else model.missing_MW[k]
            for k, m in enumerate(DIMS)
        ]
        expected = model.head(model.hidden(torch.cat(parts)))
        torch.testing.assert_close(logits[i], expected, rtol=1e-5, atol=1e-6)


def test_late_fusion_equals_a_row_by_row_reference() -> None:
    embeddings, presence = data()
    model = make("late")
    nn.init.normal_(model.prior_C)
    logits = model(embeddings, presence, {})
    one = torch.ones(1, dtype=torch.bool)
    for i in range(12):
        expected, total = torch.zeros(CLASSES), 0.0
        for k, m in enumerate(DIMS):
            if presence[m][i]:
                hidden = model.projections[m](embeddings[m][i : i + 1], one)[0]
                weight = float(model.weight_M[k].detach().exp())
                expected = expected + weight * model.heads[m](hidden)
                total += weight
        expected = model.prior_C + (expected / total if total else 0.0)
        torch.testing.assert_close(logits[i], expected, rtol=1e-5, atol=1e-6)


def test_attention_block_equals_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    block = AttentionBlock(width=8, heads=2, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_weight": block.query_key_value.weight,
        "self_attn.in_proj_bias": block.query_key_value.bias,
        "self_attn.out_proj.weight": block.attended.weight,
        "self_attn.out_proj.bias": block.attended.bias,
        "norm1.weight": block.attention_norm.weight,
        "norm1.bias": block.attention_norm.bias,
        "norm2.weight": block.mlp[0].weight,
        "norm2.bias": block.mlp[0].bias,
        "linear1.weight": block.mlp[1].weight,
        "linear1.bias": block.mlp[1].bias,
        "linear2.weight": block.mlp[3].weight,
        "linear2.bias": block.mlp[3].bias,
    }
    theirs.load_state_dict({name: value.detach() for name, value in pairs.items()})
    theirs.train()  # the path without their fused kernel
    x = torch.randn(5, 4, 8)
    present = torch.rand(5, 4) < 0.6
    present[:, 0] = True
    expected = theirs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(block(x, present), expected, rtol=1e-5, atol=1e-6)


def test_dropout_draws_belong_to_rows_of_the_global_batch() -> None:
    layer = nn.Sequential(RowDropout(0.4), RowDropout(0.4))
    x = torch.ones(10, 3, 50)
    seed_dropout(layer, seed=5, rows=10, first=0)
    whole = layer(x)
    parts = []
    for first, stop in ((0, 3), (3, 10)):
        seed_dropout(layer, seed=5, rows=10, first=first)
        parts.append(layer(x[first:stop]))
    assert torch.equal(torch.cat(parts), whole)
    seed_dropout(layer, seed=6, rows=10, first=0)
    assert not torch.equal(layer(x), whole)
    # Two layers draw apart: what both keep is 0.6².
    assert float((whole > 0).float().mean()) == pytest.approx(0.36, abs=0.05)
    assert float(whole.mean()) == pytest.approx(1.0, abs=0.15)


def test_dropout_is_off_in_evaluation() -> None:
    x = torch.randn(4, 8)
    assert torch.equal(RowDropout(0.9).eval()(x), x)
