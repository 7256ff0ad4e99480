"""Whose fault an error is: the candidate's own code's, or the connection's between workers."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from training.data.targets import Untrainable
from training.faults import CandidateFault, own_code


def test_what_a_candidate_raises_is_its_fault_with_the_line() -> None:
    with (
        pytest.raises(CandidateFault, match=r"KeyError: 'lost' \(.*test_faults.py:\d+\)"),
        own_code(),
    ):
        raise KeyError("lost")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/build/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed"),
        RuntimeError("NCCL communicator was aborted on rank 0"),
        dist.DistBackendError("lost a peer"),
        Untrainable("no labels"),
    ],
)
def test_what_the_connection_raises_passes_as_it_is(error: Exception) -> None:
    """Ray then starts the workers again, and they go on from the last checkpoint."""
    with pytest.raises(type(error)) as caught, own_code():
        raise error
    assert caught.value is error
