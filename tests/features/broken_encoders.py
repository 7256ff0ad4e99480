"""An encoder that conforms, and one for each way not to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pydantic

from features.encoders import EncoderSpec, Kind

Fault = Literal[
    "none", "clock", "unnamed weights", "no dim", "budget of text", "refuses", "changes", "size",
    "counts", "float64", "list", "width", "short", "nan", "large", "random", "batch", "order",
    "threads", "all at once", "crash", "silent", "odd nan", "hash", "state", "fit", "process",
]  # fmt: skip


class BrokenSpec(EncoderSpec):
    """Length, words and a bias of texts, with one fault."""

    kind: ClassVar[Kind] = "text"

    type: Literal["tests.features.broken_encoders.BrokenSpec"] = (
        "tests.features.broken_encoders.BrokenSpec"
    )
    fault: Fault = "none"
    """What is wrong with it."""
    output: Literal["pooled", "sequence"] = "pooled"
    """A row a text, or a row a word."""
    mean: float | None = None
    """Statistics of a fit."""
    parent: int = 0
    """Process in which it was made."""

    @property
    def sequence(self) -> bool:
        return self.output == "sequence"

    def weights(self) -> Any:
        return {"file": 3} if self.fault == "unnamed weights" else {"file": "abc"}

    def fingerprint(self) -> str:
        moment = str(time.perf_counter_ns()) if self.fault == "clock" else ""
        return super().fingerprint() + moment

    @property
    def needs_fit(self) -> bool:
        return self.fault == "fit"

    def fitted(self, payloads: Iterable[Any]) -> Self:
        return self.model_copy(update={"mean": float(len(list(payloads)))})

    def load(self) -> Any:
        return Broken(self)


class Broken:
    def __init__(self, spec: BrokenSpec) -> None:
        self._spec, self._fault = spec, spec.fault
        self._random = np.random.default_rng()
        self._current = ""
        self._calls = 0
        self.dim: Any = "three" if spec.fault == "no dim" else 3
        if spec.fault == "budget of text":
            self.budget = "many"
        if spec.fault == "all at once":
            self.prepare_all = lambda payloads: [self.prepare(p + "!") for p in payloads]

    def prepare(self, payload: Any) -> Any:
        if not payload.strip():
            if self._fault == "crash":
                return payload[0][1]
            raise ValueError("" if self._fault == "silent" else "no words")
        if self._fault == "refuses":
            raise ValueError("not in the mood")
        if self._fault == "threads":
            self._current = payload
            time.sleep(1e-3)
            payload = self._current
        return payload

    def size(self, prepared: str) -> Any:
        return len(prepared) / 2 if self._fault == "size" else len(prepared)

    def counts(self, prepared: str) -> dict[str, Any]:
        return {"words": "two" if self._fault == "counts" else len(prepared.split())}

    def encode(self, batch: list[str]) -> Any:
        self._calls += 1
        found = [self._rows(text, batch) for text in batch]
        rows = found if self._spec.sequence else np.stack([part.mean(axis=0) for part in found])
        match self._fault:
            case "float64":
                return rows.astype(np.float64)
            case "list":
                return np.stack(rows) if self._spec.sequence else list(rows)
            case "width":
                return rows[:, :2]
            case "short":
                return rows[:-1]
            case "order":
                for i in range(1, len(batch)):
                    rows[i] += len(batch[i - 1]) > len(batch[i])
        return rows

    def _rows(self, text: str, batch: list[str]) -> np.ndarray:
        words = text.split() or [""]
        rows = np.array([[len(word), len(words), 1] for word in words], dtype=np.float32)
        match self._fault:
            case "nan":
                rows[:, 1] = np.nan
            case "odd nan" if len(text) == 1:
                rows[:, 1] = np.nan
            case "large":
                rows[:, 1] = 1e6
            case "random":
                rows += self._random.normal(size=3)
            case "state":
                rows += self._calls
            case "batch":
                rows -= np.mean([len(other) for other in batch])
            case "hash":
                rows[:, 2] = hash(text) % 1000
            case "process":
                import os

                if self._spec.parent not in (0, os.getpid()):
                    raise RuntimeError("not here")
        return rows


class ThawedSpec(BrokenSpec):
    """One that can be changed."""

    model_config = pydantic.ConfigDict(frozen=False)


class BareSpec(EncoderSpec):
    kind: ClassVar[Kind] = "text"

    type: Literal["tests.features.broken_encoders.BareSpec"] = (
        "tests.features.broken_encoders.BareSpec"
    )
    option: int = 3

    def load(self) -> Any:
        return Broken(BrokenSpec())


class KindlessSpec(EncoderSpec):
    """One whose kind does not exist."""

    kind: ClassVar[Any] = "smell"

    type: Literal["tests.features.broken_encoders.KindlessSpec"] = (
        "tests.features.broken_encoders.KindlessSpec"
    )


class LockedSpec(BrokenSpec):
    """One that cannot be pickled, and not be written as JSON."""

    type: Literal["tests.features.broken_encoders.LockedSpec"] = (  # type: ignore[assignment]
        "tests.features.broken_encoders.LockedSpec"
    )
    _lock: Any = pydantic.PrivateAttr(default_factory=threading.Lock)


class PaintedSpec(EncoderSpec):
    """An image encoder that paints over its payloads."""

    kind: ClassVar[Kind] = "image"

    type: Literal["tests.features.broken_encoders.PaintedSpec"] = (
        "tests.features.broken_encoders.PaintedSpec"
    )

    def load(self) -> Any:
        return Painted()


class Painted:
    dim = 3

    def prepare(self, payload: np.ndarray) -> np.ndarray:
        payload[0] = 0
        return payload

    def size(self, prepared: np.ndarray) -> int:
        return 1

    def encode(self, batch: list[np.ndarray]) -> np.ndarray:
        return np.stack([image.mean(axis=(0, 1)) for image in batch]).astype(np.float32)


class PillowSpec(EncoderSpec):
    """An image encoder that asks for Pillow's images, and shrinks those by another filter."""

    kind: ClassVar[Kind] = "image"

    type: Literal["tests.features.broken_encoders.PillowSpec"] = (
        "tests.features.broken_encoders.PillowSpec"
    )

    def load(self) -> Any:
        return Shrunk()


class Shrunk(Painted):
    takes_pillow = True

    def prepare(self, payload: Any) -> np.ndarray:
        if isinstance(payload, np.ndarray):
            return payload[:8, :8].copy()
        return np.asarray(payload.resize((8, 8)))
