"""The table of candidates at the end of a run, on terminals of any width."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from training.evaluation.metrics import metrics_of
from training.task import ClassificationSpec
from workflows.reporting.answers import Answers
from workflows.reporting.findings import Estimate, Lead
from workflows.summary import candidate_table, constant_line

NAMES = ("early", "late-search-07-of-width-128-seed-2", "late-search-07-of-width-128-seed-3")


def printed(width: int) -> list[str]:
    records: list[Any] = [
        SimpleNamespace(
            name=name,
            status="fitted",
            metrics={"validation": {"accuracy": 0.75}},
            parameters=123_456,
            epochs=[None] * 12,
            seconds=3.0,
        )
        for name in NAMES
    ]
    estimate = Estimate(value=0.873, low=0.838, high=0.915, n=300)
    lead = Lead(gain=Estimate(value=0.1, low=0.05, high=0.15, n=300), p=0.01, test="", sure=True)
    console = Console(file=io.StringIO(), width=width)
    console.print(
        candidate_table(
            records,
            metric=metrics_of(ClassificationSpec(target="label"))["accuracy"],
            test=dict.fromkeys(NAMES, estimate),
            leads=dict.fromkeys(NAMES[1:], lead),
            winner="early",
            confidence=0.95,
            console=console,
        )
    )
    file: Any = console.file
    lines: list[str] = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize("width", [72, 80, 100, 140])
def test_intervals_leads_and_names_stay_whole_however_narrow_it_is(width: int) -> None:
    lines = printed(width)
    assert sum("0.873 [0.838, 0.915]" in line for line in lines) == 3
    assert sum("+0.100 surely" in line for line in lines) == 2
    assert sum("winner" in line and "0.873" in line for line in lines) == 1
    # Names that have no room go on in the next line, and are not cut.
    names = "".join(line[1:30].split(" ")[0] for line in lines) if width < 90 else "".join(lines)
    assert all(name[-6:] in names for name in NAMES)
    assert "…" not in "".join(lines)


def test_what_a_fit_took_is_told_where_there_is_room() -> None:
    assert any("123,456" in line and "3.0 s" in line for line in printed(140))
    assert not any("3.0 s" in line for line in printed(72))


def test_candidates_that_have_learnt_nothing_are_named() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random(300) < 0.4).astype(int)
    metric = metrics_of(ClassificationSpec(target="label"))["accuracy"]

    def answers(right: float) -> Answers:
        said = np.where(rng.random(300) < right, targets, 1 - targets)
        return Answers(
            metric=metric,
            rows=np.arange(300),
            targets=targets,
            answers=np.eye(2, dtype=np.float32)[said],
            without={},
        )

    tested = {"good": answers(0.9), "lost": answers(0.5)}
    share = 1 - targets.mean()
    scores = {name: found.score(confidence=0.95) for name, found in tested.items()}
    said = constant_line(tested, scores=scores, metric=metric)
    assert "lost: not surely better" in said and f"{share:.3f}" in said and "good" not in said
    good = {"good": scores["good"]}
    assert constant_line({"good": tested["good"]}, scores=good, metric=metric) == ""
    loss = metrics_of(ClassificationSpec(target="label"))["log_loss"]
    assert constant_line(tested, scores=scores, metric=loss) == ""
