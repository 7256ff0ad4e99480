"""Vectors: a list of numbers, or the bytes of a `.npy` file → float64 `[D]`."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.decoders.base import BadPayload, Limits
from features.decoders.npy import read_npy, refuse_too_many


def decode(payload: Any, *, limits: Limits) -> np.ndarray:
    """The vector as float64 `[D]`; BadPayload if it is not one row of numbers.

    A file may hold `[1, D]`, as models give out for a batch of one. Width and values are for the
    encoder to judge, for many vectors at once.
    """
    if isinstance(payload, bytes):
        payload = read_npy(payload, limits=limits)
        if payload.ndim == 2 and payload.shape[0] == 1:
            payload = payload[0]
    if not isinstance(payload, np.ndarray):
        reason = "a vector is a list of numbers, or a .npy file of one"
        raise BadPayload(reason, stage="decode")
    if payload.ndim != 1:
        reason = f"a vector has one dimension; this has the shape {payload.shape}"
        raise BadPayload(reason, stage="decode")
    if not len(payload):
        raise BadPayload("empty vector", stage="decode")
    refuse_too_many(len(payload), limits=limits)
    return payload if payload.dtype == np.float64 else payload.astype(np.float64)
