from __future__ import annotations

import os

import pydantic
import pytest

from features.fingerprint import fingerprint
from training import memory
from training.memory import machine_memory, memory_bytes
from training.training_spec import TrainingSpec


@pytest.mark.parametrize(
    ("said", "size"),
    [(0.5, 0.5), (1, 1), (8_000_000_000, 8e9), ("8 GB", 8e9), ("8GB", 8e9), ("512 MiB", 2**29)],
)
def test_memory_is_a_share_or_an_amount(said, size) -> None:
    assert TrainingSpec(memory=said).memory == size


@pytest.mark.parametrize("said", ["much", "8 bananas", True, None, [1], 0, -1, "0 GB", "-1 GB"])
def test_what_is_neither_is_refused(said) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"8 GB|more than nothing"):
        TrainingSpec(memory=said)


def test_it_changes_no_result_and_what_is_shuffled_does() -> None:
    base = fingerprint(TrainingSpec())
    assert fingerprint(TrainingSpec(memory="1 GB")) == base
    assert fingerprint(TrainingSpec(shuffle_buffer=1000)) != base


def test_a_share_is_divided_among_the_processes_of_a_machine(monkeypatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 1000)
    assert memory_bytes(0.5) == 500
    assert memory_bytes(0.5, processes=2) == 250
    assert memory_bytes(1) == 1000
    assert memory_bytes(8e9, processes=4) == 2_000_000_000


def test_a_container_has_what_it_may_take(monkeypatch, tmp_path) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (str(tmp_path / "none"), str(limit)))
    assert machine_memory() == physical
    limit.write_text("max\n")
    assert machine_memory() == physical
    limit.write_text("123456\n")
    assert machine_memory() == 123456
