"""Vector encoder: embeddings that the user already has, checked and passed through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic

from features.encoders.base import Encoder, EncoderSpec, Kind
from features.fingerprint import Execution


class VectorSpec(EncoderSpec):
    """Embeddings that the user already has: of one width, finite and, unless allowed, not zero."""

    kind: ClassVar[Kind] = "vector"

    type: Literal["vector"] = "vector"
    dim: Annotated[int, pydantic.Field(ge=1, le=2**20)]
    """Width of the vectors; one of another width is bad."""
    normalize: bool = False
    """Whether a vector is scaled to length 1; one of zeros stays as it is."""
    zero: Literal["refuse", "allow"] = "refuse"
    """What becomes of a vector of zeros, which many programs write where they have none."""
    batch_size: Annotated[int, Execution, pydantic.Field(ge=1)] = 4096
    """Rows that are put together at once. It does not enter the fingerprint."""

    def load(self) -> Encoder:
        return _Vector(self)


class _Vector:
    def __init__(self, spec: VectorSpec) -> None:
        self._spec = spec
        self.dim = spec.dim

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        """float64 `[D]` → float32 `[D]`, checked and normalised."""
        (found,) = self.prepare_all([payload])
        if isinstance(found, ValueError):
            raise found
        return found

    def prepare_all(self, payloads: Sequence[np.ndarray]) -> list[Any]:
        """Many at once: float32 `[D]` each, or the ValueError that says what is wrong with it."""
        dim = self.dim
        found: list[Any] = [None] * len(payloads)
        places = [i for i, vector in enumerate(payloads) if vector.shape == (dim,)]
        if len(places) < len(payloads):
            for i, vector in enumerate(payloads):
                if vector.shape != (dim,):
                    found[i] = ValueError(
                        f"a vector of {vector.size} numbers, where `dim` is {dim}"
                    )
        if not places:
            return found
        matrix_BD = np.concatenate([payloads[i] for i in places]).reshape(len(places), dim)
        greatest_B = np.maximum(matrix_BD.max(axis=1), -matrix_BD.min(axis=1))  # NaN stays NaN
        faults = self._faults(matrix_BD, greatest_B)
        rows_BD = self._normalized(matrix_BD, greatest_B) if self._spec.normalize else matrix_BD
        with np.errstate(over="ignore", invalid="ignore"):
            rows = list(rows_BD.astype(np.float32))
        for i, place in enumerate(places):
            found[place] = faults.get(i) or rows[i]
        return found

    def size(self, prepared: np.ndarray) -> int:
        return 1

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(batch).reshape(len(batch), self.dim)

    def _faults(self, matrix_BD: np.ndarray, greatest_B: np.ndarray) -> dict[int, ValueError]:
        """What is wrong, by row."""
        faults: dict[int, ValueError] = {}
        for i in np.flatnonzero(~np.isfinite(greatest_B)).tolist():
            at = int(np.flatnonzero(~np.isfinite(matrix_BD[i]))[0])
            value = "NaN or null" if np.isnan(matrix_BD[i, at]) else "infinite"
            faults[i] = ValueError(f"number {at} of the vector (counted from 0) is {value}")
        if self._spec.zero == "refuse":
            for i in np.flatnonzero(greatest_B == 0).tolist():
                faults[i] = ValueError("a vector of zeros; `zero: allow` takes it as it is")
        if not self._spec.normalize:
            too_large = np.isfinite(greatest_B) & (greatest_B > np.finfo(np.float32).max)
            for i in np.flatnonzero(too_large).tolist():
                faults[i] = ValueError("the vector is out of range for float32")
        return faults

    def _normalized(self, matrix_BD: np.ndarray, greatest_B: np.ndarray) -> np.ndarray:
        """Rows of length 1; scaled by the greatest first, whose square may be out of range."""
        usable_B = np.isfinite(greatest_B) & (greatest_B > 0)
        greatest_B1 = np.where(usable_B, greatest_B, 1.0)[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            rows_BD = matrix_BD / greatest_B1
            norms_B1 = np.sqrt(np.square(rows_BD).sum(axis=1, keepdims=True))
            rows_BD /= np.where(usable_B[:, None], norms_B1, 1.0)
        return rows_BD
