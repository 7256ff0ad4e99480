"""Each fusion against an independent reference, in value and in the gradient of every parameter.

The references go row by row over what is present alone, without a mask: what is missing is not
there at all. Attention is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.fusion_cases import CLASSES, DIMS, ROWS, gradients, make, sequences, vectors
from training.models.attention import sinusoids

Row = dict[str, Tensor]
"""Of one row the present modalities' steps `[T, D]`."""


def rows_of(
    embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[Row]:
    return [
        {
            m: x[i][masks[m][i]] if m in masks else x[i : i + 1]
            for m, x in embeddings.items()
            if presence[m][i]
        }
        for i in range(ROWS)
    ]


def projected(model: Any, row: Row) -> Row:
    """Steps `[T, W]` after standardising, linear, norm and GELU."""
    found = {}
    for m, x in row.items():
        layer = model.projections[m]
        linear, norm = layer.layers[0], layer.layers[1]
        scaled = ((x - layer.mean_D) / layer.std_D).clamp(-10, 10)
        normed = F.layer_norm(
            scaled @ linear.weight.T + linear.bias, (8,), norm.weight, norm.bias, norm.eps
        )
        found[m] = normed * 0.5 * (1 + torch.erf(normed / math.sqrt(2)))
    return found


def pooled(model: Any, row: Row) -> Row:
    return {m: x.mean(dim=0) for m, x in projected(model, row).items()}


def placed(model: Any, row: Row) -> Row:
    """Projected steps with sines and cosines of their numbers."""
    found = {}
    for m, x in projected(model, row).items():
        position = torch.tensor(
            [
                [
                    (math.cos if w % 2 else math.sin)(t / 10_000 ** ((w - w % 2) / 8))
                    for w in range(8)
                ]
                for t in range(len(x))
            ],
            dtype=x.dtype,
        )
        found[m] = x + position
    return found


def attention(
    asking: Tensor, asked: Tensor, *, weight: Tensor, bias: Tensor, out: nn.Linear
) -> Tensor:
    """Torch's multi-head attention of two heads, `[Q, W]` by `[K, W]`."""
    answer, _ = F.multi_head_attention_forward(
        asking[:, None],
        asked[:, None],
        asked[:, None],
        asking.shape[-1],
        2,
        weight,
        bias,
        None,
        None,
        False,
        0.0,
        out.weight,
        out.bias,
        need_weights=False,
    )
    return answer[:, 0]


def asks_itself(block: Any, x: Tensor) -> Tensor:
    normed = block.attention_norm(x)
    layer = block.query_key_value
    x = x + attention(normed, normed, weight=layer.weight, bias=layer.bias, out=block.attended)
    return x + block.mlp(x)


def asks_others(block: Any, x: Tensor, others: list[Tensor]) -> Tensor:
    if others:
        query, key_value = block.query, block.key_value
        x = x + attention(
            block.query_norm(x),
            block.key_norm(torch.cat(others)),
            weight=torch.cat([query.weight, key_value.weight]),
            bias=torch.cat([query.bias, key_value.bias]),
            out=block.attended,
        )
    return x + block.mlp(x)


def mean_of(parts: list[Tensor], zero: Tensor) -> Tensor:
    return torch.stack(parts).mean(dim=0) if parts else torch.zeros_like(zero)


def single(model: Any, row: Row) -> Tensor:
    if "photo" not in row:
        return model.head.bias
    return model.head(pooled(model, {"photo": row["photo"]})["photo"])


def early(model: Any, row: Row) -> Tensor:
    hidden = pooled(model, row)
    parts = [hidden.get(m, model.missing_MW[i]) for i, m in enumerate(DIMS)]
    linear = model.hidden[0]
    return model.head(F.gelu(linear.weight @ torch.cat(parts) + linear.bias))


def late(model: Any, row: Row) -> Tensor:
    answer, total = torch.zeros(CLASSES, dtype=torch.float64), 0.0
    for i, m in enumerate(DIMS):
        if m in row:
            weight = 1.0 if model.weight_M is None else model.weight_M[i].exp()
            answer = answer + weight * (model.heads[m].weight @ pooled(model, row)[m])
            total = total + weight
    return model.prior_C + (answer / total if row else 0.0)


def stacked(model: Any, row: Row) -> Tensor:
    """The meta-head alone: its inputs are constants to it."""
    features, flags = [], []
    for m in DIMS:
        there = m in row
        answer = model.heads[m](pooled(model, row)[m]) if there else torch.zeros(CLASSES)
        features.append(answer.detach().double() / max(len(row), 1))
        flags.append(float(there))
    level_1 = torch.cat([*features, torch.tensor(flags, dtype=torch.float64)])
    return model.meta.weight @ level_1 + model.meta.bias


def gated(model: Any, row: Row) -> Tensor:
    hidden = pooled(model, row)
    everything = torch.cat([hidden.get(m, torch.zeros(8, dtype=torch.float64)) for m in DIMS])
    gates = {m: model.gates[m](everything).exp() for m in hidden}
    fused = torch.zeros(8, dtype=torch.float64)
    for m, x in hidden.items():
        fused = fused + gates[m] / sum(gates.values()) * torch.tanh(model.values[m](x))
    return model.head(fused)


def low_rank(model: Any, row: Row) -> Tensor:
    """By the whole tensor of Liu et al. (2018), section 3, over what is present.

    The weight tensor is the sum over ranks of outer products of factors; it is contracted with
    the outer product of the inputs, each with a 1 appended.
    """
    fused = []
    hidden = pooled(model, row)
    extended = {m: torch.cat([x, torch.ones(1, dtype=x.dtype)]) for m, x in hidden.items()}
    letters = "abc"[: len(row)]
    for w in range(8):
        tensor, outer = 0.0, torch.ones((), dtype=torch.float64)
        for r in range(3):
            factors = [
                torch.cat([layer.weight[r * 8 + w], layer.bias[r * 8 + w : r * 8 + w + 1]])
                for layer in (model.factors[m] for m in row)
            ]
            product = torch.einsum(f"{','.join(letters)}->{letters}", *factors) if row else 1.0
            tensor = tensor + model.weight_R[r] * product
        if row:
            outer = torch.einsum(f"{','.join(letters)}->{letters}", *extended.values())
        fused.append((tensor * outer).sum())
    return model.head(torch.stack(fused))


def over_all_tokens(model: Any, row: Row) -> Tensor:
    parts = [x + model.modality_MW[list(DIMS).index(m)] for m, x in placed(model, row).items()]
    x = torch.cat([model.class_W[None], *parts])
    for block in model.blocks:
        x = asks_itself(block, x)
    return model.head(model.norm(x[0]))


def co_attention(model: Any, row: Row) -> Tensor:
    streams = {}
    for m, x in placed(model, row).items():
        i = list(DIMS).index(m)
        streams[m] = torch.cat([model.class_MW[i : i + 1], x + model.modality_MW[i]])
    for layer in model.layers:
        told = {
            m: asks_others(layer.others[m], x, [y for n, y in streams.items() if n != m])
            for m, x in streams.items()
        }
        streams = {m: asks_itself(layer.own[m], x) for m, x in told.items()}
    return model.head(mean_of([model.norm(x[0]) for x in streams.values()], zero=model.norm.bias))


def cross_modal(model: Any, row: Row) -> Tensor:
    tokens = placed(model, row)
    vectors = []
    for i, target in enumerate(DIMS):
        if target not in row:
            vectors.append(model.missing_MV[i])
            continue
        layer, told = model.targets[target], []
        for source in DIMS:
            if source != target:
                x = tokens[target]
                for block in layer.encoders[source].blocks:
                    x = asks_others(block, x, [tokens[source]] if source in row else [])
                told.append(layer.encoders[source].norm(x))
        x = torch.cat(told, dim=-1)
        for block in layer.blocks:
            x = asks_itself(block, x)
        vectors.append(layer.norm(x).mean(dim=0))
    return model.head(F.gelu(model.hidden[0](torch.cat(vectors))))


def bottleneck(model: Any, row: Row) -> Tensor:
    streams = {
        m: torch.cat([model.class_MW[list(DIMS).index(m)][None], x])
        for m, x in placed(model, row).items()
    }
    common = model.bottleneck_NW
    for number, layer in enumerate(model.layers):
        if number < 1:
            streams = {m: asks_itself(layer[m], x) for m, x in streams.items()}
            continue
        both = {m: asks_itself(layer[m], torch.cat([x, common])) for m, x in streams.items()}
        streams = {m: x[: len(streams[m])] for m, x in both.items()}
        common = mean_of([x[-2:] for x in both.values()], zero=common)
    return model.head(mean_of([model.norm(x[0]) for x in streams.values()], zero=model.norm.bias))


REFERENCES: dict[str, Callable[[Any, Row], Tensor]] = {
    "single": single,
    "early": early,
    "late": late,
    "late-mean": late,
    "late-stacked": stacked,
    "gated": gated,
    "low_rank": low_rank,
    "attention": over_all_tokens,
    "co_attention": co_attention,
    "cross_modal": cross_modal,
    "bottleneck": bottleneck,
}


@pytest.mark.parametrize("given", ["vectors", "sequences", "both"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_it_equals_a_reference_row_by_row_in_value_and_gradient(kind, given) -> None:
    pooled_ones = {"vectors": tuple(DIMS), "sequences": (), "both": ("speech",)}[given]
    embeddings, presence, masks = sequences(pooled=pooled_ones)
    model = make(kind).double()
    embeddings = {m: x.double() for m, x in embeddings.items()}
    found = model(embeddings, presence, masks)
    rows = rows_of(embeddings, presence, masks)
    expected = torch.stack([REFERENCES[kind](model, row) for row in rows])
    assert {len(row) for row in rows} >= {0, 1, 2, 3}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weight = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(2)).double()
    theirs = gradients(model, (expected * weight).sum())
    for name, gradient in gradients(model, (found * weight).sum()).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-8, atol=1e-10, msg=name)


def test_two_modalities_are_gated_as_arevalo_et_al_write_it() -> None:
    """`z = σ(W_z [x_1, x_2])`, `h = z tanh(W_1 x_1) + (1 − z) tanh(W_2 x_2)`."""
    model = make("gated", names=("caption", "photo")).double()
    embeddings, _ = vectors()
    there = torch.ones(ROWS, dtype=torch.bool)
    one, two = (model.projections[m](embeddings[m].double(), there) for m in ("caption", "photo"))
    first, second = model.gates["caption"], model.gates["photo"]
    z = torch.sigmoid(
        torch.cat([one, two], dim=1) @ (first.weight - second.weight).T + first.bias - second.bias
    )
    expected = z * torch.tanh(model.values["caption"](one)) + (1 - z) * torch.tanh(
        model.values["photo"](two)
    )
    fused = model.fuse(
        {m: x.double() for m, x in embeddings.items()}, dict.fromkeys(DIMS, there), {}
    )
    torch.testing.assert_close(fused, expected, rtol=1e-9, atol=1e-11)


def test_a_missing_modality_is_the_neutral_element_of_the_tensor() -> None:
    """Over three modalities of which one is missing, the model is one of the other two."""
    embeddings, presence = vectors()
    presence["speech"][:] = False
    three, two = make("low_rank"), make("low_rank", names=("caption", "photo"))
    own = three.state_dict()
    two.load_state_dict({name: own[name] for name in two.state_dict()})
    assert torch.equal(three(embeddings, presence, {}), two(embeddings, presence, {}))


def test_positions_are_those_of_vaswani_et_al() -> None:
    found = sinusoids(torch.zeros(1, 30, 7))
    assert found.shape == (30, 7)
    for step in (0, 1, 29):
        for pair in range(4):
            angle = step / 10_000 ** (2 * pair / 7)
            assert found[step, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-5)
            if pair < 3:
                assert found[step, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-5)
