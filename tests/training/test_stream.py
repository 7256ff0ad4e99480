"""Vectors that come and go: what is taken is what was written, in any order, in bounded memory."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from training.data.stream import StreamedVectors, least_capacity

SIZES = [7, 3, 9, 1, 5, 8, 8, 2, 6, 9]


class Medium:
    """Blocks of vectors on a medium that counts what is read of it."""

    def __init__(self, sizes: list[int], *, dim: int = 3) -> None:
        rng = np.random.default_rng(0)
        self.values = rng.normal(size=(sum(sizes), dim)).astype(np.float16)
        self.firsts = np.cumsum([0, *sizes])
        self.reads: list[int] = []
        self.broken: set[int] = set()
        self.seconds = 0.0

    def read(self, block: int, into: np.ndarray) -> None:
        self.reads.append(block)
        time.sleep(self.seconds)
        into[:] = np.nan  # What a read that is under way looks like.
        if block in self.broken:
            raise OSError(f"block {block} is damaged")
        into[:] = self.values[self.firsts[block] : self.firsts[block + 1]]

    def open(self, *, capacity: int) -> StreamedVectors:
        return StreamedVectors(
            sizes=np.diff(self.firsts).tolist(),
            read=self.read,
            dim=self.values.shape[1],
            dtype=self.values.dtype,
            capacity=capacity,
        )


@pytest.fixture
def medium() -> Medium:
    return Medium(SIZES)


@pytest.mark.parametrize("capacity", [least_capacity(SIZES), 40, sum(SIZES), 10 * sum(SIZES)])
@pytest.mark.parametrize("expected", [True, False])
def test_any_numbers_in_any_order_are_those_of_the_medium(medium, capacity, expected) -> None:
    reader = medium.open(capacity=capacity)
    assert (len(reader), reader.dim, reader.dtype) == (sum(SIZES), 3, torch.float16)
    assert reader.nbytes <= capacity * 3 * 2
    values = torch.from_numpy(medium.values)
    rng = np.random.default_rng(capacity)
    for _ in range(5):
        order = torch.from_numpy(rng.permutation(sum(SIZES)))
        order[rng.integers(len(order), size=6)] = -1
        if expected:
            reader.expect(order)
        for some in order.split(11):
            there = some >= 0
            assert torch.equal(reader.take(some)[there], values[some[there]])
    reader.close()


def test_takes_other_than_expected_are_right_too(medium) -> None:
    reader = medium.open(capacity=30)
    values = torch.from_numpy(medium.values)
    reader.expect(torch.arange(sum(SIZES)))
    for some in torch.randperm(sum(SIZES)).split(4):
        assert torch.equal(reader.take(some), values[some])
    reader.close()


def test_in_order_each_block_is_read_once_and_ahead(medium) -> None:
    medium.seconds = 0.002
    reader = medium.open(capacity=30)
    reader.expect(torch.arange(sum(SIZES)))
    for some in torch.arange(sum(SIZES)).split(5):
        reader.take(some)
        time.sleep(0.002)
    reader.close()
    assert sorted(medium.reads) == list(range(len(SIZES)))
    assert reader.blocks_read == len(SIZES)


def test_the_thread_reads_no_further_than_there_is_room(medium) -> None:
    reader = medium.open(capacity=30)
    reader.expect(torch.arange(sum(SIZES)))
    reader.take(torch.arange(2))
    deadline = time.monotonic() + 10
    # 7 + 3 + 9 + 1 + 5 have room, and the next 8 have not.
    while len(medium.reads) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert medium.reads == [0, 1, 2, 3, 4]
    reader.close()
    assert not [t for t in threading.enumerate() if t.name == "read-ahead"]


def test_blocks_that_are_in_memory_are_not_read_again(medium) -> None:
    reader = medium.open(capacity=sum(SIZES))
    for _ in range(3):
        reader.expect(torch.arange(sum(SIZES)))
        reader.take(torch.arange(sum(SIZES)))
    reader.close()
    assert sorted(medium.reads) == list(range(len(SIZES)))


def test_a_fault_is_raised_where_the_block_is_taken_and_may_pass(medium) -> None:
    medium.broken = {2}
    reader = medium.open(capacity=30)
    reader.expect(torch.arange(sum(SIZES)))
    assert torch.equal(reader.take(torch.arange(8)), torch.from_numpy(medium.values[:8]))
    with pytest.raises(OSError, match="block 2 is damaged"):
        reader.take(torch.tensor([12]))
    medium.broken = set()
    assert torch.equal(reader.take(torch.tensor([12])), torch.from_numpy(medium.values[12:13]))
    reader.close()


def test_too_little_room_is_refused(medium) -> None:
    with pytest.raises(ValueError, match="room for 26 vectors; blocks of this size need 27"):
        medium.open(capacity=26)
