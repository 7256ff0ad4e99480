"""What a model leans on and stands: against answers that are known, and a count of all orders."""

from __future__ import annotations

import dataclasses
import math
from itertools import permutations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from torch import nn

from features.shard import Embeddings
from training.answering import predict, shapley
from training.built_in import parse_candidate
from training.candidate import load_model, plan_candidates, read_record, read_shapley
from training.data.table import EmbeddingTable, load_table, table_of
from training.evaluation.coalitions import (
    MOST_MODALITIES,
    every_subset,
    shapley_values,
    tried_subsets,
)
from training.evaluation.metrics import metrics_of
from training.evaluation.perturbations import donors_of
from training.evaluation.robustness import kept, kept_of_subsets, kept_over_levels
from training.evaluation.study import sampled, study
from training.produce import produce_candidate
from training.task import ClassificationSpec, RegressionSpec, RetrievalSpec
from training.training_spec import TrainingSpec

ACCURACY = metrics_of(ClassificationSpec(target="y"))["accuracy"]
RMSE = metrics_of(RegressionSpec(target="y"))["rmse"]
ROWS = 4000
NAMES = ("a", "b", "c")


def signs(*, missing: tuple[str, ...] = ()) -> EmbeddingTable:
    """The class is the sign of `a`, which is 1 or -1; `b` and `c` are noise."""
    rng = np.random.default_rng(0)
    codes = np.arange(ROWS) % 2
    rng.shuffle(codes)
    values = {
        "a": (2.0 * codes - 1)[:, None],
        "b": rng.normal(size=(ROWS, 1)),
        "c": rng.normal(size=(ROWS, 1)),
    }
    rows = {m: np.arange(ROWS) if m not in missing else np.arange(0, ROWS, 2) for m in values}
    split = np.array(["train", "validation", "test", "test"])[np.arange(ROWS) % 4]
    return table_of(
        sample_ids=pa.array([str(i) for i in range(ROWS)]),
        split=pa.array(split.tolist()),
        labels=pa.array(["no" if c == 0 else "yes" for c in codes]),
        embeddings={
            m: Embeddings(rows=rows[m], values=x[rows[m]].astype(np.float32))
            for m, x in values.items()
        },
    )


class Threshold(nn.Module):
    """Says yes where `a` is above zero, and no where it is not there."""

    def forward(self, embeddings, presence, masks):
        score = torch.where(presence["a"], embeddings["a"][:, 0], -1.0)
        return torch.stack([torch.zeros_like(score), 50 * score], dim=1)


def curves(found: dict, kind: str) -> dict[str, dict]:
    return {c["modality"]: c for c in found["perturbed"] if c["kind"] == kind}


def test_a_model_that_looks_at_one_modality_is_told_by_its_subsets() -> None:
    result = study(Threshold(), table=signs(), modalities=NAMES)
    assert result is not None
    accuracy = {tuple(s["modalities"]): s["metrics"]["accuracy"] for s in result.found["subsets"]}
    assert list(accuracy) == every_subset(NAMES)[1:]
    no = (signs().targets[signs().labelled("test")] == 0).double().mean()
    for subset, value in accuracy.items():
        assert value == (1.0 if "a" in subset else pytest.approx(float(no)))
    *parts, whole = accuracy.values()
    # Of six subsets three have `a`, and the others are right in half of the rows.
    expected = (3 + 3 * float(no)) / 6
    assert kept_of_subsets(ACCURACY, values=parts, whole=whole) == pytest.approx(expected)
    whole_interval = result.found["subsets"][0]["intervals"]["accuracy"]
    assert whole_interval == [1.0, 1.0]
    low, high = result.found["subsets"][1]["intervals"]["accuracy"]
    assert low < float(no) < high


def test_a_threshold_falls_with_noise_as_the_normal_law_says() -> None:
    """Noise is in units of the deviation, which is 1 here: right with probability Φ(1 / σ)."""
    table = signs()
    result = study(Threshold(), table=table, modalities=NAMES)
    assert result is not None
    noise, swapped = curves(result.found, "noise"), curves(result.found, "swapped")
    assert result.found["clean"]["accuracy"] == 1.0
    levels = noise["a"]["levels"]
    expected = [scipy.stats.norm.cdf(1 / level) for level in levels]
    np.testing.assert_allclose(noise["a"]["values"]["accuracy"], expected, atol=0.03)
    area = np.trapezoid([1.0, *expected], [0, *levels]) / levels[-1]
    found = kept_over_levels(
        ACCURACY, levels=levels, values=noise["a"]["values"]["accuracy"], whole=1.0
    )
    assert found == pytest.approx(area, abs=0.02)
    # Of those that are given another's, half are given one of the other class.
    shares = np.array(swapped["a"]["levels"])
    np.testing.assert_allclose(swapped["a"]["values"]["accuracy"], 1 - shares / 2, atol=0.03)
    for ignored in ("b", "c"):
        for curve in (noise[ignored], swapped[ignored]):
            values = curve["values"]["accuracy"]
            assert values == [1.0] * 4
            assert kept_over_levels(ACCURACY, levels=levels, values=values, whole=1.0) == 1.0


