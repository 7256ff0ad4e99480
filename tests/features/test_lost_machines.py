"""A machine that goes takes processes with it that did no wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import features.job
from features.attempts import Attempts
from features.broken_encoder import BrokenEncoder
from features.encoders import parse_encoder


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begins to load an encoder on a node, and dies of it, or does not."""
    attempts = Attempts()
    actor = object.__new__(features.job.ShardEncoder)
    encoder = parse_encoder({"type": "hashing", "dim": 8})
    actor._features = {"text": SimpleNamespace(encoder=encoder)}  # type: ignore[dict-item]

    def ended(encoder: str, actor: str) -> None:
        if not dies:
            attempts.end_load(encoder, actor)

    actor._attempts = SimpleNamespace(
        begin_load=SimpleNamespace(remote=attempts.begin_load),
        end_load=SimpleNamespace(remote=ended),
    )
    dies = True

    def run(node: str, *, alive: str, dying: bool = True) -> Any:
        nonlocal dies
        dies = dying
        context = SimpleNamespace(get_actor_id=lambda: "actor", get_node_id=lambda: node)
        monkeypatch.setattr(features.job.ray, "get_runtime_context", lambda: context)
        monkeypatch.setattr(features.job.ray, "get", lambda value: value)
        nodes = [{"NodeID": name, "Alive": name in alive} for name in "abcdef"]
        monkeypatch.setattr(features.job.ray, "nodes", lambda: nodes)
        return actor._load("text", encoder="e")

    return run


def test_a_load_that_ends_with_its_machine_is_no_fault_of_the_encoder(load: Any) -> None:
    for number, node in enumerate("abcde"):
        load(node, alive="abcdef"[number:])  # those before are lost
    assert load("f", alive="f", dying=False).dim == 8


def test_an_encoder_that_takes_each_machine_down_is_not_loaded_for_ever(load: Any) -> None:
    for number in range(features.job.MOST_LOADS):
        load("abcdef"[number % 6], alive="")
    with pytest.raises(BrokenEncoder, match="6 processes or machines were lost while they"):
        load("a", alive="a")


def test_one_that_ends_where_the_machine_goes_on_is(load: Any) -> None:
    load("a", alive="ab")
    load("b", alive="ab")
    with pytest.raises(BrokenEncoder, match="ended 2 times while it loaded"):
        load("a", alive="ab")


def test_a_load_that_ended_well_is_forgotten(load: Any) -> None:
    for _ in range(4):
        load("a", alive="a", dying=False)
