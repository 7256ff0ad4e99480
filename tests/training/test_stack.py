"""Candidates that are fitted in one pass: each is what it would be alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.built_in import parse_candidate
from training.data.table import EmbeddingTable
from training.data.targets import Untrainable
from training.evaluation.answers import evaluate
from training.fitting.checkpoint import FitState, read_checkpoints, write_checkpoint
from training.fitting.grouping import architecture
from training.fitting.loop import Fit, fit_candidate, fit_together
from training.fitting.monitor import validation_metrics
from training.spec import CandidateSpec
from training.training_spec import TrainingSpec

TRAINING = TrainingSpec(batch_size=50, max_epochs=7, patience=2, checkpoint_every=3)
OWN: list[dict[str, Any]] = [
    {"seed": 0},
    {"seed": 1, "learning_rate": 0.01, "weight_decay": 0.3},
    {"seed": 0, "dropout": 0.5, "modality_dropout": 0.0},
    {"seed": 2, "dropout": 0.0, "learning_rate": 0.05},
]
WILD = {"learning_rate": 1e36, "dropout": 0.2}
"""Its loss is not finite after a step or two."""


def specs_of(kind: str, own: Sequence[dict[str, Any]]) -> list[CandidateSpec]:
    base = {"type": kind, "width": 16, **({"modality": "photo"} if kind == "single" else {})}
    return [parse_candidate({**base, **options}) for options in own]


def assert_alike(together: Fit, alone: Fit, *, table: EmbeddingTable, tolerance: float) -> None:
    assert together.failure == alone.failure
    assert together.best_epoch == alone.best_epoch
    assert len(together.epochs) == len(alone.epochs)
    for ours, theirs in zip(together.epochs, alone.epochs, strict=True):
        for name in ("train_loss", "validation_loss", "gradient_norm", "learning_rate"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=tolerance), name
        assert ours.validation_accuracy == theirs.validation_accuracy
    if alone.failure is None:
        answers = [
            evaluate(fit.model, table=table, modalities=tuple(table.embeddings)).answers
            for fit in (together, alone)
        ]
        np.testing.assert_allclose(*answers, atol=tolerance)


@pytest.mark.parametrize("kind", ["single", "early", "late"])
def test_each_is_what_it_would_be_alone(table, kind) -> None:
    own = [*OWN, WILD] if kind == "early" else OWN
    specs = specs_of(kind, own)
    used = table.select(specs[0].resolved_modalities(tuple(table.embeddings)))
    assert len({architecture(spec, modalities=tuple(used.embeddings)) for spec in specs}) == 1
    with warnings.catch_warnings():
        # Torch warns of an operation that it runs once a candidate, for lack of a better way.
        warnings.simplefilter("error")
        fits = fit_together(specs, table=used, training=TRAINING)
    lengths = set()
    for spec, fit in zip(specs, fits, strict=True):
        alone = fit_candidate(spec, table=used, training=TRAINING)
        assert_alike(fit, alone, table=used, tolerance=1e-5)
        lengths.add(len(fit.epochs))
    if kind == "early":
        assert fits[-1].failure is not None
        # One ran out of patience before the others, which went on without it.
        assert len(lengths - {0}) > 1


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 3}, {"ema": 0.9}, {"deterministic": True}, {"monitor": "accuracy"}],
    ids=str,
)
def test_each_is_what_it_would_be_alone_under_every_option(table, options) -> None:
    training = TRAINING.model_copy(update={"max_epochs": 3, **options})
    specs = specs_of("early", OWN)
    for spec, fit in zip(specs, fit_together(specs, table=table, training=training), strict=True):
        alone = fit_candidate(spec, table=table, training=training)
        assert_alike(fit, alone, table=table, tolerance=1e-5)


TASKS: list[dict[str, Any]] = [
    {"target": "label", "class_weights": {"cat": 5.0}, "label_smoothing": 0.1},
    {"target": "label", "loss": "focal", "class_weights": "balanced"},
    {"type": "multilabel", "target": "tags", "positive_weights": "balanced"},
    {"type": "regression", "target": "size", "loss": "huber"},
    {"type": "regression", "target": "size", "loss": "mae"},
]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_each_is_what_it_would_be_alone_by_every_loss(task_table, task, accumulate) -> None:
    table, specs = task_table(task), specs_of("late", [*OWN[:2], WILD])
    training = TRAINING.model_copy(update={"max_epochs": 3, "accumulate": accumulate})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = fit_together(specs, table=table, training=training)
    whole = training.model_copy(update={"accumulate": 1})
    for spec, fit in zip(specs, fits, strict=True):
        for options in (training, whole):
            alone = fit_candidate(spec, table=table, training=options)
            assert_alike(fit, alone, table=table, tolerance=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bits_agree_to_their_rounding(table, precision) -> None:
    training = TRAINING.model_copy(update={"max_epochs": 2, "precision": precision})
    specs = specs_of("late", OWN[:2])
    exact = training.model_copy(update={"precision": "float32"})
    for spec, fit in zip(specs, fit_together(specs, table=table, training=training), strict=True):
        alone = fit_candidate(spec, table=table, training=training)
        assert_alike(fit, alone, table=table, tolerance=2e-2)
        reference = fit_candidate(spec, table=table, training=exact)
        assert fit.epochs != reference.epochs
        assert fit.epochs[-1].train_loss == pytest.approx(reference.epochs[-1].train_loss, rel=2e-2)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}], ids=str)
def test_interrupted_at_any_step_all_end_in_the_same_bits(table, tmp_path, options) -> None:
    training = TRAINING.model_copy(update={"checkpoint_steps": 2, **options})
    specs = specs_of("early", [*OWN, WILD])
    saved: list[Sequence[FitState]] = []
    whole = fit_together(specs, table=table, training=training, save=saved.append)
    assert {state.step for states in saved for state in states} > {0, 2}
    # The first ones, some in the middle when one or two are over, and the last one.
    for i in {0, 1, len(saved) // 2, len(saved) - 2, len(saved) - 1}:
        folder = tmp_path / str(i)
        folder.mkdir()
        write_checkpoint(*saved[i], folder=folder, about={})
        resumed = fit_together(
            specs, table=table, training=training, resume=read_checkpoints(folder)
        )
        for ours, theirs in zip(resumed, whole, strict=True):
            assert ours.failure == theirs.failure
            assert ours.best_epoch == theirs.best_epoch
            strip = [[{**vars(e), "seconds": 0} for e in fit.epochs] for fit in (ours, theirs)]
            assert strip[0] == strip[1]
            if theirs.failure is None:
                state = theirs.model.state_dict()
                for name, value in ours.model.state_dict().items():
                    assert torch.equal(value, state[name]), name


def test_a_state_of_a_stack_is_that_of_one_alone(table) -> None:
    training = TRAINING.model_copy(update={"max_epochs": 3})
    specs = specs_of("late", OWN[:2])
    together: list[Sequence[FitState]] = []
    fit_together(specs, table=table, training=training, save=together.append)
    for i, spec in enumerate(specs):
        alone: list[FitState] = []
        fit_candidate(spec, table=table, training=training, save=alone.append)
        ours, theirs = together[0][i], alone[0]
        assert (ours.epoch, ours.step) == (theirs.epoch, theirs.step)
        for part in ("model", "optimizer", "best"):
            found, expected = getattr(ours, part), getattr(theirs, part)
            assert set(found) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5)


def test_every_epoch_is_told_with_whose_it_is(table) -> None:
    seen: list[tuple[int, int]] = []
    fits = fit_together(
        specs_of("late", OWN),
        table=table,
        training=TRAINING,
        on_epoch=lambda number, epoch: seen.append((number, epoch.epoch)),
    )
    for number, fit in enumerate(fits):
        assert [epoch for n, epoch in seen if n == number] == [e.epoch for e in fit.epochs]


def test_an_average_begins_where_it_would_alone_though_a_first_step_overflowed(table) -> None:
    training = TRAINING.model_copy(
        update={"max_epochs": 1, "precision": "float16", "ema": 0.5, "checkpoint_steps": 1}
    )
    # What much dropout leaves is a hundred times as large, and so is its gradient.
    specs = specs_of("late", [{"dropout": 0.0}, {"dropout": 0.99}])
    together: list[Sequence[FitState]] = []
    fit_together(specs, table=table, training=training, save=together.append)
    begun = []
    for i, spec in enumerate(specs):
        alone: list[FitState] = []
        fit_candidate(spec, table=table, training=training, save=alone.append)
        for ours, theirs in zip((states[i] for states in together), alone, strict=False):
            assert set(ours.average) == set(theirs.average)
            for name, value in theirs.average.items():
                np.testing.assert_allclose(ours.average[name], value, atol=2e-3)
        begun.append([bool(state.average) for state in alone])
    assert begun[0][0]
    assert not begun[1][0], "its first step overflowed"
    assert begun[1][-1]


class Muted(nn.Module):
    """A number from the photo, or the same one for every row."""

    def __init__(self, dim: int, *, muted: bool) -> None:
        super().__init__()
        self.head = nn.Linear(dim, 1)
        self.register_buffer("voice", torch.tensor(float(not muted)))

    def forward(self, embeddings: Any, presence: Any, masks: Any) -> Tensor:
        told: Tensor = self.head(torch.nan_to_num(embeddings["photo"])) * self.voice
        return told


class MutedSpec(CandidateSpec):
    """See `Muted`: by an even seed it is."""

    type: Literal["muted"] = "muted"
    stackable: ClassVar[bool] = True

    def build(self, *, inputs: Any, outputs: int) -> nn.Module:
        return Muted(inputs["photo"].dim, muted=self.seed % 2 == 0)


def test_answers_that_are_all_alike_are_one_candidates_fault_and_not_the_tables(task_table) -> None:
    table = task_table({"type": "regression", "target": "size"})
    training = TrainingSpec(batch_size=50, max_epochs=3, patience=2, monitor="pearson")
    specs = [MutedSpec(seed=seed) for seed in (0, 1, 3)]
    for fits in (
        fit_together(specs, table=table, training=training),
        [fit_candidate(spec, table=table, training=training) for spec in specs],
    ):
        muted, *others = fits
        assert muted.failure is not None
        assert "answers define 'pearson' (training.monitor)" in muted.failure.reason
        assert len(muted.epochs) == 2, "each counted as not better"
        assert all(fit.failure is None and fit.best_epoch for fit in others)
    # Targets that are all alike are told of all.
    targets = torch.ones(5, 1)
    with pytest.raises(Untrainable, match="validation rows do not define 'pearson'"):
        validation_metrics(
            table.task, torch.rand(5, 1), targets_R=targets, monitor=training.monitor
        )