def test_a_modality_that_a_row_lacks_stays_missing_however_it_is_impaired() -> None:
    table = signs(missing=("a",))
    result = study(Threshold(), table=table, modalities=NAMES)
    assert result is not None
    rows = sampled(table.labelled("test"), most=result.found["perturbed_rows"])
    lacking = table.index["a"][rows] < 0
    right = (table.targets[rows][lacking] == 0).double().mean() * lacking.double().mean()
    strongest = curves(result.found, "swapped")["a"]["values"]["accuracy"][-1]
    # Where it is there, another's is right by half; where it is not, the answer is `no`.
    assert strongest == pytest.approx(float(right) + 0.5 * (~lacking).double().mean(), abs=0.04)


def test_what_is_left_of_an_error_is_by_how_little_it_grew() -> None:
    assert kept(ACCURACY, whole=0.8, left=0.6) == pytest.approx(0.75)
    assert kept(RMSE, whole=2.0, left=4.0) == 0.5
    assert kept(RMSE, whole=0.0, left=0.0) == 1.0
    assert kept(RMSE, whole=0.0, left=3.0) == 0.0
    assert math.isnan(kept(ACCURACY, whole=0.0, left=0.5))
    assert math.isnan(kept(ACCURACY, whole=math.nan, left=0.5))
    # A line from 1 to 0 leaves half of the area; levels need not be even.
    assert kept_over_levels(ACCURACY, levels=[1.0], values=[0.0], whole=1.0) == 0.5
    assert kept_over_levels(ACCURACY, levels=[0.25, 1.0], values=[0.75, 0.0], whole=1.0) == 0.5


def test_every_donor_is_another_row_that_has_the_modality() -> None:
    present = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.6
    donors = donors_of(present, key=0)
    there = torch.arange(200)[present]
    assert sorted(donors[present].tolist()) == there.tolist()
    assert (donors[present] != there).all()
    assert torch.equal(donors[~present], torch.arange(200)[~present])
    assert not torch.equal(donors, donors_of(present, key=1))
    one = torch.tensor([False, True])
    assert donors_of(one, key=0).tolist() == [0, 1]


def test_rows_of_a_sample_are_some_of_all_and_always_the_same() -> None:
    rows = torch.arange(10, 500, 3)
    some = sampled(rows, most=50)
    assert len(some) == 50
    assert torch.isin(some, rows).all()
    assert (some.diff() > 0).all()
    assert torch.equal(some, sampled(rows, most=50))
    assert torch.equal(sampled(rows, most=1000), rows)


def by_orders(values: dict[frozenset[str], np.ndarray], names: tuple[str, ...]) -> dict:
    """Shapley values by their definition: the mean change over all orders of coming in."""
    found = {m: [] for m in names}
    for order in permutations(names):
        there: frozenset[str] = frozenset()
        for m in order:
            found[m].append(values[there | {m}] - values[there])
            there |= {m}
    return {m: np.mean(changes, axis=0) for m, changes in found.items()}


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_shapley_values_are_those_of_all_orders(count) -> None:
    names = tuple("abcde"[:count])
    subsets = every_subset(names)
    answers = torch.randn(7, len(subsets), 3, generator=torch.Generator().manual_seed(count))
    found = shapley_values(answers, subsets=subsets, modalities=names)
    expected = by_orders(
        {frozenset(s): answers[:, i].double().numpy() for i, s in enumerate(subsets)}, names
    )
    for m in names:
        np.testing.assert_allclose(found[m], expected[m], atol=1e-12)
    total = sum(found.values())
    torch.testing.assert_close(total, answers[:, -1].double() - answers[:, 0])


