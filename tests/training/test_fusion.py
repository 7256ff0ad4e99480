from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.training.fusion_cases import (
    BY_STEPS,
    CLASSES,
    DIMS,
    FUSIONS,
    KINDS,
    ROWS,
    SUPERVISED,
    filled,
    gradients,
    inputs,
    make,
    sequences,
    vectors,
)
from training.built_in import parse_candidate
from training.candidate import model_bytes
from training.fitting.loop import fit_candidate
from training.models.layers import (
    DRAWN_AT_ONCE,
    AttentionBlock,
    Draw,
    Projection,
    RowDropout,
    dropout_layers,
    seed_dropout,
)
from training.spec import InputSpec
from training.training_spec import TrainingSpec

GARBAGE = (math.nan, math.inf, 1e30, 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_a_missing_row_changes_no_output_and_no_gradient(kind, garbage) -> None:
    embeddings, presence = vectors()
    model = make(kind)
    outcomes = []
    for value in (3.7, garbage):
        outputs = model(filled(embeddings, presence, {}, value), presence, {})
        outcomes.append([outputs, *gradients_of(kind, model, outputs)])
        assert all(torch.isfinite(x).all() for x in outcomes[-1])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_a_step_that_is_not_there_has_no_influence(kind, garbage) -> None:
    embeddings, presence, masks = sequences()
    model = make(kind)
    outcomes = []
    for value in (3.7, garbage):
        outputs = model(filled(embeddings, presence, masks, value), presence, masks)
        outcomes.append([outputs, *gradients_of(kind, model, outputs)])
        assert all(torch.isfinite(x).all() for x in outcomes[-1])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def gradients_of(kind: str, model: nn.Module, outputs: torch.Tensor) -> list[torch.Tensor]:
    if kind == "alignment":  # its probe is not trained by gradients
        return []
    return list(gradients(model, outputs.square().sum()).values())


@pytest.mark.parametrize("kind", KINDS)
def test_how_far_a_sequence_is_padded_changes_nothing(kind) -> None:
    embeddings, presence, masks = sequences()
    model = make(kind)
    expected = model(embeddings, presence, masks)
    for m, mask in masks.items():
        embeddings[m] = nn.functional.pad(embeddings[m], (0, 0, 0, 4), value=math.nan)
        masks[m] = nn.functional.pad(mask, (0, 4))
    found = model(embeddings, presence, masks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_one_step_is_the_vector_itself(kind) -> None:
    embeddings, presence = vectors()
    model = make(kind)
    masks = {m: torch.ones(ROWS, 1, dtype=torch.bool) for m in DIMS}
    found = model({m: x[:, None] for m, x in embeddings.items()}, presence, masks)
    expected = model(embeddings, presence, {})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_have_no_step_in_any_row_are_answered(kind) -> None:
    embeddings, presence, masks = sequences()
    presence["photo"][:] = False
    model = make(kind)
    expected = model(embeddings, presence, masks)
    embeddings["photo"], masks["photo"] = embeddings["photo"][:, :0], masks["photo"][:, :0]
    found = model(embeddings, presence, masks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_steps_matters_to_those_that_take_them_one_by_one(kind) -> None:
    embeddings, presence, masks = sequences()
    model = make(kind)
    expected = model(embeddings, presence, masks)
    embeddings["photo"] = embeddings["photo"].flip(1)
    masks["photo"] = masks["photo"].flip(1)
    moved = (model(embeddings, presence, masks) - expected).abs().amax(dim=1) > 1e-4
    assert torch.equal(moved, presence["photo"] & (kind in BY_STEPS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_present_row_does_change_the_output(kind) -> None:
    embeddings, presence = vectors()
    model = make(kind)
    moved = {m: x + presence[m][:, None] for m, x in embeddings.items()}
    some = presence["photo"] if kind == "single" else torch.stack(list(presence.values())).any(0)
    changed = (model(embeddings, presence, {}) != model(moved, presence, {})).any(dim=1)
    assert torch.equal(changed, some)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent_of_each_other(kind) -> None:
    embeddings, presence, masks = sequences()
    model = make(kind)
    together = model(embeddings, presence, masks)
    for i in range(ROWS):
        row = slice(i, i + 1)
        alone = model(
            {m: x[row] for m, x in embeddings.items()},
            {m: p[row] for m, p in presence.items()},
            {m: x[row] for m, x in masks.items()},
        )
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_modality_at_all_is_answered_alike_for_every_row(kind) -> None:
    embeddings, _ = vectors()
    model = make(kind)
    logits = model(embeddings, {m: torch.zeros(ROWS, dtype=torch.bool) for m in DIMS}, {})
    assert torch.isfinite(logits).all()
    assert (logits == logits[0]).all()
    if kind in ("single", "gated", "co_attention", "bottleneck"):
        assert torch.equal(logits[0], model.head.bias)
    elif kind.startswith("late") or kind == "alignment":
        assert torch.equal(logits[0], model.prior_C)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_answered(kind) -> None:
    embeddings, presence, masks = sequences()
    logits = make(kind)(
        {m: x[:0] for m, x in embeddings.items()},
        {m: p[:0] for m, p in presence.items()},
        {m: x[:0] for m, x in masks.items()},
    )
    assert logits.shape == (0, CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_vector_is_one_a_row(kind) -> None:
    fused = make(kind).fuse(*sequences())
    assert fused.shape == (ROWS, 6 if kind == "alignment" else 8)


@pytest.mark.parametrize("kind", KINDS)
def test_its_file_of_weights_holds_all_that_it_knows(kind) -> None:
    given, model = sequences(), make(kind).eval()
    spec = parse_candidate({"width": 8, **KINDS[kind]})
    names = ("photo",) if kind == "single" else tuple(DIMS)
    other = spec.build(inputs={m: InputSpec(dim=DIMS[m]) for m in names}, outputs=CLASSES).eval()
    assert not torch.equal(other(*given), model(*given))
    other.load_state_dict(safetensors.torch.load(model_bytes(model)))
    assert torch.equal(other(*given), model(*given))


@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_fit_over_a_table_with_missing_modalities_learns(kind, table) -> None:
    spec = parse_candidate({"width": 16, **KINDS[kind], "learning_rate": 3e-3})
    training = TrainingSpec(batch_size=64, max_epochs=6, patience=6)
    fitted = fit_candidate(spec, table=table, training=training)
    assert fitted.failure is None
    losses = [epoch.validation_loss for epoch in fitted.epochs]
    assert min(losses) < 0.9 * losses[0]


@pytest.mark.parametrize("kind", SUPERVISED)
def test_every_parameter_learns(kind) -> None:
    # Where a pooled modality is asked, the one key is all there is, whatever the query.
    embeddings, presence, masks = sequences(40, pooled=())
    model = make(kind).train()
    loss = nn.functional.cross_entropy(
        model(embeddings, presence, masks), torch.arange(40) % CLASSES
    )
    for name, gradient in gradients(model, loss).items():
        assert gradient.abs().max() > 1e-7, name


@pytest.mark.parametrize("kind", FUSIONS)
def test_several_models_at_once_are_each_as_alone(kind) -> None:
    """Stacked parameters and given dropout, as many candidates are fitted in one pass."""
    embeddings, presence = vectors()
    models = [make(kind, dropout=0.4, seed=seed).train() for seed in range(3)]
    models[0](embeddings, presence, {})  # meets the shapes of what is dropped
    generator = torch.Generator().manual_seed(5)
    factors = {
        f"{name}.factor": (torch.rand(3, ROWS, *layer.shape, generator=generator) < 0.6) / 0.6
        for name, layer in models[0].named_modules()
        if isinstance(layer, RowDropout)
    }
    assert len(factors) == len(dropout_layers(models[0])) > 0
    parameters, buffers = torch.func.stack_module_state(models)

    def loss(parameters, buffers):
        outputs = torch.func.functional_call(
            models[0], (parameters, buffers), (embeddings, presence, {})
        )
        return outputs.square().sum(), outputs

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        found, outputs = torch.vmap(torch.func.grad(loss, has_aux=True))(
            parameters, {**buffers, **factors}
        )
    for i, model in enumerate(models):
        for name, layer in model.named_modules():
            if isinstance(layer, RowDropout):
                layer.factor = factors[f"{name}.factor"][i]
        alone = model(embeddings, presence, {})
        torch.testing.assert_close(outputs[i], alone, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(model, alone.square().sum()).items():
            torch.testing.assert_close(found[name][i], gradient, rtol=1e-4, atol=1e-4)


def test_projection_standardises_with_the_statistics_given() -> None:
    source = inputs("photo")["photo"]
    layer = Projection(source, width=3, dropout=0.0)
    x = torch.randn(4, 7) * 3
    x[2] = 1e4  # cut off at ten deviations
    scaled = ((x - source.mean) / source.std).clamp(-10, 10)
    torch.testing.assert_close(layer(x, torch.ones(4, dtype=torch.bool)), layer.layers(scaled))
    assert {"mean_D", "std_D"} <= set(layer.state_dict())


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


def test_draws_of_a_gpu_belong_to_rows_of_the_global_batch() -> None:
    """By the way of a GPU, taken on a CPU; in several blocks, which workers may divide."""
    total = 2 * DRAWN_AT_ONCE + 90

    def kept(first: int, rows: int, *, seed: int = 5) -> torch.Tensor:
        draw = Draw(seed=seed, rows=total, first=first)
        return draw._kept_by_torch(rows, shape=(3, 50), probability=0.4, device="cpu")

    whole = kept(0, total)
    assert whole.shape == (total, 3, 50) and kept(7, 0).shape == (0, 3, 50)
    for cut in (3, DRAWN_AT_ONCE, DRAWN_AT_ONCE + 1, total - 1):
        assert torch.equal(torch.cat([kept(0, cut), kept(cut, total - cut)]), whole)
    assert not torch.equal(kept(0, total, seed=6), whole)
    blocks = whole[: 2 * DRAWN_AT_ONCE].chunk(2)
    assert not torch.equal(*blocks)
    assert float(whole.float().mean()) == pytest.approx(0.6, abs=0.02)


def test_dropout_is_off_in_evaluation() -> None:
    x = torch.randn(4, 8)
    assert torch.equal(RowDropout(0.9).eval()(x), x)
