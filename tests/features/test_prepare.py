"""Preparing ahead of the encoder, and at its pace."""

import pickle
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from features import prepare
from features.actors import MOST_IN_BLOCK, blocks_of
from features.broken_encoder import BrokenEncoder
from features.columns import PayloadColumns
from features.embedding import embed_shards
from features.encoders import parse_encoder
from features.encoders.sample_payloads import common_payloads
from features.encoding import Prepared, Rows, encode_rows
from features.payload_keys import payload_key
from features.plan import Work
from features.quarantine import read_quarantine
from features.sample_shards import write_samples
from features.sources import RowReader
from tests.features.test_conformance import CONFIGURED
from tests.features.world import ROWS, Letters, LettersSpec

WINDOW = 50
BATCH = 5


def ended(work: Callable[[], Any], *, seconds: float = 60) -> Any:
    """What a function returns or raises; AssertionError if it hangs."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it hangs"
    return found[0]


@pytest.fixture
def windows(world, monkeypatch):
    """Shards of several windows."""
    monkeypatch.setitem(prepare.WINDOW_ROWS, "text", WINDOW)
    monkeypatch.setitem(prepare.FIRST_ROWS, "text", 4)
    monkeypatch.setattr(prepare, "THREADS", 2)
    monkeypatch.setattr(prepare, "AHEAD_ROWS", 8)
    world.specs = {
        "text": LettersSpec(batch_size=BATCH), "note": LettersSpec(scale=2, batch_size=BATCH)
    }  # fmt: skip
    return world


def test_shards_of_several_windows_are_embedded_whole(windows):
    plan, results, _ = ended(windows.run)
    assert len(results) == len(plan.work) > 1
    assert sum(result.embedded for result in results) == ROWS - ROWS // 10 + ROWS


def test_preparing_is_a_window_and_a_few_rows_ahead_of_encoding(windows, monkeypatch):
    lock = threading.Lock()
    ahead = {"now": 0, "most": 0}
    prepare_one, encode = Letters.prepare, Letters.encode

    def counted(self, payload):
        with lock:
            ahead["now"] += 1
            ahead["most"] = max(ahead["most"], ahead["now"])
        return prepare_one(self, payload)

    def taken(self, batch):
        with lock:
            ahead["now"] -= len(batch)
        time.sleep(0.003)  # time enough to run ahead
        return encode(self, batch)

    monkeypatch.setattr(Letters, "prepare", counted)
    monkeypatch.setattr(Letters, "encode", taken)
    ended(windows.run)
    assert WINDOW // 2 < ahead["most"] <= WINDOW + prepare.AHEAD_ROWS + BATCH


def test_bad_rows_hold_nobody_up(windows):
    windows.frame.loc[::2, "note"] = "unusable"
    _, results, snapshot = ended(windows.run)
    assert snapshot.modalities["note"].bad == ROWS // 2 and len(results) > 1


def notes(world):
    """The shards of notes, embedded one after another by one call."""
    plan = world.plan()
    write_samples(plan, store=world.store)
    works = [work for work in plan.work if work.modality == "note"]
    assert len(works) > 3
    return embed_shards(
        works,
        store=world.store,
        spec=world.specs["note"],
        encoder=world.specs["note"].load(),
        source=plan.source,
        reader=RowReader(plan.source, columns=["note"]),
        columns=PayloadColumns(kind="text", columns=("note",)),
        payload_key_by="stat",
    )


def test_a_device_that_fails_leaves_no_thread_waiting(windows, monkeypatch):
    """Amid a window, when the next one waits for more of it to be encoded."""
    monkeypatch.setitem(prepare.WINDOW_ROWS, "text", 20)
    monkeypatch.setitem(prepare.FIRST_ROWS, "text", 20)
    encode, calls = Letters.encode, []

    def broken(self, batch):
        calls.append(len(batch))
        if len(calls) < 2:
            return encode(self, batch)
        if len(calls) == 2:
            time.sleep(0.3)  # until there is a thread that waits
        raise RuntimeError("CUDA error: the device is lost")

    monkeypatch.setattr(Letters, "encode", broken)
    assert isinstance(ended(lambda: list(notes(windows))), RuntimeError)
    assert calls == [BATCH, BATCH]


def test_who_stops_listening_leaves_no_thread(windows):
    before = set(threading.enumerate())
    results = notes(windows)
    next(results)
    ended(lambda: (results.close(), True))
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith(("prepare", "ahead", "write"))}


@pytest.mark.parametrize(
    "value",
    [pytest.param({"type": n} | o, id=n) for n, options in CONFIGURED.items() for o in options[:1]],
)
def test_the_memory_of_what_is_prepared_is_known(value):
    """By which a window ends: compared with the bytes that pickle needs for it."""
    spec = parse_encoder(value)
    samples = common_payloads(spec)
    encoder = (spec.fitted(samples) if spec.needs_fit else spec).load()
    for payload in samples:
        prepared = encoder.prepare(payload)
        assert prepare.bytes_of(prepared) >= 0.5 * (len(pickle.dumps(prepared)) - 300)


def test_the_memory_of_tokens_is_known(minilm):
    encoder = parse_encoder({"type": "huggingface_text", "model": minilm}).load()
    few, many = (prepare.bytes_of(encoder.prepare("word " * count)) for count in (10, 210))
    assert many - few >= 200 * 8


def test_a_window_of_long_series_ends_by_its_memory(monkeypatch):
    """Four series of 8,000 bytes fill a window, however many rows it may have."""
    monkeypatch.setattr(prepare, "WINDOW_BYTES", 4 * 8000)
    spec = parse_encoder({"type": "series", "channels": 1, "scaling": "none"})
    columns = PayloadColumns(kind="series", columns=("s",))
    values = [np.full(1000, float(i)) for i in range(10)]
    keys = [payload_key(value, columns=columns, folder="") for value in values]
    opening = prepare.Opening(columns=columns, encoder=spec.load(), folder="", key_by="stat")
    with ThreadPoolExecutor(2) as pool:
        windows = list(
            prepare.prepared_windows(
                range(10),
                read=lambda rows: [values[row] for row in rows],
                keys=keys,
                opening=opening,
                pool=pool,
            )
        )
    assert [window.rows for window in windows] == [4, 4, 2]
    assert [item.row for window in windows for item in window.prepared] == list(range(10))


@pytest.mark.parametrize("rows", ["one", "all"])
def test_code_that_fails_in_prepare_is_told_from_a_row_that_it_fails_for(world, monkeypatch, rows):
    prepare_one = Letters.prepare

    def failing(self, payload):
        if rows == "all" or payload == "odd":
            raise AttributeError("no such thing")
        return prepare_one(self, payload)

    monkeypatch.setattr(Letters, "prepare", failing)
    world.frame.loc[33, "text"] = "odd"
    if rows == "all":
        with pytest.raises(BrokenEncoder, match=r"`prepare` for all .*AttributeError: no such"):
            world.run()
        assert not list((world.folder / "store").glob("quarantine/*/*"))
        return
    _, _, snapshot = world.run()
    (bad,) = read_quarantine(world.store, snapshot).to_pylist()
    assert (bad["sample_id"], bad["stage"]) == ("s33", "prepare")
    assert bad["reason"] == "AttributeError: no such thing"


class Hungry:
    """An encoder that has no memory for more than two rows at once, and holds some while it fails.

    It notes whether what a failed pass had held was still there at the next one.
    """

    dim = 1

    def __init__(self) -> None:
        self.held: list[weakref.ref[Any]] = []
        self.still_there = 0

    def encode(self, batch):
        class Block:
            pass

        self.still_there += sum(reference() is not None for reference in self.held)
        block = Block()
        self.held = [weakref.ref(block)]
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory")
        return [[float(row)] for row in batch]


def test_a_batch_that_ran_out_of_memory_is_let_go_before_its_halves_are_tried():
    encoder, into = Hungry(), Rows()
    prepared = [Prepared(row=i, payload=i, size=1) for i in range(16)]
    encode_rows(prepared, spec=LettersSpec(), encoder=encoder, into=into)
    assert sorted(into.values) == list(range(16)) and not into.bad
    assert encoder.still_there == 0


def test_rows_that_fail_hold_no_memory_until_the_window_is_done():
    held: list[weakref.ref[Any]] = []
    at_once: list[int] = []

    class Failing:
        dim = 1

        def encode(self, batch):
            class Activations:
                pass

            at_once.append(sum(reference() is not None for reference in held))
            kept = Activations()
            held.append(weakref.ref(kept))
            if any(row % 2 for row in batch):
                raise ValueError(f"an odd number in {batch}")
            return [[float(row)] for row in batch]

    into = Rows()
    prepared = [Prepared(row=i, payload=i, size=1) for i in range(16)]
    encode_rows(prepared, spec=LettersSpec(), encoder=Failing(), into=into)
    assert sorted(into.values) == list(range(0, 16, 2))
    assert [bad.row for bad in into.bad] == list(range(1, 16, 2))
    assert max(at_once) == 0


def short_of_memory() -> list[Exception]:
    """What torch really raises where there is not enough, and what cuBLAS says."""
    errors: list[Exception] = [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")]
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except Exception as error:
        errors.append(error)
    assert len(errors) == 2
    return errors


@pytest.mark.parametrize("error", short_of_memory(), ids=["cuBLAS", "torch on a CPU"])
def test_a_row_is_not_blamed_for_memory_that_does_not_suffice(error):
    class Short:
        dim = 1
        most = 2

        def encode(self, batch):
            if len(batch) > self.most:
                raise type(error)(*error.args)
            return [[float(row)] for row in batch]

    encoder, into = Short(), Rows()
    prepared = [Prepared(row=i, payload=i, size=1) for i in range(8)]
    encode_rows(prepared, spec=LettersSpec(), encoder=encoder, into=into)
    assert sorted(into.values) == list(range(8)) and not into.bad

    encoder.most = 0
    into = Rows(values={99: np.zeros(1)})
    with pytest.raises(MemoryError, match=r"one payload, of size 1 \(row 0 .*(?i:alloc)"):
        encode_rows(prepared[:1], spec=LettersSpec(), encoder=encoder, into=into)
    assert not into.bad


def test_an_encoder_that_gives_nothing_is_told_what_it_must_give(monkeypatch):
    monkeypatch.setattr(Hungry, "encode", lambda self, batch: None)
    prepared = [Prepared(row=i, payload=i, size=1) for i in range(4)]
    with pytest.raises(TypeError, match=r"of shape \(\) for 4 rows; it must be \(4, 1\)"):
        encode_rows(prepared, spec=LettersSpec(), encoder=Hungry(), into=Rows())


def works(count: int) -> list[Work]:
    return [
        Work(
            modality="text",
            encoder="e",
            shard=f"s{i}",
            samples="",
            ranges=(),
            rows=1,
            payloads=1,
            donors=(),
        )
        for i in range(count)
    ]


def test_one_actor_reads_from_shard_to_shard_and_several_end_together():
    alone = [len(block) for block in blocks_of(works(20), actors=1)]
    assert alone == [MOST_IN_BLOCK, MOST_IN_BLOCK, 20 - 2 * MOST_IN_BLOCK]
    shared = [len(block) for block in blocks_of(works(20), actors=2)]
    assert sum(shared) == 20 and shared[0] > 1 and shared[-1] == 1
