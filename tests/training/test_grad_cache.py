from __future__ import annotations

import pytest
import torch

from training.batch import Batch
from training.models.alignment import Alignment
from training.models.layers import seed_dropout
from training.spec import InputSpec

ROWS = 11


def make(loss: str, *, cache_rows: int | None) -> tuple[Alignment, Batch]:
    torch.manual_seed(0)
    model = Alignment(
        {"a": InputSpec(dim=3), "b": InputSpec(dim=4, sequence=True)},
        outputs=2,
        width=8,
        dropout=0.4,
        dim=5,
        temperature=0.1,
        loss=loss,
        cache_rows=cache_rows,
    ).double()
    batch = Batch(
        embeddings={
            "a": torch.randn(ROWS, 3, dtype=torch.float64),
            "b": torch.randn(ROWS, 6, 4, dtype=torch.float64),
        },
        presence={m: torch.rand(ROWS) < 0.8 for m in "ab"},
        targets=torch.zeros(ROWS, dtype=torch.int64),
        masks={"b": torch.rand(ROWS, 6) < 0.7},
    )
    return model, batch


def outcome(loss: str, *, cache_rows: int | None, seeded: bool) -> dict[str, torch.Tensor]:
    model, batch = make(loss, cache_rows=cache_rows)
    if seeded:
        seed_dropout(model, seed=7, rows=40, first=13)
    torch.manual_seed(1)
    share = model.train().loss_share(batch)
    share.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": share.detach(), **gradients}


@pytest.mark.parametrize("cache_rows", [1, 4, 10])
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_gradients_are_those_of_the_whole_batch_with_the_same_dropout(loss, cache_rows) -> None:
    whole = outcome(loss, cache_rows=None, seeded=True)
    chunked = outcome(loss, cache_rows=cache_rows, seeded=True)
    assert whole.keys() == chunked.keys()
    assert all(g.abs().sum() > 0 for g in whole.values())
    for name, expected in whole.items():
        torch.testing.assert_close(chunked[name], expected, rtol=1e-10, atol=1e-12)


def test_what_draws_from_the_global_generator_is_drawn_again_alike() -> None:
    # Unseeded dropout, of which the second pass knows only by the generator's state. With all in
    # one chunk but for the last row, the first chunk's draws are not those of the whole batch; so
    # it is held against the gradient by differences of the very same draws.
    model, batch = make("infonce", cache_rows=4)
    model.train()

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return model.loss_share(batch)

    loss().backward()
    weight = model.heads["a"].weight
    expected = torch.empty_like(weight)
    with torch.no_grad():
        for place in range(weight.numel()):
            flat = weight.view(-1)
            values = []
            for step in (1e-6, -2e-6):
                flat[place] += step
                values.append(float(loss()))
            flat[place] += 1e-6
            expected.view(-1)[place] = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_activations_of_one_chunk_are_kept_at_a_time() -> None:
    """Of what autograd keeps, the towers' hidden layers are none with chunks, and all without."""

    def kept(cache_rows: int | None) -> int:
        model, batch = make("infonce", cache_rows=cache_rows)
        model.train()
        sizes = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.loss_share(batch)
        return sum(sizes)

    assert kept(2) < 0.5 * kept(None)


def test_without_gradients_nothing_is_run_twice() -> None:
    model, batch = make("sigmoid", cache_rows=3)
    model.eval()
    calls = []
    model.heads["a"].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        chunked = model.loss_share(batch)
        assert len(calls) == 4
        model.cache_rows = None
        torch.testing.assert_close(chunked, model.loss_share(batch))
