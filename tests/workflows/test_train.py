from __future__ import annotations

from workflows.train import passes


def test_what_shares_a_pass_is_said() -> None:
    assert list(passes([["a", "b"], ["wide"]])) == [
        "together, in one pass: a, b",
        "in turn, each on all workers: wide",
    ]


def test_nothing_is_said_where_every_candidate_has_a_pass_of_its_own() -> None:
    assert list(passes([["a"], ["b"]])) == []