class Additive(nn.Module):
    """2 a + 2 b + a b + 5, of those that are there; c has no say."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(5.0))

    def forward(self, embeddings, presence, masks):
        a, b = (torch.where(presence[m], embeddings[m][:, 0], 0.0) for m in ("a", "b"))
        return (2 * a + 2 * b + a * b + self.bias)[:, None]


def test_shapley_values_of_a_sum_and_a_product_are_known() -> None:
    """Symmetric in a and b; c is a dummy; the product is shared in halves."""
    spec = RegressionSpec(target="y")
    record = dataclasses.replace(
        record_of(spec), classes=["y"], target_scale={"mean": [10.0], "std": [3.0]}
    )
    a, b, c = (np.array([[v]], np.float32).repeat(4, 0) for v in (1.5, 1.5, 9.0))
    presence = {m: np.ones(4, bool) for m in NAMES}
    presence["b"][1] = presence["a"][2] = presence["b"][2] = False
    found = shapley(
        Additive(), record=record, embeddings={"a": a, "b": b, "c": c}, presence=presence
    )
    whole, alone = 3 * (2 * 1.5 + 1.5**2 / 2), 3 * 2 * 1.5
    np.testing.assert_allclose(found["a"][:, 0], [whole, alone, 0, whole], rtol=1e-6)
    np.testing.assert_allclose(found["b"][:, 0], [whole, 0, 0, whole], rtol=1e-6)
    assert not found["c"].any()


def record_of(spec):
    from training.candidate import CandidateRecord

    return CandidateRecord(
        fingerprint="", name="made-up", spec={}, training={}, task=spec.model_dump(mode="json"),
        snapshot="", part="", classes=[], modalities={m: {} for m in NAMES}, parameters=0,
        status="fitted", failure=None, best_epoch=None, epochs=[], seconds=0.0, workers=1,
        metrics=None, retrieval=None,
    )  # fmt: skip


def test_of_many_modalities_there_are_singles_and_those_that_lack_one() -> None:
    names = tuple("abcdefg")
    assert len(names) > MOST_MODALITIES
    assert len(tried_subsets(names)) == 7 + 7 + 1
    assert len(tried_subsets(names[:6])) == 63
    record = dataclasses.replace(
        record_of(ClassificationSpec(target="y")), modalities={m: {} for m in names}
    )
    with pytest.raises(ValueError, match="exact Shapley values of 7 modalities would take 128"):
        shapley(Threshold(), record=record, embeddings={}, presence={})
    record = dataclasses.replace(record, task={"type": "retrieval"})
    with pytest.raises(ValueError, match="a retrieval ranks other rows"):
        shapley(Threshold(), record=record, embeddings={}, presence={})


def test_a_candidate_keeps_what_was_found_and_its_values_sum_to_its_answers(make_store) -> None:
    store, snapshot = make_store(missing=0.3)
    task, training = ClassificationSpec(target="label"), TrainingSpec(batch_size=64, max_epochs=8)
    options = {"store": store, "snapshot": snapshot, "task": task, "training": training}
    spec = parse_candidate({"type": "attention", "width": 16, "learning_rate": 0.01})
    table = load_table(store, snapshot, task=task, modalities=tuple(snapshot.modalities))
    (plan,) = plan_candidates(candidates=[spec], **options)
    produce_candidate(plan, **options, table=table)
    record = read_record(store, plan.fingerprint)
    assert record is not None
    assert record.study["rows"] == record.study["of"] == record.metrics["test"]["rows"]
    whole = record.study["subsets"][-1]["metrics"]
    expected = {k: v for k, v in record.metrics["test"].items() if k != "rows"}
    assert whole == pytest.approx(expected, rel=1e-5)
    assert record.study["clean"] == whole
    table_of_values = read_shapley(store, record.fingerprint)
    rows = torch.tensor(table_of_values["row"].to_pylist())
    assert torch.equal(rows, table.labelled("test"))
    batch = table.batch(rows)
    given = {"embeddings": batch.embeddings, "presence": batch.presence, "masks": batch.masks}
    model = load_model(store, record.fingerprint)
    p = predict(model, record=record, **given)
    nothing = {m: torch.zeros_like(x) for m, x in batch.presence.items()}
    baseline = predict(model, record=record, **{**given, "presence": nothing})
    found = shapley(model, record=record, **given)
    np.testing.assert_allclose(sum(found.values()), p.astype(float) - baseline, atol=1e-6)
    own = np.arange(len(p)), p.argmax(axis=1)
    assert table_of_values["answer"].to_pylist() == own[1].tolist()
    for m in record.modalities:
        stored = table_of_values[f"shapley.{m}"].to_numpy()
        np.testing.assert_allclose(stored, found[m][own], atol=1e-6)
        assert not found[m][~batch.presence[m].numpy()].any()
        assert np.abs(found[m][batch.presence[m].numpy()]).max() > 0.01
    np.testing.assert_allclose(table_of_values["prediction"].to_numpy(), p[own], atol=1e-6)
    np.testing.assert_allclose(table_of_values["baseline"].to_numpy(), baseline[own], atol=1e-6)


def test_a_retrieval_has_recall_and_nothing_of_this(make_store) -> None:
    store, snapshot = make_store()
    options = {
        "store": store,
        "snapshot": snapshot,
        "task": RetrievalSpec(),
        "training": TrainingSpec(batch_size=64, max_epochs=2),
    }
    table = load_table(store, snapshot, task=options["task"], modalities=tuple(snapshot.modalities))
    (plan,) = plan_candidates(
        candidates=[parse_candidate({"type": "alignment", "width": 8, "dim": 4})], **options
    )
    record = produce_candidate(plan, **options, table=table)
    assert record.status == "fitted"
    assert record.study == {}
    assert record.temperature == 1.0
    assert set(record.files) == {"model", "predictions"}
    assert read_shapley(store, record.fingerprint) is None
