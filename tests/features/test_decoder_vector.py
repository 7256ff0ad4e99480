"""Vectors and `.npy` files against what NumPy itself writes."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest

from features.columns import PayloadColumns
from features.decoders.base import BadPayload, Limits
from features.payloads import decode, open_payload

VECTOR = PayloadColumns(kind="vector", columns=("v",))


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def header(text: str, *, version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode()


def refusal(payload: Any, **options: Any) -> str:
    with pytest.raises(BadPayload) as caught:
        decode(payload, kind="vector", **options)
    assert caught.value.stage == "decode"
    return caught.value.reason


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8", "i1", "<i8", ">u2", "?"])
def test_a_file_of_any_numbers_is_a_vector_of_float64(dtype: str) -> None:
    array = np.array([0, 1, 1, 0, 1]).astype(dtype)
    for shaped in (array, array[None], np.asfortranarray(array[None])):
        found = decode(npy(shaped), kind="vector")
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, array.astype(np.float64))


def test_a_file_of_the_second_version_is_read() -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(3.0), version=(2, 0))
    np.testing.assert_array_equal(decode(file.getvalue(), kind="vector"), [0, 1, 2])


def test_an_inline_list_and_a_file_behind_a_path_are_the_same_vector(tmp_path: Any) -> None:
    np.save(tmp_path / "a.npy", np.array([1.5, 2.5], np.float16))
    for value in ("a.npy", npy(np.array([1.5, 2.5])), np.array([1.5, 2.5])):
        found = open_payload(value, columns=VECTOR, folder=str(tmp_path))
        np.testing.assert_array_equal(found, [1.5, 2.5])
    with pytest.raises(BadPayload, match="no such file"):
        open_payload("b.npy", columns=VECTOR, folder=str(tmp_path))


def test_objects_are_never_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it was unpickled",)

    assert "pickled" in refusal(npy(np.array([Bomb()], object), allow_pickle=True))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (np.zeros((2, 3)), r"one dimension; this has the shape \(2, 3\)"),
        (np.zeros(()), "one dimension"),
        (np.zeros(0), "empty vector"),
        (npy(np.zeros(0)), "empty vector"),
        (npy(np.zeros((2, 3))), "one dimension"),
        ([1.0, "x"], "a list of numbers"),
        (npy(np.zeros(3, complex)), "complex128, not of numbers"),
        (npy(np.array(["a"])), "not of numbers"),
        (npy(np.zeros(2, [("a", "f4")])), "not of numbers"),
        (npy(np.zeros(2, "datetime64[s]")), "not of numbers"),
        (npy(np.arange(3.0))[:-1], "truncated .npy file: 23 bytes where 24"),
        (npy(np.arange(3.0)) + npy(np.arange(3.0)), "bytes behind the array"),
        (npy(np.arange(3.0))[:30], "not a .npy file, or damaged"),
        (b"\x89PNG\r\n", "not a .npy file"),
        (np.arange(3.0).tobytes(), "not a .npy file"),
        (b"", "empty vector"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n"), "shape"),
        (header("{'descr': '<f8', 'shape': (1,)}\n"), "damaged"),
        (header("__import__('os').abort()\n"), "damaged"),
        (header("{}\n", version=(3, 0)), "version"),
    ],
)
def test_what_is_no_vector_is_refused_with_the_reason(payload: Any, reason: str) -> None:
    with pytest.raises(BadPayload, match=reason):
        decode(payload, kind="vector")


def test_a_bomb_is_refused_from_its_header() -> None:
    bomb = header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**15},)}}\n")
    assert "more than" in refusal(bomb)
    assert "more than 2 numbers" in refusal(npy(np.zeros(3)), limits=Limits(values=2))
    assert "more than 2 numbers" in refusal(np.zeros(3), limits=Limits(values=2))


def test_any_damage_gives_an_array_or_a_reason() -> None:
    whole = npy(np.arange(5.0))
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        data = bytearray(whole)
        for place in random.integers(len(data), size=3):
            data[place] = random.integers(256)
        try:
            outcomes.add(decode(bytes(data), kind="vector").ndim)
        except BadPayload as error:
            outcomes.add(error.stage)
    assert outcomes == {1, "decode"}
