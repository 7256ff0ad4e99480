"""The start of a Ray of this machine's own."""

from __future__ import annotations

import pytest
import ray

from workflows.cluster import STARTS, start_ray

LATE = "The current node timed out during startup. This could happen because ..."
"""As Ray says it."""


@pytest.mark.parametrize(
    ("said", "begun"),
    [([LATE], 2), ([LATE] * 2, 3), ([LATE] * STARTS, STARTS), (["no such address"], 1)],
)
def test_a_start_that_took_too_long_is_tried_again_and_no_other_failure(
    monkeypatch: pytest.MonkeyPatch, said: list[str], begun: int
) -> None:
    calls = []

    def init(**options: object) -> None:
        calls.append(options)
        if len(calls) <= len(said):
            raise Exception(said[len(calls) - 1])

    monkeypatch.setattr(ray, "init", init)
    if begun == len(said):
        with pytest.raises(Exception, match=said[-1][:20]):
            start_ray(num_cpus=2)
    else:
        start_ray(num_cpus=2)
    assert calls == [{"num_cpus": 2}] * begun
