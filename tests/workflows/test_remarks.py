"""What is said of the winner: one notion of what is sure, in the report and in the terminal."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tests.workflows.report_cases import difference, digits, one_modality
from training.built_in import BUILT_IN
from workflows.reporting.findings import Lead, ReportData
from workflows.reporting.remarks import on_candidates
from workflows.reporting.wording import KINDS
from workflows.summary import fusion_line

OPEN = Lead(gain=difference(0.05), p=0.081, test="McNemar", sure=False)
AHEAD = Lead(gain=difference(0.05), p=0.004, test="McNemar", sure=True)
BEHIND = Lead(gain=difference(-0.1), p=0.001, test="McNemar", sure=True)


def said(data: ReportData) -> str:
    return re.sub(r"<[^>]*>", "", " ".join(on_candidates(data)))


def against_single(lead: Lead | None) -> ReportData:
    """The digits, whose winner has this lead over the best single modality."""
    data = digits()
    assert data.best_single != data.winner
    return dataclasses.replace(
        data,
        candidates=tuple(
            dataclasses.replace(item, lead=lead) if item.name == data.best_single else item
            for item in data.candidates
        ),
    )


@pytest.mark.parametrize(
    ("lead", "sentence"),
    [
        (AHEAD, "The winner on validation, {winner}, surely beats {single} alone."),
        # Its interval alone excludes zero; among so many candidates that says little.
        (OPEN, "Whether the winner on validation, {winner}, beats {single} alone is not sure"),
        (BEHIND, "{single} alone surely beats the winner on validation, {winner}."),
    ],
)
def test_what_is_said_of_the_single_modality_is_what_the_table_says(lead, sentence) -> None:
    data = against_single(lead)
    text = said(data)
    assert sentence.format(winner=data.winner, single=data.best_single) in text
    assert text.count("surely beats") == int(lead.sure)
    assert "–" not in text


def test_nothing_is_said_of_single_modalities_where_there_is_none() -> None:
    data = dataclasses.replace(digits(), best_single=None)
    assert "single" not in said(data) and "alone" not in said(data)
    assert "No fusion" not in said(one_modality())
    data = digits()
    won = said(dataclasses.replace(data, winner=data.best_single))
    assert f"No fusion beats {data.best_single}, the best single modality." in won


def test_the_terminal_judges_as_the_table_does() -> None:
    options = {"winner": "early", "fusion": "early", "single": "photo"}
    assert "early is not clearly better or worse than photo, the best single modality: +0.050" in (
        fusion_line(**options, leads={"photo": OPEN})
    )
    assert "early beats photo" in fusion_line(**options, leads={"photo": AHEAD})
    assert "early loses to photo" in fusion_line(**options, leads={"photo": BEHIND})
    alone = fusion_line(winner="photo", fusion="early", single="photo", leads={"early": AHEAD})
    assert "early loses to photo, the best single modality: -0.050 [-0.078, -0.022]" in alone
    unlucky = fusion_line(winner="text", fusion="early", single="photo", leads={"early": OPEN})
    assert "early is not clearly better or worse than text, the winner on validation" in unlucky
    assert fusion_line(winner="early", fusion="early", single=None, leads={}) == ""


def test_every_built_in_candidate_has_a_name_that_people_read() -> None:
    assert set(KINDS) == set(BUILT_IN)
