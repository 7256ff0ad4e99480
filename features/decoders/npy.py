"""Arrays of numbers in NumPy's own file format, read without ever unpickling.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math

import numpy as np

from features.decoders.base import BadPayload, Limits, short

MAGIC = b"\x93NUMPY"
"""The first bytes of every `.npy` file."""


def read_npy(payload: bytes, *, limits: Limits) -> np.ndarray:
    """The array of a `.npy` file as float64, read-only if it was float64 in the file.

    Integers, booleans and floats of 16, 32 and 64 bits are numbers; objects would have to be
    unpickled, and are refused. The size is checked before memory is taken for it. BadPayload for
    all else.
    """
    try:
        file = io.BytesIO(payload)
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(file)
        else:  # 3.0 is for field names in Unicode, and numbers have none
            raise BadPayload(f"a .npy file of version {version}, not of numbers", stage="decode")
    except BadPayload:
        raise
    except Exception as error:  # the header is evaluated as a Python literal: anything may come
        reason = f"not a .npy file, or damaged: {short(error)}"
        raise BadPayload(reason, stage="decode") from error
    shape, fortran_order, dtype = header
    if dtype.hasobject:
        reason = "a .npy file of pickled objects, which are never loaded; save an array of numbers"
        raise BadPayload(reason, stage="decode")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise BadPayload(f"a .npy file of {dtype}, not of numbers", stage="decode")
    if any(length < 0 for length in shape):
        raise BadPayload(f"a .npy file of the shape {shape}", stage="decode")
    refuse_too_many(math.prod(shape), limits=limits)
    data = memoryview(payload)[file.tell() :]
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        what = "truncated .npy file" if len(data) < size else "bytes behind the array"
        raise BadPayload(f"{what}: {len(data)} bytes where {size} should be", stage="decode")
    flat = np.frombuffer(data, dtype=dtype)
    array = flat.reshape(shape, order="F" if fortran_order else "C")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(shape)


def refuse_too_many(count: int, *, limits: Limits) -> None:
    """Raise BadPayload if a payload unfolds to more numbers than `limits.values`."""
    if count > limits.values:
        raise BadPayload(f"more than {limits.values:,} numbers", stage="decode")
