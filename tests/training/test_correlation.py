"""Canonical correlation against scikit-learn's, and by what defines it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from training.batch import Batch
from training.built_in import parse_candidate
from training.data.table import table_of
from training.evaluation.space import retrieval
from training.fitting.loop import fit_candidate
from training.models.correlation import CanonicalCorrelation
from training.models.layers import Input
from training.spec import InputSpec
from training.training_spec import TrainingSpec

ROWS, TINY = 400, 1e-9
TRAINING = TrainingSpec(batch_size=64, max_epochs=5)


def data(*, modalities: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two signals that all modalities share, in noise, on scales of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(ROWS, 2)) * [1.0, 0.6]
    values = {}
    for name, dim in zip("abc"[:modalities], (5, 7, 4), strict=False):
        mixed = shared @ rng.normal(size=(2, dim)) + 0.8 * rng.normal(size=(ROWS, dim))
        values[name] = torch.from_numpy(mixed * rng.uniform(0.5, 20, dim) + 3).float()
    return values


def batch(
    values: dict[str, torch.Tensor], presence: dict[str, torch.Tensor] | None = None
) -> Batch:
    everywhere = {m: torch.ones(len(x), dtype=torch.bool) for m, x in values.items()}
    rows = len(next(iter(values.values())))
    return Batch(
        embeddings=values, presence=presence or everywhere, targets=torch.zeros(rows).long()
    )


def solved(values: dict[str, torch.Tensor], *, dim: int = 3, **options: object):
    inputs: dict[str, Input] = {
        m: InputSpec(dim=x.shape[1], mean=x.mean(0), std=x.std(0)) for m, x in values.items()
    }
    settings = {"outputs": 2, "dim": dim, "regularisation": TINY, **options}
    model = CanonicalCorrelation(inputs, **settings)
    whole = batch(values)
    parts = [slice(i, i + 64) for i in range(0, ROWS, 64)]
    model.solve(batch({m: x[part] for m, x in whole.embeddings.items()}) for part in parts)
    return model


def variates(model: CanonicalCorrelation, values: dict[str, torch.Tensor]) -> list[np.ndarray]:
    return [
        (((x - layer.mean_D) / layer.std_D) @ layer.weight_DS).numpy()
        for x, layer in zip(values.values(), model.maps.values(), strict=True)
    ]


def test_variates_and_correlations_are_those_of_scikit_learn() -> None:
    values = data()
    ours = variates(solved(values), values)
    fitted = CCA(n_components=3, max_iter=20_000, tol=1e-12)
    theirs = fitted.fit_transform(*(x.double().numpy() for x in values.values()))
    for x, y in zip(ours, theirs, strict=True):
        for i in range(3):
            assert abs(np.corrcoef(x[:, i], y[:, i])[0, 1]) == pytest.approx(1, abs=2e-4)
    correlations = [np.corrcoef(*(y[:, i] for y in theirs))[0, 1] for i in range(3)]
    np.testing.assert_allclose(solved(values).correlations_S, correlations, atol=1e-4)


@pytest.mark.parametrize("modalities", [2, 3])
def test_variates_have_variance_one_and_correlate_with_their_counterparts_alone(modalities) -> None:
    values = data(modalities=modalities)
    model = solved(values, dim=2)
    found = variates(model, values)
    covariance = sum(np.cov(x.T, bias=True) for x in found) / modalities
    np.testing.assert_allclose(covariance, np.eye(2), atol=2e-3)
    between = np.zeros((2, 2))
    for i in range(modalities):
        for j in range(modalities):
            if i != j:
                between += (found[i].T @ found[j]) / ROWS / (modalities * (modalities - 1))
    np.testing.assert_allclose(between, np.diag(model.correlations_S), atol=2e-3)
    assert model.correlations_S[0] > model.correlations_S[1] > 0.5


def test_loss_is_what_is_left_of_the_correlation() -> None:
    values = data()
    model = solved(values, dim=2)
    expected = 1 - float(model.correlations_S.mean())
    assert float(model.loss_share(batch(values))) == pytest.approx(expected, abs=1e-3)


def test_ridge_and_rank_are_borne() -> None:
    values = data()
    values["a"] = values["a"][:, [0, 0, 0, 1, 1]].contiguous()  # of rank 2
    model = solved(values, dim=6, regularisation=0.1)
    for layer in model.maps.values():
        assert layer.weight_DS.isfinite().all()
    # No more directions than the smaller rank can be correlated.
    assert (model.correlations_S[2:] < 1e-4).all()
    assert (model.correlations_S[:2] > 0.1).all()


def test_missing_rows_take_no_part() -> None:
    values = data()
    present = {"a": torch.arange(ROWS) % 5 != 0, "b": torch.arange(ROWS) % 7 != 0}
    both = present["a"] & present["b"]
    spoiled = {m: torch.where(present[m][:, None], x, torch.nan) for m, x in values.items()}
    inputs = {m: InputSpec(dim=x.shape[1]) for m, x in values.items()}
    models = [CanonicalCorrelation(inputs, outputs=2, dim=2, regularisation=TINY) for _ in range(2)]
    # The rows of a pair alone decide on what is between them; those within are of all rows.
    models[0].solve([batch(spoiled, present)])
    assert models[0].correlations_S.isfinite().all()
    only = {m: present[m] & both for m in values}
    models[0].solve([batch(spoiled, only)])
    models[1].solve([batch({m: x[both] for m, x in values.items()})])
    torch.testing.assert_close(models[0].correlations_S, models[1].correlations_S)


def test_a_candidate_is_fitted_in_one_epoch_and_retrieves(columns) -> None:
    table = table_of(**columns(rows=600, noise=0.3))
    spec = parse_candidate({"type": "cca", "dim": 6, "modalities": ["photo", "speech"]})
    fitted = fit_candidate(spec, table=table, training=TRAINING)
    assert fitted.failure is None
    assert (len(fitted.epochs), fitted.best_epoch) == (1, 1)
    assert 0 < fitted.epochs[0].train_loss < 1
    assert fitted.epochs[0].train_loss <= fitted.epochs[0].validation_loss
    found = retrieval(fitted.model, table=table, modalities=["photo", "speech"])
    for entry in found:
        assert entry["class_recall"]["1"] > 1.4 * entry["class_chance"]["1"]
        assert entry["class_mean_average_precision"] > 0.3


def test_a_sequence_counts_as_the_mean_of_its_steps() -> None:
    values = data()
    flat = solved(values, dim=2)
    drift = torch.tensor([-1.0, 0.0, 1.0])[None, :, None]
    steps = torch.cat([values["b"][:, None] + drift, torch.full((ROWS, 1, 7), torch.nan)], dim=1)
    mask = torch.tensor([True, True, True, False]).expand(ROWS, 4)
    whole = batch(values)
    inputs = {m: InputSpec(dim=x.shape[1], mean=x.mean(0), std=x.std(0)) for m, x in values.items()}
    model = CanonicalCorrelation(inputs, outputs=2, dim=2, regularisation=TINY)
    sequences = dataclasses.replace(
        whole, embeddings={**whole.embeddings, "b": steps}, masks={"b": mask}
    )
    model.solve([sequences])
    torch.testing.assert_close(model.correlations_S, flat.correlations_S, rtol=1e-4, atol=1e-5)
    found, _ = model.embed_all(*sequences.inputs)
    expected, _ = flat.embed_all(*whole.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)
