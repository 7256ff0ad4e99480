from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from features.shard import Embeddings
from tests.training.conftest import CLASSES
from training.built_in import parse_candidate
from training.data.table import EmbeddingTable, epoch_order, step_count, step_rows, table_of
from training.data.targets import Untrainable
from training.evaluation.answers import evaluate
from training.evaluation.space import retrieval
from training.fitting import precision
from training.fitting.adamw import AdamW
from training.fitting.checkpoint import FitState, read_about, read_checkpoint, write_checkpoint
from training.fitting.loop import Fit, fit_candidate
from training.spec import CandidateSpec
from training.task import parse_task
from training.training_spec import TrainingSpec

TRAINING = TrainingSpec(batch_size=40, max_epochs=8, checkpoint_every=3)


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in fit.model.state_dict().items()}


def same(a: Fit, b: Fit) -> bool:
    """Bit for bit, but for the seconds."""
    strip = [
        [{k: v for k, v in vars(e).items() if k != "seconds"} for e in fit.epochs] for fit in (a, b)
    ]
    ours, theirs = weights(a), weights(b)
    return (
        strip[0] == strip[1]
        and a.best_epoch == b.best_epoch
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def validation_loss(fit: Fit, *, table: EmbeddingTable) -> float:
    batch = table.batch(table.labelled("validation"))
    with torch.no_grad():
        return float(F.cross_entropy(fit.model(*batch.inputs), batch.targets))


def test_fusion_learns_and_beats_every_single_modality(make_table) -> None:
    table = make_table(rows=640)
    training = TrainingSpec(batch_size=64, max_epochs=25)

    def accuracy(options: dict[str, Any]) -> float:
        spec = parse_candidate({"width": 32, "learning_rate": 3e-3, **options})
        fit = fit_candidate(spec, table=table, training=training)
        modalities = spec.resolved_modalities(tuple(table.embeddings))
        return evaluate(fit.model, table=table, modalities=modalities).metrics()["test"]["accuracy"]

    singles = [accuracy({"type": "single", "modality": m}) for m in table.embeddings]
    fusions = {kind: accuracy({"type": kind}) for kind in ("early", "late", "attention")}
    assert min(singles) > 0.3  # chance is 0.25
    for kind, reached in fusions.items():
        assert reached > max(singles) + 0.08, kind
        assert reached > 0.85, kind


@pytest.mark.parametrize("kind", ["single", "early", "late", "attention", "alignment"])
def test_interrupted_after_any_checkpoint_it_ends_in_the_same_bits(table, tmp_path, kind) -> None:
    options = {"modality": "speech"} if kind == "single" else {}
    spec = parse_candidate({"type": kind, "width": 8, "dropout": 0.3, **options})
    training = TRAINING.model_copy(update={"patience": 2})
    states: list[FitState] = []
    whole = fit_candidate(spec, table=table, training=training, save=states.append)
    assert states
    for state in states:
        folder = tmp_path / str(state.epoch)
        folder.mkdir()
        write_checkpoint(state, folder=folder, about={"candidate": kind})
        assert read_about(folder) == {"candidate": kind}
        torch.manual_seed(state.epoch)  # what was drawn in between must not matter
        resumed = fit_candidate(
            spec, table=table, training=training, resume=read_checkpoint(folder)
        )
        assert same(resumed, whole)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["progress.json", "state.safetensors"]
        json.loads((folder / "progress.json").read_text())


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9}, {"precision": "float16"}, {"accumulate": 2}], ids=str
)
def test_interrupted_after_any_step_it_ends_in_the_same_bits(table, options, monkeypatch) -> None:
    # So high that the first steps overflow, and halve it; and soon doubled again.
    monkeypatch.setattr(precision, "FIRST_SCALE", 2.0**20)
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    spec = parse_candidate({"type": "attention", "width": 8, "dropout": 0.3, "layers": 1})
    training = TRAINING.model_copy(update={"max_epochs": 2, "checkpoint_steps": 1, **options})
    states: list[FitState] = []
    whole = fit_candidate(spec, table=table, training=training, save=states.append)
    steps = step_count(len(table.labelled("train")), batch_size=training.batch_size)
    places = [(state.epoch, state.step) for state in states]
    assert places == [(i // steps, i % steps) for i in range(1, 2 * steps + 1)]
    for state in states[::2]:
        assert same(fit_candidate(spec, table=table, training=training, resume=state), whole)


def test_an_epoch_is_validated_on_every_row_however_many_batches_they_are(table) -> None:
    spec = parse_candidate({"type": "early", "width": 8})
    rows = len(table.labelled("validation"))
    training = TRAINING.model_copy(update={"max_epochs": 1, "batch_size": rows // 3 - 1})
    assert step_count(rows, batch_size=training.batch_size) > 3
    fit = fit_candidate(spec, table=table, training=training)
    expected = validation_loss(fit, table=table)
    assert fit.epochs[0].validation_loss == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_is_made_when_the_minutes_are_over(table) -> None:
    spec = parse_candidate({"type": "late", "width": 8})

    def saves(minutes: float | None) -> int:
        training = TRAINING.model_copy(update={"max_epochs": 1, "checkpoint_minutes": minutes})
        states: list[FitState] = []
        fit_candidate(spec, table=table, training=training, save=states.append)
        return len(states)

    assert saves(1e-9) == step_count(len(table.labelled("train")), batch_size=40)
    assert saves(1e9) == saves(None) == 0


def test_parts_of_a_batch_make_the_step_of_the_whole(table) -> None:
    spec = parse_candidate({"type": "attention", "width": 8, "dropout": 0.3})
    training = TRAINING.model_copy(update={"max_epochs": 2})
    whole = fit_candidate(spec, table=table, training=training)
    for parts in (3, 64):  # the last is more than the rows
        divided = training.model_copy(update={"accumulate": parts})
        found = fit_candidate(spec, table=table, training=divided)
        for ours, theirs in zip(found.epochs, whole.epochs, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
            assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)
            assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)


def test_the_average_is_that_of_torch_and_is_what_is_kept(table, monkeypatch) -> None:
    """Against torch.optim.swa_utils.AveragedModel, given the weights after each step."""
    spec = parse_candidate({"type": "early", "width": 8})
    training = TRAINING.model_copy(update={"max_epochs": 2, "ema": 0.8})
    averaged = torch.optim.swa_utils.AveragedModel(
        nn.ParameterList(), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
    )
    expected: list[dict[str, torch.Tensor]] = []
    real = AdamW.step

    def step(self: AdamW) -> None:
        real(self)
        nonlocal averaged
        now = nn.ParameterList([p.detach().clone() for g in self.param_groups for p in g["params"]])
        if not expected:
            averaged = torch.optim.swa_utils.AveragedModel(
                now, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.8)
            )
        averaged.update_parameters(now)
        expected.append({n: x.clone() for n, x in averaged.module.state_dict().items()})

    monkeypatch.setattr(AdamW, "step", step)
    fit = fit_candidate(spec, table=table, training=training)
    assert fit.best_epoch == 2
    parameters = list(fit.model.parameters())
    ordered = [p for p in parameters if p.ndim >= 2] + [p for p in parameters if p.ndim < 2]
    for ours, theirs in zip(ordered, expected[-1].values(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-5, atol=1e-7)


def test_any_metric_of_the_validation_decides_the_best_epoch(table) -> None:
    spec = parse_candidate({"type": "early", "width": 64, "learning_rate": 0.03, "dropout": 0})
    training = TrainingSpec(batch_size=40, max_epochs=20, patience=4, monitor="accuracy")
    fit = fit_candidate(spec, table=table, training=training)
    reached = [epoch.validation_metrics["accuracy"] for epoch in fit.epochs]
    assert fit.best_epoch == reached.index(max(reached)) + 1
    assert len(reached) == min(20, fit.best_epoch + 4)
    upside_down = training.model_copy(update={"mode": "min", "max_epochs": 4})
    fit = fit_candidate(spec, table=table, training=upside_down)
    reached = [epoch.validation_metrics["accuracy"] for epoch in fit.epochs]
    assert fit.best_epoch == reached.index(min(reached)) + 1
    aligned = parse_candidate({"type": "alignment", "width": 8})
    assert fit_candidate(aligned, table=table, training=upside_down).best_epoch is not None
    unknown = training.model_copy(update={"monitor": "f2"})
    with pytest.raises(
        Untrainable, match=r"training\.monitor: .* 'f2'; it is one of loss, accuracy, .*f1"
    ):
        fit_candidate(spec, table=table, training=unknown)


@pytest.mark.parametrize(
    ("task", "monitor", "best"),
    [
        ({"target": "label"}, "auroc", max),
        ({"target": "label", "class_weights": "balanced"}, "log_loss", min),
        ({"type": "regression", "target": "size"}, "mae", min),
        ({"type": "regression", "target": "size"}, "spearman", max),
    ],
)
def test_a_metric_of_the_task_decides_the_best_epoch(task_table, task, monitor, best) -> None:
    table = task_table(task)
    candidate = parse_candidate({"type": "early", "width": 8, "learning_rate": 0.03, "dropout": 0})
    training = TrainingSpec(batch_size=40, max_epochs=6, patience=6, monitor=monitor)
    fit = fit_candidate(candidate, table=table, training=training)
    reached = [epoch.validation_metrics[monitor] for epoch in fit.epochs]
    assert fit.best_epoch == reached.index(best(reached)) + 1
    found = evaluate(fit.model, table=table, modalities=tuple(table.embeddings)).metrics()
    assert found["validation"][monitor] == pytest.approx(best(reached), rel=1e-4)


def test_a_metric_that_the_validation_rows_do_not_define_decides_nothing(columns) -> None:
    raw = columns()
    split, labels = (raw[name].to_pylist() for name in ("split", "labels"))
    raw["labels"] = pa.array(
        [None if s == "validation" and x != "cat" else x for s, x in zip(split, labels)]
    )
    training = TrainingSpec(batch_size=40, max_epochs=2, monitor="auroc")
    spec = parse_candidate({"type": "early", "width": 8})
    with pytest.raises(Untrainable, match=r"training\.monitor: .* do not define 'auroc'"):
        fit_candidate(spec, table=table_of(**raw), training=training)


def test_deterministic_operations_are_asked_for_within_the_fit_alone(table) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    training = TRAINING.model_copy(update={"max_epochs": 1, "deterministic": True})
    fit_candidate(AsksSpec(), table=table, training=training)
    assert {True} == ASKED
    assert not torch.are_deterministic_algorithms_enabled()


class Asks(nn.Module):
    """Notes whether deterministic operations are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, embeddings: Any, presence: Any, masks: Any) -> torch.Tensor:
        ASKED.add(torch.are_deterministic_algorithms_enabled())
        return self.bias.expand(len(presence["speech"]), 4)


class AsksSpec(CandidateSpec):
    """See `Asks`."""

    type: Literal["asks"] = "asks"

    def build(self, *, inputs: Any, outputs: int) -> nn.Module:
        return Asks()


ASKED: set[bool] = set()


def test_a_compiled_model_comes_to_the_same(table, monkeypatch) -> None:
    """Captured whole, dropout with it; what a backend makes of it is the backend's."""
    spec = parse_candidate({"type": "late", "width": 8, "dropout": 0.3})
    training = TRAINING.model_copy(update={"max_epochs": 2})
    plain = fit_candidate(spec, table=table, training=training)
    real = nn.Module.compile
    made: list[dict[str, Any]] = []

    def compile_eagerly(self: nn.Module, **options: Any) -> None:
        made.append(options)
        real(self, **options, backend="eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    compiled = fit_candidate(
        spec, table=table, training=training.model_copy(update={"compile": True})
    )
    assert made == [{"dynamic": True}]
    for ours, theirs in zip(compiled.epochs, plain.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())


def test_a_fit_imports_no_compiler() -> None:
    """It takes seconds, of every worker, and nothing that is used here needs it."""
    code = (
        "import sys, torch, training.fitting.loop, training.fitting.adamw as a;"
        "w = torch.nn.Parameter(torch.ones(2)); w.grad = torch.ones(2);"
        "o = a.AdamW([{'params': [w], 'weight_decay': 0.1}], lr=0.1); o.zero_grad(); o.step();"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_state_after_the_last_epoch_needs_no_more_training(table) -> None:
    spec = parse_candidate({"type": "late", "width": 8})
    training = TRAINING.model_copy(update={"max_epochs": 6})
    states: list[FitState] = []
    whole = fit_candidate(spec, table=table, training=training, save=states.append)
    assert [state.epoch for state in states] == [3, 6]
    seen: list[int] = []
    resumed = fit_candidate(
        spec,
        table=table,
        training=training,
        resume=states[-1],
        on_epoch=lambda epoch: seen.append(epoch.epoch),
    )
    assert seen == []
    assert same(resumed, whole)


def test_equal_seeds_give_equal_bits_and_others_do_not(table) -> None:
    def fit(seed: int) -> Fit:
        spec = parse_candidate({"type": "early", "width": 8, "seed": seed})
        return fit_candidate(spec, table=table, training=TRAINING)

    torch.manual_seed(1)
    first = fit(0)
    torch.manual_seed(2)
    assert same(fit(0), first)
    assert not same(fit(1), first)


def test_global_random_state_is_left_as_it_was(table) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    fit_candidate(parse_candidate({"type": "late", "width": 8}), table=table, training=TRAINING)
    assert torch.equal(torch.rand(2), expected)


def test_best_epoch_is_kept_and_training_stops_after_patience(table) -> None:
    # So high a rate that it fits the training rows and gets worse on the others.
    spec = parse_candidate({"type": "early", "width": 64, "learning_rate": 0.03, "dropout": 0})
    training = TrainingSpec(batch_size=40, max_epochs=100, patience=4)
    fit = fit_candidate(spec, table=table, training=training)
    losses = [epoch.validation_loss for epoch in fit.epochs]
    assert fit.best_epoch == losses.index(min(losses)) + 1
    assert len(losses) < 100
    assert all(loss >= min(losses) for loss in losses[-4:])
    assert validation_loss(fit, table=table) == pytest.approx(min(losses), rel=1e-5)


def test_patience_goes_on_where_it_was_interrupted(table) -> None:
    spec = parse_candidate({"type": "early", "width": 64, "learning_rate": 0.03, "dropout": 0})
    training = TrainingSpec(batch_size=40, max_epochs=100, patience=4, checkpoint_every=1)
    states: list[FitState] = []
    whole = fit_candidate(spec, table=table, training=training, save=states.append)
    assert len(whole.epochs) < 100
    for state in states[-4:]:  # the last of them has run out of patience
        resumed = fit_candidate(spec, table=table, training=training, resume=state)
        assert same(resumed, whole)


def test_epochs_tell_what_happened(table) -> None:
    spec = parse_candidate({"type": "late", "width": 16, "learning_rate": 0.01})
    seen = []
    fit = fit_candidate(spec, table=table, training=TRAINING, on_epoch=seen.append)
    assert seen == fit.epochs
    assert [epoch.epoch for epoch in seen] == list(range(1, 9))
    assert seen[-1].train_loss < seen[0].train_loss
    assert seen[-1].validation_accuracy > 0.5
    assert max(epoch.learning_rate for epoch in seen) <= spec.learning_rate
    assert fit.seconds == pytest.approx(sum(epoch.seconds for epoch in seen))
    best = fit.epochs[(fit.best_epoch or 0) - 1]
    answers = evaluate(fit.model, table=table, modalities=tuple(table.embeddings))
    metrics = answers.metrics()["validation"]
    assert metrics["accuracy"] == pytest.approx(best.validation_accuracy)
    assert metrics["log_loss"] == pytest.approx(best.validation_loss, rel=1e-5)


def test_alignment_lowers_its_loss_and_has_no_accuracy_yet(table) -> None:
    spec = parse_candidate({"type": "alignment", "width": 16})
    fit = fit_candidate(spec, table=table, training=TRAINING)
    assert fit.epochs[-1].validation_loss < fit.epochs[0].validation_loss
    assert {epoch.validation_accuracy for epoch in fit.epochs} == {None}


def test_loss_that_is_not_finite_names_step_rate_and_samples(table) -> None:
    spec = parse_candidate({"type": "early", "width": 8, "learning_rate": 1e36})
    fit = fit_candidate(spec, table=table, training=TRAINING)
    failure = fit.failure
    assert failure is not None
    assert "is not finite" in failure.reason
    rows = table.labelled("train")
    steps = step_count(len(rows), batch_size=TRAINING.batch_size)
    assert (failure.epoch - 1) * steps < failure.step <= failure.epoch * steps
    taken = step_rows(
        epoch_order(rows, seed=0, epoch=failure.epoch), step=(failure.step - 1) % steps, steps=steps
    )
    assert failure.sample_ids == [f"s{row}" for row in taken.tolist()]
    assert failure.learning_rate > 1e35


class TakesNote(nn.Module):
    """Counts the rows that it was shown in training and in evaluation, by their value."""

    def __init__(self, seen: dict[bool, Counter[float]]) -> None:
        super().__init__()
        self.seen = seen
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, embeddings: Any, presence: Any, masks: Any) -> torch.Tensor:
        present = presence["speech"]
        values = embeddings["speech"][:, 0]
        self.seen[self.training].update(values[present].tolist())
        return self.bias.expand(len(present), 4)


class TakesNoteSpec(CandidateSpec):
    """See `TakesNote`."""

    type: Literal["takes-note"] = "takes-note"

    def build(self, *, inputs: Any, outputs: int) -> nn.Module:
        return TakesNote(SEEN)


SEEN: dict[bool, Counter[float]] = {True: Counter(), False: Counter()}


def test_an_epoch_shows_every_labelled_row_once_and_no_other(table) -> None:
    training = TrainingSpec(batch_size=32, max_epochs=3)
    fit_candidate(TakesNoteSpec(), table=table, training=training)
    for training_mode, split in ((True, "train"), (False, "validation")):
        batch = table.batch(table.labelled(split))
        values = batch.embeddings["speech"][:, 0][batch.presence["speech"]].tolist()
        expected = {value: 3 * count for value, count in Counter(values).items()}
        assert dict(SEEN[training_mode]) == expected


def test_alignment_by_class_wants_classes(columns) -> None:
    raw = columns()
    rows = len(raw["split"])
    table = table_of(
        **{**raw, "labels": {"price": pa.array(np.arange(rows, dtype=np.float64))}},
        task=parse_task({"type": "regression", "target": "price"}),
    )
    spec = parse_candidate({"type": "alignment", "positives": "class", "width": 8})
    with pytest.raises(Untrainable, match="`positives`: a regression task has no classes"):
        fit_candidate(spec, table=table, training=TRAINING)


def test_alignment_by_class_draws_a_class_together_and_not_a_row(columns) -> None:
    # Both modalities tell a row by six numbers and its class by one, which is the lesser part.
    rng, raw = np.random.default_rng(0), columns(rows=400)
    codes = np.array([CLASSES.index(x) if x else 0 for x in raw["labels"].to_pylist()])
    told = np.concatenate([rng.normal(size=(400, 6)), codes[:, None] + 0.2], axis=1)
    for modality in ("caption", "photo"):
        values = told @ rng.normal(size=(7, 12)) + 0.1 * rng.normal(size=(400, 12))
        raw["embeddings"][modality] = Embeddings(rows=np.arange(400), values=values.astype("f2"))
    table = table_of(**raw)
    found = {}
    for positives in ("payload", "class"):
        options = {"type": "alignment", "positives": positives, "dim": 8, "learning_rate": 5e-3}
        spec = parse_candidate({**options, "modalities": ["caption", "photo"]})
        training = TrainingSpec(batch_size=64, max_epochs=30)
        model = fit_candidate(spec, table=table, training=training).model
        found[positives] = retrieval(model, table=table, modalities=("caption", "photo"))[0]
    precision_of = {name: each["class_mean_average_precision"] for name, each in found.items()}
    assert precision_of["class"] > precision_of["payload"] + 0.2
    assert found["class"]["recall"]["5"] < found["payload"]["recall"]["5"]


def test_alignment_without_pairs_says_so(columns) -> None:
    raw = columns()
    for i, (modality, part) in enumerate(raw["embeddings"].items()):
        chosen = part.rows % 3 == i
        raw["embeddings"][modality] = Embeddings(rows=part.rows[chosen], values=part.values[chosen])
    with pytest.raises(Untrainable, match="samples that have two of them; the train split has 0"):
        fit_candidate(
            parse_candidate({"type": "alignment"}), table=table_of(**raw), training=TRAINING
        )


def test_nothing_is_printed(table, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = parse_candidate({"type": "early", "width": 8, "learning_rate": 0.05})
    training = TrainingSpec(batch_size=40, max_epochs=30, patience=2)
    assert len(fit_candidate(spec, table=table, training=training).epochs) < 30
    assert capfd.readouterr() == ("", "")
